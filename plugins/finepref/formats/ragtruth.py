"""RAGTruth (ParticleMedia/RAGTruth): responses with marked errors in one file, their prompts in another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from finepref.formats.checked_rows import Checked
from finepref.formats.jsonl import RawRow, read_rows
from finepref.formats.layout_spans import Marks, placed, spans
from finepref.formats.problems import NOTES, Problem
from finepref.formats.records import parse
from finepref.formats.row import RowReader

SOURCES = "source_info.jsonl"
"""The file of prompts, which stands beside the file of responses."""


class _Response(NamedTuple):
    """A row of the file of responses: its texts, the marks of its errors, and what is to be told of it."""

    raw: RawRow
    id: object
    source: object
    text: str
    marks: Marks
    is_right: bool
    problems: list[Problem]
    notes: list[Problem]


def read_ragtruth(responses: str | os.PathLike[str], sources: str | os.PathLike[str]) -> Iterator[Checked]:
    """Each response with errors below one without errors to the same prompt, as a span_pair.

    The right responses of a prompt take turns. A response without a partner is noted (FP102). Right are those without
    labels whose `quality`, if there is one, is good. All responses are in memory.

    Args:
        responses: rows {id, source_id, response, labels: [{start, end, text}, ...], quality}.
        sources: rows {source_id, prompt}.

    Yields:
        Each row of `responses` with its record, if it has errors, or its problems; then problems of `sources`.
    """
    name = os.fspath(responses)
    prompts: dict[object, object] = {}
    of_sources: list[Problem] = []
    for raw in read_rows(sources):
        of_sources += raw.problems
        if raw.value is not None:
            key = raw.value.get("source_id")
            prompts[key if isinstance(key, str | int) else None] = raw.value.get("prompt")
    found = [_response(raw, name) for raw in read_rows(responses)]
    right: dict[object, list[str]] = {}
    wrong: set[object] = {each.source for each in found if not each.is_right and each.marks}
    for each in found:
        if each.is_right:
            right.setdefault(each.source, []).append(each.text)
    turn: dict[object, int] = {}
    for each in found:
        if each.problems or each.raw.value is None:
            yield Checked(each.raw, (), each.problems)
        elif each.is_right:
            alone = [] if each.source in wrong else [_alone(each, name, "with")]
            yield Checked(each.raw, (), [], [*each.notes, *alone])
        elif each.source not in prompts:
            text = f"the source is not in {os.path.basename(os.fspath(sources))}"
            yield Checked(each.raw, (), [Problem(name, each.raw.line, "source_id", "FP090", text)])
        elif not each.marks or not right.get(each.source):
            yield Checked(each.raw, (), [], [*each.notes, _alone(each, name, "without")])
        else:
            number = turn[each.source] = turn.get(each.source, -1) + 1
            partners = right[each.source]
            row = {
                "prompt": prompts[each.source],
                "chosen": partners[number % len(partners)],
                "rejected": each.text,
                "rejected_spans": spans(each.marks),
            }
            row |= {"id": each.id} if each.id is not None else {}
            record = parse(row, "span_pair", file=name, line=each.raw.line)
            problems = record if isinstance(record, list) else []
            yield Checked(each.raw, () if isinstance(record, list) else (record,), problems, each.notes)
    for problem in of_sources:
        yield Checked(RawRow(0, b"", None, [problem]), (), [problem])


def _response(raw: RawRow, name: str) -> _Response:
    """A row of the file of responses."""
    if raw.value is None:
        return _Response(raw, None, None, "", [], False, raw.problems, [])
    reader = RowReader(raw.value, columns={}, file=name, line=raw.line, nulls_absent=False)
    text, source = reader.required_text("response"), raw.value.get("source_id")
    if not isinstance(source, str | int):
        reader.missing("source_id")
        source = None
    labels = raw.value.get("labels", ())
    marks = placed(reader, text, labels, "labels")
    notes = [each for each in reader.problems if each.code in NOTES]
    problems = [each for each in reader.problems if each.code not in NOTES]
    is_right = not problems and not labels and raw.value.get("quality", "good") == "good"
    return _Response(raw, raw.value.get("id"), source, text, marks, is_right, problems, notes)


def _alone(each: _Response, name: str, which: str) -> Problem:
    text = f"the response gives no pair: its source has no good one {which} marked errors"
    if not each.is_right and not each.marks:
        text = "the response gives no pair: it has no marked error, but it is not a good one"
    return Problem(name, each.raw.line, "response", "FP102", text)
