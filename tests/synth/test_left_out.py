"""The ledger of left-out rows: every row has a reason, the counts add up, and files are read as they were written."""

from __future__ import annotations

import json

import pytest
from finepref.formats.jsonl import read_jsonl
from finepref.synth.left_out import FAILED, LEFT_OUT, PROBLEMS, UNJUDGED, Ledger, LeftOut, read, read_all, unanswered


@pytest.fixture
def ledger():
    found = Ledger()
    found.add({"id": "a"}, "empty", kind="invalid")
    found.add({"id": "b"}, unanswered("HTTP 500"), kind="unjudged")
    found.add({"id": "c"}, "empty", kind="invalid")
    found.add({"id": "d"}, "engineering is not an answer", kind="invalid")
    return found


def rows_of(path):
    return [row for _, row in read_jsonl(path, problems=None)]


def test_rows_are_counted_by_reason_and_by_class_and_the_counts_add_up(ledger):
    assert ledger.counts == {"empty": 2, "engine: HTTP 500": 1, "engineering is not an answer": 1}
    assert ledger.counts_by_kind == {
        "invalid": {"empty": 2, "engineering is not an answer": 1},
        "unjudged": {"engine: HTTP 500": 1},
    }
    assert ledger.counts.total() == sum(each.total() for each in ledger.counts_by_kind.values()) == len(ledger) == 4


def test_only_failures_of_the_engine_count_as_unanswered(ledger):
    assert ledger.unanswered == 1
    ledger.add({"id": "e"}, "engine")
    assert ledger.unanswered == 2


def test_a_line_of_output_has_the_counts_in_order(ledger):
    assert str(ledger) == ("2 invalid: empty, 1 invalid: engineering is not an answer, 1 unjudged: engine: HTTP 500")
    without_classes = Ledger()
    assert str(without_classes) == "none"
    without_classes.add({}, "single")
    without_classes.add({}, "equal")
    assert str(without_classes) == "1 equal, 1 single"


@pytest.mark.parametrize(
    ("form", "name", "row"),
    [
        (LEFT_OUT, "out.left_out.jsonl", {"id": "a", "left_out": {"kind": "unjudged", "reason": "why"}}),
        (UNJUDGED, "out.unjudged.jsonl", {"id": "a", "reason_unjudged": "why"}),
        (PROBLEMS, "out.left_out.jsonl", {"id": "a"}),
        (FAILED, "out.failed.jsonl", {"id": "a"}),
    ],
)
def test_each_form_writes_its_file_and_removes_that_of_an_earlier_run(tmp_path, form, name, row):
    output, ledger = tmp_path / "out.jsonl", Ledger()
    ledger.add({"id": "a"}, "why", kind="unjudged")
    ledger.write(output, form)
    assert rows_of(tmp_path / name) == [row]
    assert [each.row for each in read(output, form)] == [{"id": "a"}]
    Ledger().write(output, form)
    assert not (tmp_path / name).exists()
    assert read(output, form) == []


@pytest.mark.parametrize("form", [LEFT_OUT, UNJUDGED])
def test_a_row_is_read_with_the_reason_and_class_it_was_written_with(tmp_path, form):
    ledger = Ledger()
    ledger.add({"id": "a", "prompt": "p"}, "why", kind="unjudged")
    ledger.write(tmp_path / "out.jsonl", form)
    assert read(tmp_path / "out.jsonl", form) == [LeftOut({"id": "a", "prompt": "p"}, "why", "unjudged")]


def test_what_a_step_a_judge_and_dedup_left_out_is_read_together(tmp_path):
    output = tmp_path / "out.jsonl"
    for row, kind, form in (({"id": "a"}, "invalid", LEFT_OUT), ({"id": "b"}, "unjudged", UNJUDGED)):
        ledger = Ledger()
        ledger.add(row, "why", kind=kind)
        ledger.write(output, form)
    groups = [{"kept": {"row": 0, "id": "k"}, "left_out": [{"row": 1, "id": "c"}, {"row": 2, "id": "d"}]}]
    output.with_suffix(".report.json").write_text(json.dumps({"job": "dedup", "groups": groups}))
    found = [(each.row["id"], each.kind, each.reason) for each in read_all(output)]
    assert found == [("a", "invalid", "why"), ("b", "unjudged", "why"), ("c", "duplicate", ""), ("d", "duplicate", "")]
    output.with_suffix(".report.json").write_text(json.dumps({"job": "reversegen pair", "groups": groups}))
    assert [each.row["id"] for each in read_all(output)] == ["a", "b"]


def test_a_report_lists_each_row_with_its_reason(ledger):
    assert ledger.rows[:2] == [{"id": "a", "reason": "empty"}, {"id": "b", "reason": "engine: HTTP 500"}]
