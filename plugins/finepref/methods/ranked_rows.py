"""Records of the shapes "ranked" and "lists" as lists of scored responses, and the checks of such lists."""

from __future__ import annotations

from finepref.formats import records
from finepref.formats.problems import Problem
from finepref.formats.record_places import record_mark
from finepref.methods.options import RankedOptions

SHAPES = ("ranked", "lists")
"""The shapes whose records are lists of scored responses."""


def scored(record: records.Record) -> tuple[tuple[str, ...], tuple[float, ...], str]:
    """(responses, scores, kind) of a record.

    A pair counts as a human list of two responses with the scores margin and 0, or 1 and 0 if it has no margin.

    Raises:
        TypeError: a record of another format.
    """
    if isinstance(record, records.Ranked):
        return record.responses, record.scores, record.kind
    if isinstance(record, records.Pair):
        return (record.chosen, record.rejected), (1.0 if record.margin is None else record.margin, 0.0), "human"
    raise TypeError(f"a {type(record).__name__} has no scored responses")


def response_field(record: records.Record, index: int) -> str:
    """Field of a response, for messages: "responses[2]", or "chosen" and "rejected" of a pair."""
    return f"responses[{index}]" if isinstance(record, records.Ranked) else ("chosen", "rejected")[index]


def margin_problems(record: records.Record) -> list[Problem]:
    """FP220 if a pair's margin is not above 0: chosen must be better than rejected."""
    _, scores, _ = scored(record)
    if not isinstance(record, records.Pair) or scores[0] > 0:
        return []
    text = f"is {scores[0]:g}, so chosen is not above rejected"
    return [Problem(record_mark(record.id), 0, "margin", "FP220", text)]


def without_end(record_id: str, options: RankedOptions) -> Problem:
    """FP222: a response does not end with the end token, at which its reward is to be read."""
    name, _ = options.pooling
    text = f"the template does not end responses with the tokenizer's end token; use {options.key(name, 'last')}"
    return Problem(record_mark(record_id), 0, name, "FP222", text)
