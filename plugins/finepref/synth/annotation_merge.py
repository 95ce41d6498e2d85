"""Two annotators of the same pairs: how they agree, and one set of spans from both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from finepref.formats import marks as of_marks
from finepref.formats.check import SeenIds
from finepref.formats.files import write_json
from finepref.formats.jsonl import write_aside, write_jsonl
from finepref.formats.marks import KINDS, NONE, SIDES, Agreement, Marks, Run
from finepref.formats.problems import BadData, Problem
from finepref.formats.records import Prompt, Record, SpanPair, content_id
from finepref.synth.annotation import SEEN, item_of, row_of, unmarked_path
from finepref.synth.data_sources.inputs import Input, file_check, read_file

EXAMPLES = 3
"""Records of low agreement that are named."""


class Annotated(NamedTuple):
    """A record with the marks that an annotator gave it; `record` has no spans.

    `seen` is False if the marks are spans of the input, which the annotator has not looked at.
    """

    file: str
    line: int
    record: SpanPair
    marks: Mapping[str, Marks]
    seen: bool

    @property
    def texts(self) -> tuple[Prompt, str, str]:
        """What the marks are about."""
        return self.record.prompt, self.record.chosen, self.record.rejected


class Merged(NamedTuple):
    """What `merge` has found and written.

    Attributes:
        agreement: over all characters of both responses of the records that both looked at.
        by_record: id -> the agreement on this record.
        both: number of records that both looked at.
        only: number of records that only the first, and only the second, looked at; their marks are taken as they are.
        nobody: number of records with spans of the input at which neither looked.
        rows: number of span pairs that were written.
        unmarked: number of records without one.
    """

    agreement: Agreement
    by_record: Mapping[str, Agreement]
    both: int
    only: tuple[int, int]
    nobody: int
    rows: int
    unmarked: int

    def told(self, output: Path) -> list[str]:
        """Lines for the user."""
        found, table = self.agreement, self.agreement.table
        lines = [
            f"{self.both} records that both looked at, {found.characters} characters: "
            f"the same said of {found.same:.1%}, Cohen's kappa {_number(found.kappa)}",
            f"of the characters that either marked, both marked {_share(found.overlap)} alike; "
            f"{table.get(KINDS, 0) + table.get(KINDS[::-1], 0)} characters are good to one and bad to the other",
        ]
        lowest = sorted((each.same, name) for name, each in self.by_record.items() if each.same < 1)[:EXAMPLES]
        if lowest:
            lines.append("least agreement: " + ", ".join(f"{name} ({same:.1%})" for same, name in lowest))
        if any(self.only):
            lines.append(f"records that one alone looked at, taken as they are: {self.only[0]} and {self.only[1]}")
        if self.nobody:
            lines.append(f"{self.nobody} records have spans of the input, at which neither looked")
        lines.append(f"{output}: {self.rows} span pairs")
        if self.unmarked:
            lines.append(f"{unmarked_path(output)}: {self.unmarked} records without a span in the end")
        return lines


def report_path(output: Path) -> Path:
    """The file of the figures."""
    return output.with_suffix(".report.json")


def files_of(path: Path) -> list[Path]:
    """The files that an annotator's file stands for: itself, and the records without marks beside it."""
    return [each for each in (path, unmarked_path(path)) if each == path or each.is_file()]


def read_annotated(path: Path) -> dict[str, Annotated]:
    """What an annotator has looked at: id -> record with marks.

    Args:
        path: as `Annotation.write` wrote it, or any span pairs; the records without marks are read beside it.

    Raises:
        BadData: rows with a problem, or a column `marks` that cannot be (FP322, FP323, FP326).
    """
    return {each.record.id: each for each in _read(path)}


def _read(path: Path) -> Iterator[Annotated]:
    with SeenIds() as seen:
        for file in files_of(path):
            layout = "span_pair" if file == path else "pair"
            source = Input(file, layout, {}, None)
            for row in file_check(source, seen=seen).walk(read_file(source)):
                if row.problems:
                    raise BadData(row.problems)
                for record in row.records:
                    yield _annotated(str(file), row.raw.line, record, row.raw.value or {})


def _annotated(file: str, line: int, record: Record, row: Mapping[str, object]) -> Annotated:
    record, marks = item_of(file, line, record, row)[2:]
    # Without an id the record is known by its texts, not by the spans, which differ between annotators.
    name = record.id if "id" in row else content_id(record.prompt, record.chosen, record.rejected)
    plain = replace(record, id=name, chosen_spans=(), rejected_spans=())
    return Annotated(file, line, plain, marks, row.get(SEEN) is not False)


def merge(first: Path, second: Path, output: Path, *, keep: str) -> Merged:
    """Write one file of span pairs from those of two annotators, and the figures of their agreement beside it.

    The rows are in the order of the first file, then those that only the second has.

    Args:
        first, second: the files, see `read_annotated`.
        output: the file to write.
        keep: "both" or "either", see `marks.merged`.

    Raises:
        BadData: bad rows; no record is in both (FP324); a record has other texts in the other file (FP325).
    """
    one, two = read_annotated(first), read_annotated(second)
    common = [name for name in one if name in two]
    if other := [_other_text(one[name], two[name]) for name in common if one[name].texts != two[name].texts]:
        raise BadData(other)
    seen = [{name for name, each in people.items() if each.seen} for people in (one, two)]
    shared = [name for name in common if name in seen[0] & seen[1]]
    if not shared:
        text = f"none of its {len(seen[0])} annotated records is annotated in {second}, which has {len(seen[1])}"
        raise BadData([Problem(str(first), 0, "id", "FP324", text)])
    runs = {name: _runs(one[name], two[name]) for name in shared}
    by_record = {name: of_marks.agreement(run for side in SIDES for run in runs[name][side]) for name in shared}
    rows: list[dict[str, object]] = []
    unmarked: list[dict[str, object]] = []
    for name in {**one, **two}:
        each = _taken(one.get(name), two.get(name))
        marks = {side: of_marks.merged(runs[name][side], keep) for side in SIDES} if name in runs else each.marks
        row, fits = row_of(_with_side(each, two.get(name)), marks)
        (rows if fits else unmarked).append(row if each.seen else row | {SEEN: False})
    found = Merged(
        of_marks.agreement(run for each in runs.values() for side in SIDES for run in each[side]),
        by_record,
        len(shared),
        (len(seen[0]) - len(shared), len(seen[1]) - len(shared)),
        len({**one, **two}.keys() - seen[0] - seen[1]),
        len(rows),
        len(unmarked),
    )
    write_jsonl(output, rows)
    write_aside(unmarked_path(output), unmarked)
    write_json(report_path(output), _report(found, first, second, keep))
    return found


def _other_text(first: Annotated, second: Annotated) -> Problem:
    text = f"it differs from {first.file}:{first.line}"
    return Problem(second.file, second.line, "", "FP325", text, second.record.id)


def _taken(first: Annotated | None, second: Annotated | None) -> Annotated:
    """The one of two that was looked at, or else that is there; the first if that is so of both."""
    there = [each for each in (first, second) if each is not None]
    return max(there, key=lambda each: each.seen)


def _with_side(first: Annotated, second: Annotated | None) -> SpanPair:
    """The record of both; its `side` only where both have it."""
    same = second is None or second.record.side == first.record.side
    return first.record if same else replace(first.record, side=0)


def _runs(first: Annotated, second: Annotated) -> dict[str, list[Run]]:
    lengths = {side: len(getattr(first.record, side)) for side in SIDES}
    return {side: [*of_marks.runs(first.marks[side], second.marks[side], lengths[side])] for side in SIDES}


def _report(found: Merged, first: Path, second: Path, keep: str) -> dict[str, object]:
    kinds = (*KINDS, NONE)
    records = [{"id": name, **_figures(each)} for name, each in found.by_record.items()]
    records.sort(key=lambda row: (row["same"], row["id"]))
    return {
        "files": [str(first), str(second)],
        "keep": keep,
        **_figures(found.agreement),
        "table": {a: {b: found.agreement.table.get((a, b), 0) for b in kinds} for a in kinds},
        "seen_by_both": found.both,
        "seen_by_one": [*found.only],
        "seen_by_nobody": found.nobody,
        "span_pairs": found.rows,
        "unmarked": found.unmarked,
        "records": records,
    }


def _figures(found: Agreement) -> dict[str, object]:
    figures = {"same": found.same, "kappa": found.kappa, "overlap": found.overlap}
    return {"characters": found.characters} | {
        name: None if math.isnan(value) else value for name, value in figures.items()
    }


def _number(value: float) -> str:
    return "not defined (one kind only)" if math.isnan(value) else f"{value:.3f}"


def _share(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.1%}"
