"""The six record types, named by shape, with `parse` (raw row -> record) and `to_row` (record -> row)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from finepref.formats.problems import Problem
from finepref.formats.row import Message, RowReader, Span, is_text, is_type_name, kind_of, shown

__all__ = [
    "FORMATS",
    "Feedback",
    "Message",
    "Negatives",
    "Pair",
    "Ranked",
    "Record",
    "ScoredPair",
    "Span",
    "SpanPair",
    "parse",
    "revive",
    "to_row",
]

Prompt = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """A better and a worse response to one prompt; `margin` is the difference, in the unit of its source."""

    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class SpanPair:
    """A pair with annotated character spans. A response without spans counts as a whole.

    `side` is the one-sided form of the granular fork: 1 uses only the chosen response, -1 only the rejected, 0 both.
    """

    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    chosen_spans: tuple[Span, ...] = ()
    rejected_spans: tuple[Span, ...] = ()
    side: Literal[-1, 0, 1] = 0


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A pair with a score per token, from which SePO selects any share.

    `tokenizer` is the fingerprint of the tokenizer (see `finepref.formats.scores`). There is one score per response
    token, and optionally one for the end token. The optional offsets are the characters of each scored token, by which
    scores are mapped to other tokenizers. `template` names the template that the prompt was written with, and
    `prompt_digest` is that of its tokens (see `finepref.formats.scores`); "" if the file does not tell.
    """

    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    tokenizer: str
    chosen_scores: tuple[float, ...]
    rejected_scores: tuple[float, ...]
    chosen_offsets: tuple[tuple[int, int], ...] = ()
    rejected_offsets: tuple[tuple[int, int], ...] = ()
    template: str = ""
    prompt_digest: str = ""


@dataclass(frozen=True, slots=True)
class Ranked:
    """Two or more scored responses to one prompt; scores may be negative. Kind "apo": golden answer above samples."""

    id: str
    prompt: Prompt
    responses: tuple[str, ...]
    scores: tuple[float, ...]
    kind: Literal["human", "apo"] = "human"


@dataclass(frozen=True, slots=True)
class Feedback:
    """One response and whether it is desirable; an undesirable one may name its type of error."""

    id: str
    prompt: Prompt
    response: str
    label: bool
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class Negatives:
    """A good response and, per error type, the same response with that error injected (SeaPO).

    `spans` holds, per error type, the characters of the negative that contain the error; `rejected` is the original
    rejected response of the source data.
    """

    id: str
    prompt: Prompt
    chosen: str
    negatives: Mapping[str, str]
    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    rejected: str | None = None


Record = Pair | SpanPair | ScoredPair | Ranked | Feedback | Negatives

FORMATS: dict[str, type[Record]] = {
    "pair": Pair,
    "span_pair": SpanPair,
    "scored_pair": ScoredPair,
    "ranked": Ranked,
    "feedback": Feedback,
    "negatives": Negatives,
}

COMMON_FIELDS = ("id", "prompt", "system", "messages")
"""Fields of every format: `prompt` with an optional `system`, or `messages`."""

FIELDS: dict[str, tuple[str, ...]] = {
    "pair": (*COMMON_FIELDS, "chosen", "rejected", "margin"),
    "span_pair": (*COMMON_FIELDS, "chosen", "rejected", "chosen_spans", "rejected_spans", "side"),
    "scored_pair": (
        *COMMON_FIELDS,
        "chosen",
        "rejected",
        "tokenizer",
        "chosen_scores",
        "rejected_scores",
        "chosen_offsets",
        "rejected_offsets",
        "template",
        "prompt_digest",
    ),
    "ranked": (*COMMON_FIELDS, "responses", "scores", "kind"),
    "feedback": (*COMMON_FIELDS, "response", "label", "error_type"),
    "negatives": (*COMMON_FIELDS, "chosen", "negatives", "spans", "rejected"),
}
"""The fields of each format, in the order of `to_row`."""

_NEGATIVES = frozenset(FIELDS["negatives"])

SIGNATURES: dict[str, frozenset[str]] = {
    "span_pair": frozenset({"chosen", "rejected", "chosen_spans"}),
    "scored_pair": frozenset({"chosen", "rejected", "chosen_scores"}),
    "negatives": frozenset({"chosen", "negatives"}),
    "pair": frozenset({"chosen", "rejected"}),
    "ranked": frozenset({"responses", "scores"}),
    "feedback": frozenset({"label"}),
    "granular": frozenset({"masked_region"}),
    "apo_rm": frozenset({"text", "scores"}),
    "reversegen": frozenset({"positive", "negative"}),
}
"""Fields that identify a row's format, the most specific first; used only for hints in error messages."""


def content_id(prompt: Prompt, *texts: object) -> str:
    """16 hex digits: blake2b over the canonical JSON of the prompt and the texts."""
    canonical = json.dumps([[list(turn) for turn in prompt], *texts], ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def parse(
    row: object,
    formatting: str,
    *,
    columns: Mapping[str, str] | None = None,
    file: str = "<row>",
    line: int = 0,
    nulls_absent: bool = False,
    error_type: str | None = None,
    error_types: Collection[str] | None = None,
) -> Record | list[Problem]:
    """Parse one raw row into a record, or return all its problems. Never raises for bad data.

    Args:
        row: the decoded JSON value.
        formatting: a key of FORMATS.
        columns: our field -> the column in the file; for `negatives` also error type -> the column of its text.
        file, line: the place of the row, for the problems.
        nulls_absent: the row was read through Arrow, where an absent key is null and an integer may be a float.
        error_type: the type of undesirable `feedback` rows that name none.
        error_types: the allowed error types; None allows any name.
    """
    columns = columns or {}
    if formatting not in FORMATS:
        return [Problem(file, line, "", "FP016", f"{formatting[:80]!a} is not one of {', '.join(FORMATS)}")]
    if type(row) is not dict and not isinstance(row, Mapping):
        return [Problem(file, line, "", "FP005", f"expected an object, got {kind_of(row)}")]
    reader = RowReader(row, columns=columns, file=file, line=line, nulls_absent=nulls_absent)
    record: Record | None
    match formatting:
        case "pair":
            record = _pair(reader)
        case "span_pair":
            record = _span_pair(reader)
        case "scored_pair":
            record = _scored_pair(reader)
        case "ranked":
            record = _ranked(reader)
        case "feedback":
            record = _feedback(reader, error_type, error_types)
        case _:
            record = _negatives(reader, error_types)
    return record or _of_another_format(reader, formatting) or reader.problems


def _pair(reader: RowReader) -> Pair | None:
    given, prompt = reader.id(), reader.prompt()
    chosen, rejected = _two_responses(reader)
    margin = reader.number(reader.values["margin"], reader.column("margin")) if "margin" in reader.values else None
    if reader.problems:
        return None
    return Pair(given or content_id(prompt, chosen, rejected), prompt, chosen, rejected, margin)


def _span_pair(reader: RowReader) -> SpanPair | None:
    given, prompt = reader.id(), reader.prompt()
    chosen, rejected = _two_responses(reader)
    chosen_spans = _spans_of(reader, "chosen_spans", chosen)
    rejected_spans = _spans_of(reader, "rejected_spans", rejected)
    side = reader.values.get("side", 0)
    if side not in (-1, 0, 1) or type(side) is bool:
        reader.note(reader.column("side"), "FP046", f"expected -1, 0 or 1, got {shown(side)}")
    elif side and not reader.problems:
        used, unused = (chosen_spans, rejected_spans) if side == 1 else (rejected_spans, chosen_spans)
        if unused or not used:
            name = "chosen_spans" if side == 1 else "rejected_spans"
            reader.note(reader.column("side"), "FP046", f"side {side} needs {name}, and no spans on the other side")
    if reader.problems:
        return None
    sided: Literal[-1, 0, 1] = 1 if side == 1 else -1 if side == -1 else 0
    given = given or content_id(prompt, chosen, rejected, chosen_spans, rejected_spans, sided)
    return SpanPair(given, prompt, chosen, rejected, chosen_spans, rejected_spans, sided)


def _scored_pair(reader: RowReader) -> ScoredPair | None:
    given, prompt = reader.id(), reader.prompt()
    chosen, rejected = _two_responses(reader)
    tokenizer = reader.required_text("tokenizer")
    chosen_scores, chosen_offsets = _scores_of(reader, "chosen", chosen)
    rejected_scores, rejected_offsets = _scores_of(reader, "rejected", rejected)
    template, digest = reader.optional_text("template"), reader.optional_text("prompt_digest")
    if reader.problems:
        return None
    given = given or content_id(prompt, chosen, rejected, tokenizer, chosen_scores, rejected_scores)
    return ScoredPair(
        given,
        prompt,
        chosen,
        rejected,
        tokenizer,
        chosen_scores,
        rejected_scores,
        chosen_offsets,
        rejected_offsets,
        template or "",
        digest or "",
    )


def _scores_of(reader: RowReader, side: str, text: str) -> tuple[tuple[float, ...], tuple[tuple[int, int], ...]]:
    """Token scores of one response, and their offsets if the row has them."""
    name, place = f"{side}_scores", f"{side}_offsets"
    if name not in reader.values:
        reader.missing(name)
        return (), ()
    before = len(reader.problems)
    scores = reader.numbers(reader.values[name], reader.column(name))
    offsets: tuple[tuple[int, int], ...] = ()
    if place in reader.values:
        offsets = reader.offsets(reader.values[place], reader.column(place), length=len(text))
    if len(reader.problems) == before:
        if not scores:
            reader.note(reader.column(name), "FP057", "the list is empty")
        elif place in reader.values and len(offsets) != len(scores):
            reader.note(reader.column(place), "FP055", f"{len(scores)} scores, {len(offsets)} offsets")
    return scores, offsets


def _ranked(reader: RowReader) -> Ranked | None:
    given, prompt = reader.id(), reader.prompt()
    texts, numbers = _list_of(reader, "responses"), _list_of(reader, "scores")
    field, scores_field = reader.column("responses"), reader.column("scores")
    responses, scores = reader.texts(texts, field), reader.numbers(numbers, scores_field)
    kind = reader.values.get("kind", "human")
    if kind != "human" and kind != "apo":
        reader.note(reader.column("kind"), "FP053", f"expected human or apo, got {shown(kind)}")
    if not reader.problems:
        _check_ranking(reader, responses, scores)
    if reader.problems:
        return None
    given = given or content_id(prompt, responses, scores)
    return Ranked(given, prompt, tuple(responses), tuple(scores), "apo" if kind == "apo" else "human")


def _list_of(reader: RowReader, name: str) -> Sequence[object]:
    if name not in reader.values:
        reader.missing(name)
        return ()
    return reader.items(reader.values[name], reader.column(name))


def _check_ranking(reader: RowReader, responses: list[str], scores: Sequence[float]) -> None:
    field, scores_field = reader.column("responses"), reader.column("scores")
    if len(responses) < 2:
        reader.note(field, "FP050", f"a ranking needs two responses or more, got {len(responses)}")
    elif len(responses) != len(scores):
        reader.note(scores_field, "FP051", f"{len(responses)} responses, {len(scores)} scores")
    elif len(set(scores)) == 1:
        reader.note(scores_field, "FP052", f"all scores are {scores[0]:g}: nothing is ranked")
    elif len({response.strip() for response in responses}) < len(responses):
        first: dict[str, int] = {}
        for i, response in enumerate(responses):
            j = first.setdefault(response.strip(), i)
            if scores[i] != scores[j]:
                message = f"equals {field}[{j}], which has the score {scores[j]:g}, not {scores[i]:g}"
                reader.note(f"{field}[{i}]", "FP054", message)


def _feedback(reader: RowReader, default_type: str | None, allowed: Collection[str] | None) -> Feedback | None:
    given = reader.id()
    prompt, response = _prompt_and_response(reader)
    label = reader.values.get("label")
    if "label" not in reader.values:
        reader.missing("label")
    elif type(label) is not bool:
        reader.note(reader.column("label"), "FP011", f"expected true or false, got {kind_of(label)}")
    error_type = reader.optional_text("error_type")
    if error_type and label is True:
        reader.note(reader.column("error_type"), "FP035", "a desirable response has no error")
    if error_type is None and label is False:
        error_type = default_type
    if error_type:
        _check_type(reader, error_type, reader.column("error_type"), allowed)
    if reader.problems:
        return None
    return Feedback(given or content_id(prompt, response), prompt, response, label is True, error_type)


def _prompt_and_response(reader: RowReader) -> tuple[Prompt, str]:
    """Prompt and response of a row; `messages` may end in the response, as the SeaPO and KTO releases write it."""
    if "messages" not in reader.values:
        return reader.prompt(), reader.required_text("response")
    if "response" in reader.values:
        return reader.prompt(), reader.required_text("response")
    turns = reader.dialogue()
    if turns and turns[-1].role != "assistant":
        reader.note(reader.column("messages"), "FP010", "neither a response nor messages that end in one")
    return turns[:-1], turns[-1].content if turns else ""


def _negatives(reader: RowReader, allowed: Collection[str] | None) -> Negatives | None:
    given, prompt = reader.id(), reader.prompt()
    chosen, rejected = reader.required_text("chosen"), reader.optional_text("rejected")
    raw, places = _texts_by_type(reader)
    for name in raw:
        if not is_type_name(name) or (allowed is not None and name not in allowed):
            _check_type(reader, name, places(name), allowed)
    negatives = {name: t if is_text(t := raw[name]) else reader.text(t, places(name)) for name in sorted(raw)}
    if len({chosen.strip(), *map(str.strip, negatives.values())}) <= len(negatives):
        _check_different(reader, chosen, negatives, places)
    spans: dict[str, tuple[Span, ...]] = {}
    if "spans" in reader.values:
        field = reader.column("spans")
        members = reader.mapping(reader.values["spans"], field)
        for name in sorted(members):
            if name not in negatives:
                reader.note(f"{field}.{name:.80}", "FP045", "spans for a negative that is not there")
            elif negatives[name]:
                spans[name] = reader.spans(members[name], f"{field}.{name}", length=len(negatives[name]))
    if reader.problems:
        return None
    return Negatives(given or content_id(prompt), prompt, chosen, negatives, spans, rejected)


def _texts_by_type(reader: RowReader) -> tuple[Mapping[str, object], Callable[[str], str]]:
    """The raw negatives of a row, from `negatives` or one column per type, and a function that names their fields."""
    field = reader.column("negatives")
    mapped = reader.columns.keys() - _NEGATIVES if reader.columns else ()
    by_column = {name: reader.values[name] for name in mapped if name in reader.values}
    if by_column:
        if "negatives" in reader.values:
            reader.note(field, "FP013", "a row has negatives, or one column per error type, not both")
        return by_column, reader.column
    if "negatives" not in reader.values:
        reader.missing("negatives")
        return {}, reader.column
    before = len(reader.problems)
    texts = reader.mapping(reader.values["negatives"], field)
    if not texts and len(reader.problems) == before:
        reader.note(field, "FP030", "there is no negative")
    return texts, lambda name: f"{field}.{name:.80}"


def _check_different(
    reader: RowReader, chosen: str, negatives: Mapping[str, str], places: Callable[[str], str]
) -> None:
    """Report each negative that, stripped, equals the chosen response or an earlier negative."""
    owner = {chosen.strip(): ""} if chosen else {}
    for name, text in negatives.items():
        other = owner.setdefault(text.strip(), name) if text else name
        if not other and name:
            reader.note(places(name), "FP032", "the negative equals the chosen response")
        elif other != name:
            reader.note(places(name), "FP033", f"the negative equals that of {other}")


def _check_type(reader: RowReader, name: str, field: str, allowed: Collection[str] | None) -> None:
    if not is_type_name(name):
        reader.note(field, "FP031", f"{name[:80]!a} is not the name of an error type")
    elif allowed is not None and name not in allowed:
        reader.note(field, "FP036", f"{name[:80]!a} is not one of {', '.join(sorted(allowed))}")


def _two_responses(reader: RowReader) -> tuple[str, str]:
    chosen, rejected = reader.required_text("chosen"), reader.required_text("rejected")
    if chosen and chosen.strip() == rejected.strip():
        reader.note(reader.column("rejected"), "FP034", "the rejected response equals the chosen one")
    return chosen, rejected


def _spans_of(reader: RowReader, name: str, text: str) -> tuple[Span, ...]:
    if name not in reader.values or not text:
        return ()
    return reader.spans(reader.values[name], reader.column(name), length=len(text))


def _of_another_format(reader: RowReader, formatting: str) -> list[Problem]:
    """If the row looks like another format: its problems, with that hint instead of the missing fields; else []."""
    missing = next((problem for problem in reader.problems if problem.code == "FP010"), None)
    if missing is None or SIGNATURES[formatting] <= reader.row.keys():
        return []
    for name, fields in SIGNATURES.items():
        if name != formatting and fields <= reader.row.keys():
            hint = f"the row looks like {name}" if name in FORMATS else f"convert the file with --from {name}"
            rest = [problem for problem in reader.problems if problem.code != "FP010"]
            return [replace(missing, code="FP015", message=f"{missing.message}; {hint}"), *rest]
    return []


def to_row(record: Record) -> dict[str, object]:
    """The record as a canonical row for JSON; `parse` returns the same record.

    A prompt of one user turn is written as `prompt`, any other as `messages`. Default values are omitted.
    """
    if len(record.prompt) == 1:
        row: dict[str, object] = {"id": record.id, "prompt": record.prompt[0].content}
    else:
        row = {"id": record.id, "messages": [turn._asdict() for turn in record.prompt]}
    match record:
        case Pair():
            row |= {"chosen": record.chosen, "rejected": record.rejected}
            if record.margin is not None:
                row["margin"] = record.margin
        case SpanPair():
            row |= {"chosen": record.chosen, "rejected": record.rejected}
            if record.chosen_spans:
                row["chosen_spans"] = _span_rows(record.chosen_spans)
            if record.rejected_spans:
                row["rejected_spans"] = _span_rows(record.rejected_spans)
            if record.side:
                row["side"] = record.side
        case ScoredPair():
            row |= {"chosen": record.chosen, "rejected": record.rejected, "tokenizer": record.tokenizer}
            row |= {"chosen_scores": [*record.chosen_scores], "rejected_scores": [*record.rejected_scores]}
            if record.chosen_offsets:
                row["chosen_offsets"] = [[*offset] for offset in record.chosen_offsets]
            if record.rejected_offsets:
                row["rejected_offsets"] = [[*offset] for offset in record.rejected_offsets]
            if record.template:
                row["template"] = record.template
            if record.prompt_digest:
                row["prompt_digest"] = record.prompt_digest
        case Ranked():
            row |= {"responses": list(record.responses), "scores": list(record.scores)}
            if record.kind != "human":
                row["kind"] = record.kind
        case Feedback():
            row |= {"response": record.response, "label": record.label}
            if record.error_type is not None:
                row["error_type"] = record.error_type
        case Negatives():
            row |= {"chosen": record.chosen, "negatives": dict(record.negatives)}
            if record.spans:
                row["spans"] = {name: _span_rows(spans) for name, spans in record.spans.items()}
            if record.rejected is not None:
                row["rejected"] = record.rejected
    return row


def revive(row: Mapping[str, object], formatting: str) -> Record:
    """The record of a row that `to_row` wrote, not checked again: `parse` has accepted it."""
    kind = FORMATS[formatting]
    values: dict[str, Any] = {name: value for name, value in row.items() if name in FIELDS[formatting]}
    if "messages" in values:
        values["prompt"] = tuple(Message(**turn) for turn in values.pop("messages"))
    else:
        values["prompt"] = (Message("user", values["prompt"]),)
    for name, to_value in _REVIVED.items():
        if name in values:
            values[name] = to_value(values[name])
    return kind(**values)


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
    "responses": tuple,
    "scores": tuple,
    "spans": lambda by_type: {name: _spans(rows) for name, rows in by_type.items()},
}


def _span_rows(spans: tuple[Span, ...]) -> list[dict[str, object]]:
    return [{"start": s.start, "end": s.end} | ({"weight": s.weight} if s.weight != 1.0 else {}) for s in spans]
