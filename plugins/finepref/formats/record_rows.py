"""Records as rows of JSON, and back without checking them again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from finepref.formats.choices import lettered
from finepref.formats.record_types import (
    FIELDS,
    FORMATS,
    Choice,
    Feedback,
    Negatives,
    Pair,
    Ranked,
    Record,
    ScoredPair,
    SpanPair,
    split_tools,
)
from finepref.formats.row import TOOLS, Message, Span
from finepref.formats.tool_calls import FunctionCall


def to_row(record: Record) -> dict[str, object]:
    """The record as a canonical row for JSON; `parse` returns the same record.

    A prompt of one user turn is written as `prompt`, any other as `messages`. Default values are omitted. A response
    that calls functions is {function_call: text}.
    """
    if isinstance(record, Choice):
        row: dict[str, object] = {"id": record.id, "question": record.question, "options": lettered(record.options)}
        named = {"answer": record.answer, "subject": record.subject}
        return row | {name: text for name, text in named.items() if text}
    tools, turns = split_tools(record.prompt)
    if len(turns) == 1 and turns[0].role == "user":
        row = {"id": record.id, "prompt": turns[0].content}
    else:
        row = {"id": record.id, "messages": [turn._asdict() for turn in turns]}
    if tools:
        row["tools"] = tools
    match record:
        case Pair():
            row |= {"chosen": _reply(record.chosen), "rejected": _reply(record.rejected)}
            if record.margin is not None:
                row["margin"] = record.margin
        case SpanPair():
            row |= {"chosen": _reply(record.chosen), "rejected": _reply(record.rejected)}
            if record.chosen_spans:
                row["chosen_spans"] = _span_rows(record.chosen_spans)
            if record.rejected_spans:
                row["rejected_spans"] = _span_rows(record.rejected_spans)
            if record.side:
                row["side"] = record.side
        case ScoredPair():
            row |= {"chosen": _reply(record.chosen), "rejected": _reply(record.rejected)}
            row["tokenizer"] = record.tokenizer
            row |= {"chosen_scores": [*record.chosen_scores], "rejected_scores": [*record.rejected_scores]}
            if record.chosen_offsets:
                row["chosen_offsets"] = [[*offset] for offset in record.chosen_offsets]
            if record.rejected_offsets:
                row["rejected_offsets"] = [[*offset] for offset in record.rejected_offsets]
            if record.template:
                row["template"] = record.template
            if record.prompt_digest:
                row["prompt_digest"] = record.prompt_digest
            if record.score_kind != "log_ratio":
                row["score_kind"] = record.score_kind
        case Ranked():
            row |= {"responses": [*map(_reply, record.responses)], "scores": list(record.scores)}
            if record.kind != "human":
                row["kind"] = record.kind
        case Feedback():
            row |= {"response": _reply(record.response), "label": record.label}
            if record.error_type is not None:
                row["error_type"] = record.error_type
        case Negatives():
            row["chosen"] = _reply(record.chosen)
            row["negatives"] = {name: _reply(text) for name, text in record.negatives.items()}
            if record.spans:
                row["spans"] = {name: _span_rows(spans) for name, spans in record.spans.items()}
            if record.rejected is not None:
                row["rejected"] = _reply(record.rejected)
    return row


def revive(row: Mapping[str, object], formatting: str) -> Record:
    """The record of a row that `to_row` wrote, not checked again: `parse` has accepted it."""
    kind = FORMATS[formatting]
    values: dict[str, Any] = {name: value for name, value in row.items() if name in FIELDS[formatting]}
    if kind is Choice:
        return Choice(**values | {"options": tuple(values["options"].values())})
    if "messages" in values:
        values["prompt"] = tuple(Message(**turn) for turn in values.pop("messages"))
    else:
        values["prompt"] = (Message("user", values["prompt"]),)
    if "tools" in values:
        values["prompt"] = (Message(TOOLS, values.pop("tools")), *values["prompt"])
    for name, to_value in _REVIVED.items():
        if name in values:
            values[name] = to_value(values[name])
    return kind(**values)


def _reply(text: str) -> object:
    """A response as a row has it."""
    return {"function_call": str(text)} if type(text) is FunctionCall else text


def _revived(reply: Any) -> str:
    """The response that `_reply` wrote."""
    return FunctionCall(reply["function_call"]) if isinstance(reply, Mapping) else reply


def _spans(rows: Iterable[Mapping[str, Any]]) -> tuple[Span, ...]:
    return tuple(Span(**row) for row in rows)


# What JSON has as a list or an object is a tuple or a mapping of tuples in a record.
_REVIVED: dict[str, Callable[[Any], object]] = {
    "chosen_spans": _spans,
    "rejected_spans": _spans,
    "chosen_scores": tuple,
    "rejected_scores": tuple,
    "chosen_offsets": lambda rows: tuple(map(tuple, rows)),
    "rejected_offsets": lambda rows: tuple(map(tuple, rows)),
    "chosen": _revived,
    "rejected": _revived,
    "response": _revived,
    "responses": lambda replies: tuple(map(_revived, replies)),
    "negatives": lambda by_type: {name: _revived(reply) for name, reply in by_type.items()},
    "scores": tuple,
    "spans": lambda by_type: {name: _spans(rows) for name, rows in by_type.items()},
}


def _span_rows(spans: tuple[Span, ...]) -> list[dict[str, object]]:
    return [{"start": s.start, "end": s.end} | ({"weight": s.weight} if s.weight != 1.0 else {}) for s in spans]
