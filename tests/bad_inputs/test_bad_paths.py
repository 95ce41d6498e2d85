"""Bad paths and bad dataset_info.json files: each gives its code with line and field, and nothing outside is read."""

from __future__ import annotations

import json
import os

import pytest
from finepref.formats import dataset_info
from finepref.formats.check import BadData, check_file

GOOD = {"file_name": "good.jsonl", "formatting": "pair"}

ENTRIES = [
    ("an entry that is a text", '{"d": "good.jsonl"}', [("FP070", 1, "d")]),
    ("an entry that is null", '{\n"d": null}', [("FP070", 2, "d")]),
    ("no file name", '{"d": {"formatting": "pair"}}', [("FP073", 1, "d")]),
    ("a file name that is a list", '{"d": {"formatting": "pair", "file_name": ["a"]}}', [("FP011", 1, "d.file_name")]),
    ("an empty file name", '{"d": {"formatting": "pair", "file_name": ""}}', [("FP011", 1, "d.file_name")]),
    ("a misspelt format", '{"d": {"formatting": "pairs", "file_name": "a"}}', [("FP016", 1, "d.formatting")]),
    ("a format that is a number", '{"d": {"formatting": 3, "file_name": "a"}}', [("FP016", 1, "d.formatting")]),
    ("a misspelt key", '{"d": {"formatting": "pair", "file_name": "a", "column": {}}}', [("FP072", 1, "d.column")]),
    (
        "columns as a list",
        '{"d": {"formatting": "pair", "file_name": "a", "columns": []}}',
        [("FP011", 1, "d.columns")],
    ),
    (
        "an unknown column",
        '{"d": {"formatting": "pair", "file_name": "a", "columns": {"answer": "b"}}}',
        [("FP017", 1, "d.columns.answer")],
    ),
    (
        "two fields from one column",
        '{"d": {"formatting": "pair", "file_name": "a", "columns": {"chosen": "x", "rejected": "x"}}}',
        [("FP017", 1, "d.columns.rejected")],
    ),
    (
        "an error type that is no name",
        '{"d": {"formatting": "feedback", "file_name": "a", "error_type": "bad logic"}}',
        [("FP031", 1, "d.error_type")],
    ),
    (
        "an error type for pairs",
        '{"d": {"formatting": "pair", "file_name": "a", "error_type": "logic"}}',
        [("FP072", 1, "d.error_type")],
    ),
    ("a dataset twice", f'{{"d": {json.dumps(GOOD)},\n "d": {json.dumps(GOOD)}}}', [("FP006", 2, "d")]),
    ("a key twice in an entry", '{"d": {"file_name": "a", "file_name": "b"}}', [("FP006", 1, "d.file_name")]),
    ("NaN in an entry", '{\n\n"d": {"num_samples": NaN}}', [("FP007", 3, "d")]),
    ("a list of entries", "[]", [("FP005", 1, "")]),
    ("an empty file", "", [("FP005", 1, "")]),
    ("a missing comma", '{"a": {}\n"d": {}}', [("FP004", 2, "")]),
    ("a missing colon", '{"a" {}}', [("FP004", 1, "")]),
    ("a missing end", '{"a": {}', [("FP004", 1, "")]),
    ("text after the end", '{}\n{"a": 1}', [("FP004", 2, "")]),
    ("a number as a name", "{3: {}}", [("FP004", 1, "")]),
    ("a torn entry", '{"a": {},\n"b": {"file_na', [("FP004", 2, "b")]),
]


@pytest.mark.parametrize(("text", "found"), [case[1:] for case in ENTRIES], ids=[case[0] for case in ENTRIES])
def test_a_bad_dataset_info_gives_exactly_its_problems(text, found, tmp_path):
    path = tmp_path / "dataset_info.json"
    path.write_text(text)
    problems = dataset_info.lint(path)
    assert [(problem.code, problem.line, problem.field) for problem in problems] == found
    assert {problem.file for problem in problems} == {str(path)}
    with pytest.raises(BadData) as raised:
        dataset_info.load(tmp_path)
    assert [problem.code for problem in raised.value.problems] == [code for code, _, _ in found]


def test_all_problems_of_all_entries_are_found_at_once(tmp_path):
    entries = {"a": [], "b": GOOD, "c": GOOD | {"formatting": "x"}, "d": GOOD | {"shuffle": True, "columns": 1}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries, indent=1))
    found = [(problem.code, problem.field) for problem in dataset_info.lint(tmp_path / "dataset_info.json")]
    assert found == [("FP070", "a"), ("FP016", "c.formatting"), ("FP072", "d.shuffle"), ("FP011", "d.columns")]


def test_a_dataset_info_that_is_not_there_or_not_utf_8_is_a_problem(tmp_path):
    path = tmp_path / "dataset_info.json"
    assert [problem.code for problem in dataset_info.lint(path)] == ["FP001"]
    path.write_bytes(b'{"\xff": {}}')
    assert [problem.code for problem in dataset_info.lint(path)] == ["FP003"]


@pytest.fixture
def folder(tmp_path):
    """tmp_path/data is the dataset folder; tmp_path/secret.jsonl and the folder tmp_path/outside are not in it."""
    data = tmp_path / "data"
    (data / "parts").mkdir(parents=True)
    (data / "mixed").mkdir()
    (data / "empty").mkdir()
    (tmp_path / "outside").mkdir()
    files = ["data/a.jsonl", "data/parts/2.jsonl", "data/parts/1.json", "data/mixed/1.jsonl", "data/mixed/notes.md"]
    for name in [*files, "secret.jsonl", "outside/1.jsonl"]:
        (tmp_path / name).write_text("{}\n")
    (data / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (data / "linked").symlink_to(tmp_path / "outside")
    (data / "inner.jsonl").symlink_to(data / "a.jsonl")
    (data / "half").mkdir()
    (data / "half/1.jsonl").symlink_to(tmp_path / "secret.jsonl")
    os.mkfifo(data / "pipe.jsonl")
    return data


PATHS = [
    ("../secret.jsonl", "FP074"),
    ("parts/../../secret.jsonl", "FP074"),
    ("link.jsonl", "FP074"),
    ("linked", "FP074"),
    ("half", "FP074"),
    ("..", "FP074"),
    ("missing.jsonl", "FP075"),
    ("empty", "FP075"),
    ("pipe.jsonl", "FP075"),
    ("mixed", "FP076"),
    ("mixed/notes.md", "FP076"),
]


@pytest.mark.parametrize(("name", "code"), PATHS, ids=[name for name, _ in PATHS])
def test_a_path_that_leads_out_or_to_no_data_is_refused(folder, name, code):
    with pytest.raises(BadData) as raised:
        dataset_info.resolve(folder, {"file_name": name})
    assert [(problem.code, problem.field) for problem in raised.value.problems] == [(code, "file_name")]


def test_an_entry_without_a_local_file_has_none_to_resolve(folder):
    with pytest.raises(BadData, match="FP073"):
        dataset_info.resolve(folder, {"hf_hub_url": "some/data"})


def test_good_paths_resolve_in_order_and_only_a_typed_absolute_path_leads_out(folder):
    assert dataset_info.resolve(folder, {"file_name": "a.jsonl"}) == [folder / "a.jsonl"]
    assert dataset_info.resolve(folder, {"file_name": "inner.jsonl"}) == [folder / "inner.jsonl"]
    assert dataset_info.resolve(folder, {"file_name": "parts"}) == [folder / "parts/1.json", folder / "parts/2.jsonl"]
    outside = folder.parent / "secret.jsonl"
    assert dataset_info.resolve(folder, {"file_name": str(outside)}) == [outside]


def test_a_missing_file_names_the_command_that_makes_it(folder):
    with pytest.raises(BadData, match="make it with: finepref data gsm"):
        dataset_info.resolve(folder, {"file_name": "missing.jsonl", "make": "finepref data gsm"})


@pytest.mark.parametrize("name", ["missing.jsonl", "parts", "pipe.jsonl", "/dev/zero"])
def test_checking_something_that_is_no_file_ends_with_a_problem(folder, name):
    report = check_file(folder / name, "pair")
    assert [(problem.code, problem.line) for problem in report.problems] == [("FP001", 0)]
    assert (report.rows, report.sha256) == (0, "")
