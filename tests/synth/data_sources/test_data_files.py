"""The same rows in every kind of file give the same records, in `validate`, by guess and in `convert`."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys

import pyarrow
import pytest
from finepref.cli import app
from finepref.formats import layouts
from finepref.formats.check import parse_rows
from finepref.formats.jsonl import write_jsonl
from finepref.formats.problems import BadData
from finepref.synth.data_sources import files
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from typer.testing import CliRunner

Q = "Which river runs through Cologne?"
TEXTS = [
    {"prompt": Q, "chosen": "The Rhine,\nor so.", "rejected": 'The "Elbe".', "system": "Be terse."},
    {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
]
ROWS = {
    "pair": [TEXTS[0] | {"margin": 0.5}, TEXTS[1] | {"margin": 2.0}],
    "span_pair": [row | {"rejected_spans": [{"start": 0, "end": 1, "weight": 0.5}]} for row in TEXTS],
    "feedback": [
        {"id": "7", "prompt": Q, "response": "The Rhine.", "label": True},
        {"id": "8", "prompt": "2 + 2?", "response": "5", "label": False, "error_type": "sum"},
    ],
    "shp": [
        {"history": Q, "human_ref_A": "The Rhine.", "human_ref_B": "The Elbe.", "labels": 1},
        {"history": "2 + 2?", "human_ref_A": "5", "human_ref_B": "4", "labels": 0},
    ],
    "trl_explicit": [
        {
            "prompt": [{"role": "user", "content": Q}],
            "chosen": [{"role": "assistant", "content": "The Rhine."}],
            "rejected": [{"role": "assistant", "content": "The Elbe."}],
        }
    ],
}
KINDS = (
    *("json", "jsonl", "csv", "tsv", "parquet", "arrow", "stream.arrow"),
    *("jsonl.gz", "json.gz", "csv.gz", "jsonl.zst", "json.zst", "csv.zst"),
)


def table_of(rows, delimiter=","):
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(columns)
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        writer.writerow([json.dumps(cell) if isinstance(cell, list | dict) else cell for cell in cells])
    return text.getvalue().encode()


def save(path, rows):
    """Write rows as the kind of file that the name says."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(("parquet", "arrow")):
        columns = dict.fromkeys(column for row in rows for column in row)
        table = pyarrow.table({column: [row.get(column) for row in rows] for column in columns})
        if name.endswith("parquet"):
            parquet.write_table(table, path)
        else:
            new = pyarrow.ipc.new_stream if "stream" in name else pyarrow.ipc.new_file
            with new(str(path), table.schema) as writer:
                writer.write_table(table)
        return path
    if name.endswith(("csv", "tsv")):
        content = table_of(rows, "\t" if name.endswith("tsv") else ",")
    elif name.endswith("jsonl"):
        content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    else:
        content = json.dumps(rows).encode()
    if path.suffix == ".zst":
        with pyarrow.output_stream(str(path), compression="zstd") as file:
            file.write(content)
    else:
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def records(path, layout):
    parse_row = layouts.reader(layout, file=str(path), **files.reading(path))
    found = [*parse_rows(files.rows_of(path), parse_row)]
    assert [row.problems for row in found] == [[]] * len(found)
    return [record for row in found for record in row.records]


def problems(path):
    return [(problem.code, problem.line) for row in files.rows_of(path) for problem in row.problems]


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def checked(*arguments, code=0):
    return json.loads(run("validate", *arguments, "--json", code=code).stdout)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ROWS)
def test_each_kind_of_file_gives_the_records_of_json_lines(tmp_path, kind, layout):
    expected = records(save(tmp_path / "x.jsonl", ROWS[layout]), layout)
    path = save(tmp_path / f"y.{kind}", ROWS[layout])
    assert records(path, layout) == expected
    assert len(expected) == len(ROWS[layout])


@pytest.mark.parametrize("kind", KINDS)
def test_validate_recognises_checks_and_convert_reads_each_kind(tmp_path, kind):
    for layout in ("span_pair", "feedback", "trl_explicit"):
        rows = ROWS[layout]
        path, plain = save(tmp_path / f"{layout}.{kind}", rows), save(tmp_path / f"{layout}-plain.jsonl", rows)
        (report,) = checked(path)["files"]
        assert (report["layout"] or report["formatting"], report["rows"], report["problems"]) == (
            layout,
            len(rows),
            [],
        )
        assert len(report["sha256"]) == 64
        native = layouts.native_format(layout)
        run("convert", "--from", layout, "--to", native, path, tmp_path / "a.out")
        run("convert", "--from", layout, "--to", native, plain, tmp_path / "b.out")
        assert (tmp_path / "a.out").read_bytes() == (tmp_path / "b.out").read_bytes() != b""


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "arrow", "jsonl.zst"])
def test_a_folder_of_shards_is_one_data_set(tmp_path, kind):
    folder = tmp_path / "set"
    folder.mkdir()
    for number, row in enumerate(ROWS["pair"]):
        save(folder / f"data-{number}.{kind}", [row])
    for name in (".gitattributes", *(("dataset_info.json", "state.json") if kind == "arrow" else ())):
        (folder / name).write_text("{}")
    assert [(file["formatting"], file["rows"]) for file in checked(folder)["files"]] == [("pair", 1)] * 2
    run("convert", "--from", "pair", "--to", "pair", folder, tmp_path / "out.jsonl")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


def test_a_folder_of_several_kinds_or_of_none_is_refused_in_one_line(tmp_path):
    (tmp_path / "set").mkdir()
    assert "FP002" in run("validate", tmp_path / "set", code=1).output
    save(tmp_path / "set" / "x.csv", ROWS["pair"])
    save(tmp_path / "set" / "y.jsonl", ROWS["pair"])
    with pytest.raises(BadData, match=r"FP076.* x.csv and y.jsonl"):
        files.shards(tmp_path / "set")
    assert "FP076" in run("validate", tmp_path / "set", code=1).output
    out = tmp_path / "out.jsonl"
    assert "FP076" in run("convert", "--from", "pair", "--to", "pair", tmp_path / "set", out, code=1).output


# ---- tables


def test_an_empty_cell_is_an_absent_key_and_an_empty_line_no_row(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("prompt,chosen,rejected,margin\nq,a,b,\n\n,,,\nq,,b,1\n")
    rows = [*files.rows_of(path)]
    assert [row.value for row in rows] == [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "rejected": "b", "margin": "1"},
    ]
    assert [row.line for row in rows] == [2, 5]
    report = checked(path, "--format", "pair", code=1)["files"][0]
    assert [(each["code"], each["line"], each["field"]) for each in report["problems"]] == [("FP010", 5, "chosen")]


def test_numbers_and_booleans_are_read_where_the_layout_wants_them_and_stay_texts_elsewhere(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id,prompt,chosen,rejected,margin\n12,7,true,[1],0.5\n")
    (record,) = records(path, "pair")
    assert (record.id, record.prompt[0].content, record.chosen, record.rejected) == ("12", "7", "true", "[1]")
    assert record.margin == 0.5
    path.write_text("prompt,response,label\nq,a,True\nq,b,FALSE\nq,c,1\nq,d,0\n")
    assert [record.label for record in records(path, "feedback")] == [True, False, True, False]


def test_a_cell_that_holds_no_number_where_one_is_wanted_is_a_problem_with_its_line(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('prompt,chosen,rejected,margin\nq,"a\nb",c,1\nq,a,b,much\n')
    report = checked(path, code=1)["files"][0]
    (problem,) = report["problems"]
    assert (problem["code"], problem["line"], problem["field"]) == ("FP011", 4, "margin")
    assert problem["message"] == "expected a number, got a string"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"prompt,chosen,rejected\nq,a\nq,a,b,c\nq,a,b\n", [("FP083", 2), ("FP083", 3)]),
        (b"prompt,chosen,chosen\nq,a,b\n", [("FP006", 0)]),
        (b"", [("FP002", 0)]),
        (b'prompt,chosen\nq,"a\n', [("FP083", 0)]),
        (b"prompt,chosen\nq,\xff\n", [("FP003", 0)]),
        ("prompt,chosen\nq,a\n".encode("utf-16"), [("FP003", 0)]),
        (b"version https://git-lfs.github.com/spec/v1\n", [("FP097", 0)]),
        (b"PK\x03\x04", [("FP097", 0)]),
    ],
)
def test_a_torn_or_foreign_table_is_a_problem_with_a_code(tmp_path, content, expected):
    (tmp_path / "x.csv").write_bytes(content)
    assert problems(tmp_path / "x.csv") == expected


def test_a_byte_order_mark_and_crlf_change_nothing_and_json_under_the_name_of_a_table_is_json(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt,chosen\r\nq,a\r\n")
    assert [row.value for row in files.rows_of(path)] == [{"prompt": "q", "chosen": "a"}]
    path.write_bytes(b'\xef\xbb\xbf{"x": 1}\n')
    assert [row.value for row in files.rows_of(path)] == [{"x": 1}]


TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: not text.isspace())


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4))
def test_any_text_in_a_table_is_that_text(tmp_path_factory, texts):
    """Whatever is in the cells: line ends, quotes, digits, brackets, delimiters, a byte order mark."""
    rows = [
        {"prompt": prompt, "chosen": f"+{chosen}", "rejected": f"-{rejected}"} for prompt, chosen, rejected in texts
    ]
    path = tmp_path_factory.mktemp("tables") / "x.csv"
    path.write_bytes(table_of(rows))
    found = records(path, "pair")
    assert [(each.prompt[0].content, each.chosen, each.rejected) for each in found] == [
        (row["prompt"], row["chosen"], row["rejected"]) for row in rows
    ]


# ---- damaged files, missing packages


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.endswith(("parquet", "arrow", "gz", "zst"))])
def test_a_file_that_is_cut_off_is_one_problem_of_the_file(tmp_path, kind):
    path = save(tmp_path / f"x.{kind}", [row | {"id": f"{i}"} for i in range(4000) for row in ROWS["pair"][:1]])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert problems(path)[-1] == ("FP001", 0)
    (tmp_path / f"empty.{kind}").write_bytes(b"")
    assert all(line == 0 for _, line in problems(tmp_path / f"empty.{kind}"))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl.zst"])
def test_a_missing_pyarrow_is_one_line_that_names_it(tmp_path, kind, monkeypatch):
    path = save(tmp_path / f"x.{kind}", ROWS["pair"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (row,) = files.rows_of(path)
    (problem,) = row.problems
    assert (problem.code, problem.line) == ("FP110", 0)
    assert f"reading {kind.rpartition('.')[2]} needs pyarrow" in problem.message
    report = checked(path, "--format", "pair", code=1)["files"][0]
    assert [each["code"] for each in report["problems"]] == ["FP110"]


def test_a_table_needs_no_package(tmp_path, monkeypatch):
    path = save(tmp_path / "x.csv.gz", ROWS["pair"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert len(records(path, "pair")) == 2


def test_a_missing_file_is_a_problem_of_every_kind(tmp_path):
    for kind in KINDS:
        assert problems(tmp_path / f"none.{kind}") == [("FP001", 0)]


# ---- entries of dataset_info.json


def test_an_entry_may_name_a_file_of_any_kind_and_map_its_columns(tmp_path):
    for kind in ("csv", "arrow", "jsonl.zst"):
        save(tmp_path / f"x.{kind}", [{"q": Q, "good": "The Rhine.", "bad": "The Elbe."}])
        columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
        entry = {"file_name": f"x.{kind}", "ranking": True, "columns": columns}
        (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
        report = checked("mine", "--dataset-dir", tmp_path)["files"][0]
        assert (report["layout"], report["rows"], report["problems"]) == ("alpaca", 1, [])


HUB = {"ranking": True, "subset": "de", "split": "test", "columns": {"chosen": "good", "rejected": "bad"}}


def test_a_hub_entry_without_the_hub_is_one_problem(tmp_path, monkeypatch):
    import datasets

    def unreachable(*arguments, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": HUB | {"hf_hub_url": "them/set"}}))
    (problem,) = checked("mine", "--dataset-dir", tmp_path, code=1)["files"][0]["problems"]
    assert (problem["code"], problem["file"], problem["line"]) == ("FP111", "them/set", 0)
    assert "no network; download the data elsewhere and name a file_name in the entry" in problem["message"]


@pytest.mark.parametrize(("key", "package"), [("hf_hub_url", "datasets"), ("ms_hub_url", "modelscope")])
def test_a_hub_entry_without_the_hubs_package_is_one_problem(tmp_path, monkeypatch, key, package):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": HUB | {key: "them/set"}}))
    (problem,) = checked("mine", "--dataset-dir", tmp_path, code=1)["files"][0]["problems"]
    assert problem["code"] == "FP110"
    assert f"{package} is not installed: pip install {package}" in problem["message"]


def test_a_hub_entry_is_loaded_by_its_name_subset_and_split_and_its_nulls_are_absent(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        return [{"instruction": Q, "input": None, "good": "The Rhine.", "bad": "The Elbe."}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": HUB | {"hf_hub_url": "them/set"}}))
    report = checked("mine", "--dataset-dir", tmp_path)["files"][0]
    assert (report["rows"], report["problems"], report["layout"]) == (1, [], "alpaca")
    assert asked == [(("them/set", "de"), {"data_dir": None, "split": "test", "streaming": True})]


def test_a_file_name_beside_a_hub_is_read(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", ROWS["pair"])
    entry = {"formatting": "pair", "file_name": "x.jsonl", "hf_hub_url": "them/set"}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    assert checked("mine", "--dataset-dir", tmp_path)["files"][0]["rows"] == 2
