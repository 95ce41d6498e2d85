"""Readers with a collector of bad rows: what is left out, counted and written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finepref.formats.bad_rows import BadRows
from finepref.formats.check import read_records
from finepref.formats.identified import read_each, read_identified
from finepref.formats.problems import BadData, Problem
from finepref.synth.seapo.inject import read_sources


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def pair(number: int, **more: object) -> dict[str, object]:
    return {"id": str(number), "prompt": "Why?", "chosen": "So.", "rejected": f"No {number}."} | more


@pytest.fixture
def source(tmp_path) -> Path:
    """Lines 2 (torn), 3 (no rejected) and 5 (id of line 1) are bad, three of six."""
    torn = '{"id": "1", "prompt": "W'
    return lines(
        tmp_path / "x.jsonl", pair(0), torn, {"id": "2", "prompt": "W", "chosen": "S"}, pair(3), pair(0), pair(5)
    )


def test_without_a_collector_every_bad_row_is_told_and_nothing_is_read(source):
    with pytest.raises(BadData) as caught:
        read_records(source, "pair")
    assert [(p.line, p.code) for p in caught.value.problems] == [(2, "FP004"), (3, "FP010"), (5, "FP060")]


def test_a_collector_that_skips_keeps_the_good_records_and_the_bad_rows(source, tmp_path):
    bad = BadRows(skip=True, max_bad=0.5)
    assert [record.id for record in read_records(source, "pair", bad_rows=bad)] == ["0", "3", "5"]
    assert (bad.read, bad.codes) == (6, {"FP004": 1, "FP010": 1, "FP060": 1})
    bad.write(tmp_path / "rejected.jsonl")
    told = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in told] == [(str(source), line) for line in (2, 3, 5)]
    assert [row["row"] for row in told] == [source.read_text().splitlines()[line - 1] for line in (2, 3, 5)]
    assert told[1]["problems"] == [{"field": "rejected", "code": "FP010", "message": "the field is missing"}]


def test_more_bad_rows_than_accepted_are_refused_with_their_number(source):
    with pytest.raises(BadData, match=r"3 of 6 rows are bad, 50\.0%; max_bad is 49%"):
        read_records(source, "pair", bad_rows=BadRows(skip=True, max_bad=0.49))


def test_a_further_check_of_a_record_makes_it_a_bad_row(source):
    bad = BadRows(skip=True, max_bad=0.9)

    def check(record, line):
        return [Problem(str(source), line, "rejected", "FP240", "no")] if record.id == "3" else []

    assert [each.id for each in read_records(source, "pair", bad_rows=bad, check=check)] == ["0", "5"]
    assert bad.codes == {"FP004": 1, "FP010": 1, "FP060": 1, "FP240": 1}


@pytest.mark.parametrize(("text", "code"), [(None, "FP001"), ("", "FP002"), ("\ufeff\n", "FP002")])
def test_a_file_that_is_bad_as_a_whole_is_refused_whatever_may_be_skipped(tmp_path, text, code):
    path = tmp_path / "x.jsonl"
    if text is not None:
        path.write_text(text)
    for read in (lambda bad: read_records(path, "pair", bad_rows=bad), lambda bad: read_sources(path, bad)):
        with pytest.raises(BadData, match=code):
            read(BadRows(skip=True, max_bad=0.99))


def test_a_file_with_one_class_of_labels_is_refused_as_before(tmp_path):
    path = lines(tmp_path / "x.jsonl", *({"prompt": f"{i}", "response": "a", "label": True} for i in range(3)))
    with pytest.raises(BadData, match="FP061"):
        read_records(path, "feedback", bad_rows=BadRows(skip=True, max_bad=0.5))


def test_rows_with_ids_of_their_own_are_left_out_in_the_same_way(source):
    bad = BadRows(skip=True, max_bad=0.5)
    assert [each.id for each in read_sources(source, bad)] == ["0", "2", "3", "5"]
    assert bad.codes == {"FP004": 1, "FP060": 1}
    assert len(read_each(source, lambda reader: dict(reader.row), bad_rows=BadRows(skip=True, max_bad=0.2))) == 5


def test_a_repeated_row_without_an_id_is_told_without_an_id(tmp_path):
    path = lines(tmp_path / "x.jsonl", *[{"prompt": "Why?", "chosen": "So."}] * 2)
    with pytest.raises(BadData) as caught:
        read_sources(path)
    (problem,) = caught.value.problems
    assert (problem.code, problem.line, problem.field) == ("FP060", 2, "")
    assert "that of line 1" in problem.message
    assert "dedup" in problem.message


def test_one_collector_counts_the_rows_of_several_files(tmp_path):
    bad = BadRows(skip=True, max_bad=0.5)
    for name in ("a", "b"):
        path = lines(tmp_path / name, {"id": name}, "{")
        assert len(read_identified(path, lambda reader: Named(reader.required_text("id")), bad_rows=bad)) == 1
    assert (bad.read, str(bad)) == (4, "2 rows rejected: 2 FP004")


class Named(str):
    """A row that is its id."""

    @property
    def id(self) -> str:
        return str(self)
