"""Scored lists of responses as every stage of shape "ranked" reads them: the list, and what can be wrong with it."""

from __future__ import annotations

from finepref.formats import records
from finepref.formats.problems import Problem
from finepref.formats.record_places import record_mark
from finepref.methods.options import RankedOptions


def scored(record: records.Record) -> tuple[tuple[str, ...], tuple[float, ...], str]:
    """(responses, scores, kind) of a record. A pair is a human list of two: margin and 0, or 1 and 0 without one."""
    if isinstance(record, records.Ranked):
        return record.responses, record.scores, record.kind
    if isinstance(record, records.Pair):
        return (record.chosen, record.rejected), (1.0 if record.margin is None else record.margin, 0.0), "human"
    raise TypeError(f"a {type(record).__name__} has no scored responses")


def response_field(record: records.Record, index: int) -> str:
    """The field of a record's response, for messages."""
    return f"responses[{index}]" if isinstance(record, records.Ranked) else ("chosen", "rejected")[index]


def margin_problems(record: records.Record) -> list[Problem]:
    """The margin of a pair must say that chosen is better."""
    _, scores, _ = scored(record)
    if not isinstance(record, records.Pair) or scores[0] > 0:
        return []
    text = f"is {scores[0]:g}, so chosen is not above rejected"
    return [Problem(record_mark(record.id), 0, "margin", "FP220", text)]


def length_problems(record: records.Record, index: int, length: int, *, limit: str, longest: int) -> list[Problem]:
    """A response must leave room for its prompt.

    Args:
        record: whose response it is.
        index: which response.
        length: its tokens, with what the template writes behind it.
        limit: the option that limits a sequence, as the user writes it.
        longest: that limit.
    """
    if length < longest:
        return []
    text = f"has {length} tokens, {limit} is {longest}, so nothing of the prompt would be left"
    return [Problem(record_mark(record.id), 0, response_field(record, index), "FP221", text)]


def without_end(record_id: str, options: RankedOptions) -> Problem:
    """The problem of a response that is not closed by the token at which its reward is read."""
    name, _ = options.pooling
    text = f"the template ends no response with the tokenizer's end token; use {options.key(name, 'last')}"
    return Problem(record_mark(record_id), 0, name, "FP222", text)
