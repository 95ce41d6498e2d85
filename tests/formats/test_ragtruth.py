"""RAGTruth's two files: each response with marked errors below a right one to the same prompt."""

from __future__ import annotations

import json

import pytest
from finepref.cli import app
from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.formats.ragtruth import read_ragtruth
from typer.testing import CliRunner

Q = "Which river runs through Cologne?"


def mark(start, end, text):
    return {"start": start, "end": end, "text": text, "label_type": "Evident Conflict", "meta": ""}


def response(number, source, text, *labels, **more):
    return {"id": f"{number}", "source_id": source, "model": "m", "labels": [*labels], "response": text} | more


ELBE = mark(6, 10, "Elbe")
ROWS = [
    response(0, "a", "It is Elbe.", ELBE),
    response(1, "a", "The Rhine."),
    response(2, "a", "It is Elbe!", ELBE, mark(90, 99, "Oder")),
    response(3, "a", "Rhine."),
    response(4, "a", "I cannot say.", quality="incorrect_refusal"),
    response(5, "b", "It is Elbe?", ELBE),
    response(6, "c", "It is right."),
]
SOURCES = [{"source_id": name, "task_type": "QA", "prompt": f"{name}: {Q}"} for name in "abc"]


@pytest.fixture
def folder(tmp_path):
    write_jsonl(tmp_path / "response.jsonl", ROWS)
    write_jsonl(tmp_path / "source_info.jsonl", SOURCES)
    return tmp_path


def read(folder):
    return [*read_ragtruth(folder / "response.jsonl", folder / "source_info.jsonl")]


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_the_right_responses_of_a_prompt_take_turns_above_the_wrong_ones(folder):
    records = [record for row in read(folder) for record in row.records]
    assert [(each.id, each.chosen, each.rejected) for each in records] == [
        ("0", "The Rhine.", "It is Elbe."),
        ("2", "Rhine.", "It is Elbe!"),
    ]
    assert [each.prompt[0].content for each in records] == [f"a: {Q}"] * 2
    assert [[each.rejected[s.start : s.end] for s in each.rejected_spans] for each in records] == [["Elbe"], ["Elbe"]]


def test_responses_without_a_partner_and_marks_outside_of_the_text_are_noted(folder):
    rows = read(folder)
    assert [row.problems for row in rows] == [[]] * 7
    assert [(note.code, note.line, note.field) for row in rows for note in row.notes] == [
        ("FP100", 3, "labels[1]"),
        ("FP102", 5, "response"),
        ("FP102", 6, "response"),
        ("FP102", 7, "response"),
    ]


def test_validate_recognises_the_file_of_responses_and_convert_writes_the_pairs(folder):
    report = json.loads(run("validate", folder / "response.jsonl", "--json").stdout)["files"][0]
    assert (report["layout"], report["rows"], report["problems"]) == ("ragtruth", 7, [])
    assert sum(note["count"] for note in report["notes"]) == 4
    out = folder / "pairs.jsonl"
    run("convert", "--from", "ragtruth", "--to", "span_pair", folder / "response.jsonl", out)
    rows = [row for _, row in read_jsonl(out, problems=None)]
    assert [row["rejected_spans"] for row in rows] == [[{"start": 6, "end": 10}]] * 2
    assert run("validate", out).output.count("0 problems") == 1


def test_a_response_whose_prompt_is_not_there_is_refused(folder):
    write_jsonl(folder / "source_info.jsonl", SOURCES[1:])
    assert [(p.code, p.line) for row in read(folder) for p in row.problems] == [("FP090", n) for n in (1, 3, 5)]
    (folder / "source_info.jsonl").unlink()
    assert ("FP001", 0) in [(p.code, p.line) for row in read(folder) for p in row.problems]


def test_rows_that_are_no_responses_are_problems(folder):
    write_jsonl(folder / "response.jsonl", [response(0, "a", ""), response(1, None, "The Rhine."), {"source_id": "a"}])
    assert [(p.code, p.line, p.field) for row in read(folder) for p in row.problems] == [
        ("FP012", 1, "response"),
        ("FP010", 2, "source_id"),
        ("FP010", 3, "response"),
    ]
