"""An entry that is added to a dataset_info.json: all else in the file stays as its owner wrote it."""

import json
import subprocess
import sys

import pytest
from finepref.formats import dataset_info
from finepref.formats.problems import BadData

ENTRY = {"file_name": "finepref/new.jsonl", "formatting": "scored_pair"}
ADD = """
import sys
from finepref.formats import dataset_info
for number in range(20):
    name = f"{sys.argv[2]}-{number}"
    dataset_info.add(sys.argv[1], name, {"file_name": name, "formatting": "pair"})
"""


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        ('{"own":{"file_name" : "a.json"} }\n\n', '{"own":{"file_name" : "a.json"}'),
        (
            '{\n\t"själv": {"file_name": "ü.json", "columns": {}}\n}',
            '{\n\t"själv": {"file_name": "ü.json", "columns": {}}',
        ),
    ],
)
def test_the_text_before_the_new_entry_is_kept_to_the_letter(tmp_path, before, kept):
    table = tmp_path / "dataset_info.json"
    table.write_text(before, encoding="utf-8")
    dataset_info.add(tmp_path, "new", ENTRY)
    text = table.read_text(encoding="utf-8")
    assert text.startswith(f"{kept},\n")
    assert json.loads(text) == json.loads(before) | {"new": ENTRY}
    dataset_info.add(tmp_path, "new", ENTRY)
    assert table.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("before", [None, "{}", " {\n} \n"])
def test_an_empty_table_or_none_gets_its_first_entry(tmp_path, before):
    if before is not None:
        (tmp_path / "dataset_info.json").write_text(before)
    dataset_info.add(tmp_path, "new", ENTRY)
    assert dataset_info.load(tmp_path) == {"new": ENTRY}


@pytest.mark.parametrize(
    ("before", "code"),
    [('{"new": {"file_name": "a.jsonl"}}', "FP006"), ('{"a": {}', "FP004"), ("[]", "FP005"), ('{"new": 1}', "FP006")],
)
def test_a_table_that_has_the_name_or_is_broken_is_left_alone(tmp_path, before, code):
    table = tmp_path / "dataset_info.json"
    table.write_text(before)
    with pytest.raises(BadData) as caught:
        dataset_info.add(tmp_path, "new", ENTRY)
    assert [problem.code for problem in caught.value.problems] == [code]
    assert table.read_text() == before


def test_a_link_to_a_table_stays_a_link(tmp_path):
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "dataset_info.json").symlink_to("real.json")
    dataset_info.add(tmp_path, "new", ENTRY)
    assert (tmp_path / "dataset_info.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text()) == {"new": ENTRY}


def test_two_processes_that_add_at_once_lose_no_entry(tmp_path):
    started = [subprocess.Popen([sys.executable, "-c", ADD, str(tmp_path), name]) for name in ("a", "b")]
    assert [process.wait() for process in started] == [0, 0]
    assert len(dataset_info.load(tmp_path)) == 40
