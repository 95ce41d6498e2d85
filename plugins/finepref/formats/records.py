"""`parse`: a raw row of one of our formats becomes a record. The record types and `to_row` are here by name too."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from finepref.formats import layout_table
from finepref.formats.choices import read_answer, read_options
from finepref.formats.problems import Problem
from finepref.formats.record_rows import revive, to_row
from finepref.formats.record_types import (
    COMMON_FIELDS,
    FIELDS,
    FORMATS,
    Choice,
    Feedback,
    Negatives,
    Pair,
    Prompt,
    Ranked,
    Record,
    ScoredPair,
    SpanPair,
    as_turn,
    content_id,
    split_tools,
)
from finepref.formats.row import (
    ASSISTANTS,
    MEDIA,
    PROMPT_COLUMNS,
    Message,
    RowReader,
    Span,
    is_nothing,
    is_type_name,
    kind_of,
    shown,
)
from finepref.formats.tool_calls import FunctionCall

__all__ = [
    "COMMON_FIELDS",
    "FIELDS",
    "FORMATS",
    "Choice",
    "Feedback",
    "FunctionCall",
    "Message",
    "Negatives",
    "Pair",
    "Prompt",
    "Ranked",
    "Record",
    "ScoredPair",
    "Span",
    "SpanPair",
    "as_turn",
    "content_id",
    "parse",
    "parse_with",
    "revive",
    "split_tools",
    "to_row",
]

_NEGATIVES = frozenset(FIELDS["negatives"])
_MEDIA = frozenset(MEDIA)


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
        formatting: a key of FORMATS; rows of other layouts are read with `layouts.reader`.
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
    if not _MEDIA.isdisjoint(reader.values):
        reader.refuse_media()
    record = parse_with(reader, formatting, error_type=error_type, error_types=error_types)
    return record or _of_another_format(reader, formatting) or reader.problems


def parse_with(
    reader: RowReader, formatting: str, *, error_type: str | None, error_types: Collection[str] | None
) -> Record | None:
    """The record of a row whose fields the reader has; None if the reader has noted problems."""
    match formatting:
        case "pair":
            return _pair(reader)
        case "span_pair":
            return _span_pair(reader)
        case "scored_pair":
            return _scored_pair(reader)
        case "ranked":
            return _ranked(reader)
        case "feedback":
            return _feedback(reader, error_type, error_types)
        case "choice":
            return _choice(reader)
        case _:
            return _negatives(reader, error_types)


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
    kind = reader.values.get("score_kind", "log_ratio")
    if kind != "log_ratio" and kind != "contrast":
        reader.note(reader.column("score_kind"), "FP260", f"expected log_ratio or contrast, got {shown(kind)}")
    if kind == "contrast":
        for name, scores in (("chosen_scores", chosen_scores), ("rejected_scores", rejected_scores)):
            outside = next((score for score in scores if not 0 <= score <= 1), None)
            if outside is not None:
                reader.note(reader.column(name), "FP261", f"{outside:g} is not a probability")
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
        "contrast" if kind == "contrast" else "log_ratio",
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
    responses = [reader.reply(text, f"{field}[{i}]") for i, text in enumerate(texts)]
    scores = reader.numbers(numbers, scores_field)
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
        if label in (0, 1) and (type(label) is int or (reader.nulls_absent and type(label) is float)):
            label = label == 1
        else:
            reader.note(reader.column("label"), "FP011", f"expected true or false, or 1 or 0, got {_label(label)}")
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


def _label(value: object) -> str:
    """A label that is none, for messages."""
    return shown(value) if type(value) is int else kind_of(value)


def _prompt_and_response(reader: RowReader) -> tuple[Prompt, str]:
    """Prompt and response of a row; `messages` may end in the response, as the SeaPO and KTO releases write it."""
    if "messages" not in reader.values:
        return reader.prompt(), reader.response("response")
    if "response" in reader.values:
        return reader.prompt(), reader.response("response")
    turns = reader.dialogue()
    if turns and turns[-1].role not in ASSISTANTS:
        reader.note(reader.column("messages"), "FP010", "neither a response nor messages that end in one")
    if not turns:
        return (), ""
    role, text = turns[-1]
    return turns[:-1], FunctionCall(text) if role == "function_call" else text


def _negatives(reader: RowReader, allowed: Collection[str] | None) -> Negatives | None:
    given, prompt = reader.id(), reader.prompt()
    chosen = reader.response("chosen")
    rejected = reader.response("rejected") if "rejected" in reader.values else None
    raw, places = _texts_by_type(reader)
    for name in raw:
        if not is_type_name(name) or (allowed is not None and name not in allowed):
            _check_type(reader, name, places(name), allowed)
    negatives = {name: reader.reply(raw[name], places(name)) for name in sorted(raw)}
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


def _choice(reader: RowReader) -> Choice | None:
    given, question = reader.id(), reader.required_text("question")
    subject = reader.optional_text("subject") if reader.values.get("subject") != "" else None
    for name in sorted(PROMPT_COLUMNS & reader.values.keys()):
        if not is_nothing(reader.values[name]):
            reader.note(
                reader.column(name), "FP283", f"a multiple-choice question has no {name}: put it into question"
            )
    if "options" not in reader.values:
        reader.missing("options")
        return None
    options = read_options(reader, reader.values["options"], reader.column("options"))
    answer = read_answer(reader, reader.values.get("answer"), reader.column("answer"), options)
    if reader.problems:
        return None
    found = Choice(given or "", question, options.texts, answer, subject or "")
    return found if given else replace(found, id=content_id(found.prompt))


def _two_responses(reader: RowReader) -> tuple[str, str]:
    chosen, rejected = reader.response("chosen"), reader.response("rejected")
    if chosen and chosen.strip() == rejected.strip():
        reader.note(reader.column("rejected"), "FP034", "the rejected response equals the chosen one")
    return chosen, rejected


def _spans_of(reader: RowReader, name: str, text: str) -> tuple[Span, ...]:
    if name not in reader.values or not text:
        return ()
    return reader.spans(reader.values[name], reader.column(name), length=len(text))


def _of_another_format(reader: RowReader, formatting: str) -> list[Problem]:
    """If the row looks like another layout: its problems, with that hint instead of the missing fields; else []."""
    missing = next((problem for problem in reader.problems if problem.code == "FP010"), None)
    if missing is None:
        return []
    name = layout_table.recognise(reader.row)
    if name in ("", formatting, layout_table.table()[formatting].widens):
        return []
    rest = [problem for problem in reader.problems if problem.code != "FP010"]
    return [replace(missing, code="FP015", message=f"{missing.message}; the row looks like {name}"), *rest]
