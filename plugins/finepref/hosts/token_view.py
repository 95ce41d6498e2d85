"""Records in pieces, to be looked at: as the data has them, and what all views of tokens share.

The web UI's view of tokens, `finepref tokens` and `finepref view` show what is made here and in `stage_view`. This
file needs neither a host nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from finepref.formats import records, spans
from finepref.formats.problems import Problem
from finepref.hosts.reading import Sourced
from finepref.methods.options import Options
from finepref.methods.overlong import RESPONSE_CUT
from finepref.methods.pair_rows import (
    IGNORED,
    SIDES,
    PairRow,
    scores_of,
    spans_of,
    weigh_all,
)
from finepref.methods.ranked_rows import response_field
from finepref.methods.stage import Stage

SEED = 42
"""The hosts' default; random selections depend on it."""
TOKENS, CHARACTERS = "tokens", "characters"
Piece = tuple[str, float]  # some text, and its weight in the loss
_WINDOW = 32  # tokens that are decoded together at most


class Response(NamedTuple):
    """A response in pieces.

    Attributes:
        name: its field or error type, such as "chosen".
        about: what the data says of it, such as "score 2".
        sign: 1 for a better response, of which SePO takes the tokens with the highest rewards; -1 for a worse one, of
            which it takes the lowest; 0 for one that is neither.
        unit: what a piece is, "tokens"; or "characters", where a piece is a run of them with equal values.
        texts: the text of each piece; of a character of several tokens it comes with one of them.
        values: name ("weight", "span", "reward", "kl", ...) -> the value of each piece, NaN if it has none.
    """

    name: str
    about: str
    sign: int
    unit: str
    texts: list[str]
    values: Mapping[str, list[float]] = {}

    @property
    def counts(self) -> tuple[int, int]:
        """How many pieces have a weight, and how many there are; of characters these are counted."""
        sizes = [1 if self.unit == TOKENS else len(text) for text in self.texts]
        weights = self.values.get("weight", [])
        return sum(size for size, weight in zip(sizes, weights, strict=False) if weight), sum(sizes)


class Entry(NamedTuple):
    """A record to be looked at, or a bad row.

    Attributes:
        id: of the record, "" if a bad row has none.
        place: its file and line.
        prompt: (role, text) of each turn.
        responses: its responses.
        errors: names of the error types in it.
        notes: what there is to know of it, such as why it would be skipped.
        problems: what is wrong with it.
    """

    id: str
    place: str
    prompt: Sequence[tuple[str, str]]
    responses: Sequence[Response]
    errors: Sequence[str] = ()
    notes: Sequence[str] = ()
    problems: Sequence[Problem] = ()


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; a character of several tokens comes with the last of them."""

    def text_of(start: int, end: int) -> str:
        return tokenizer.decode(ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    texts: list[str] = []
    start, whole, known = 0, 0, ""
    for end in range(1, len(ids) + 1):
        text = text_of(start, end)
        if text.endswith("\ufffd") and end < len(ids):
            texts.append("")
            continue
        texts.append(text[len(known) :])
        known = text
        if end - start >= _WINDOW:
            start, known = whole, text_of(whole, end)
        whole = end
    return texts


def by_characters(record: records.Record) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """A pair as a tokenised row without a tokenizer: the tokens are those of the scores, else single characters.

    Returns:
        A row of `methods.pair_rows`, and the text of each token by side.

    Raises:
        ValueError: the record has scores without character offsets.
    """
    contrast = isinstance(record, records.ScoredPair) and record.score_kind == "contrast"
    # As of a cut response: which token is the end token, if there is one, is not known.
    row: dict[str, Any] = {"example_id": record.id, "mapped": False, "contrast": contrast, "cut": RESPONSE_CUT}
    texts = {}
    for side, text in zip(SIDES, (record.chosen, record.rejected), strict=True):
        annotated = spans_of(record, side)
        score, places = (), [(at, at + 1) for at in range(len(text))]
        if isinstance(record, records.ScoredPair):
            score, places = scores_of(record, side)
            if not places:
                raise ValueError("the scores have no offsets; choose the model whose tokenizer they belong to")
        row[f"{side}_labels"] = [0] * len(places)
        row[f"{side}_weight"] = spans.token_weights(annotated, places) if annotated else [1.0] * len(places)
        row[f"{side}_score"] = list(score) or [math.nan] * len(places)
        row[f"{side}_annotated"], row[f"{side}_scored"] = bool(annotated), bool(score)
        texts[side] = _between(text, places)
    if getattr(record, "margin", None) is not None:
        row["margin"] = float(record.margin)
    return row, texts


def _between(text: str, places: Iterable[tuple[int, int]]) -> list[str]:
    """The text of each token, with the characters between it and the one before."""
    ends = [*accumulate((end for _, end in places), max, initial=0)]
    return [text[start:end] for start, end in pairwise(ends)]


def weighed(row: Mapping[str, Any], stage: Stage, options: Options, seed: int = SEED) -> tuple[list[float], ...]:
    """The weight of each token of a tokenised pair's chosen and rejected response, prompts included.

    Raises:
        BadData: the stage cannot train on it.
    """
    found = (stage.weigh or weigh_all)(PairRow.of(dict(row)), options, seed)
    return found.chosen, found.rejected


def pieces(labels: Sequence[int], texts: Sequence[str], weights: Sequence[float]) -> list[Piece]:
    """Text and weight of each response token, without the prompt."""
    return [each for *each, label in zip(texts, weights, labels, strict=True) if label != IGNORED]


def told_counts(responses: Iterable[tuple[str, int, int]]) -> str:
    """One line about (name, pieces with a weight, pieces) of each response."""
    return ", ".join(f"{name} {some} / {count}" for name, some, count in responses)


def turns_of(prompt: records.Prompt) -> list[tuple[str, str]]:
    """(role, text) of each turn."""
    return [(message.role, message.content) for message in prompt]


def of_data(source: Sourced, notes: Sequence[str] = (), problems: Sequence[Problem] = ()) -> Entry:
    """A record as the data has it: scores by token where it has their places, spans by character, else plain text."""
    record, notes = source.record, [*notes]
    if isinstance(record, records.Negatives):
        named = [("chosen", "", 1, record.chosen, ())]
        named += [(name, "", -1, text, record.spans.get(name, ())) for name, text in record.negatives.items()]
        if record.rejected is not None:
            named.append(("rejected", "of the source, not trained on", 0, record.rejected, ()))
    elif isinstance(record, records.Feedback):
        label = "desirable" if record.label else "undesirable"
        named = [("response", label, 1 if record.label else -1, record.response, ())]
    elif isinstance(record, records.Ranked):
        named = [
            (response_field(record, i), f"score {score:g}", 0, text, ())
            for i, (text, score) in enumerate(zip(record.responses, record.scores, strict=True))
        ]
    else:
        named = [(side, "", sign, getattr(record, side), spans_of(record, side)) for side, sign in SIGNS.items()]
        notes += _about_pair(record)
    responses = []
    for name, about, sign, text, marked in named:
        if isinstance(record, records.ScoredPair):
            responses.append(_scored(record, name, sign, text))
        else:
            responses.append(_annotated(name, about, sign, text, marked))
    return Entry(record.id, source.place, turns_of(record.prompt), responses, errors_of(record), notes, problems)


SIGNS = {"chosen": 1, "rejected": -1}


def errors_of(record: records.Record) -> tuple[str, ...]:
    """The names of the error types in a record."""
    if isinstance(record, records.Negatives):
        return tuple(record.negatives)
    return (record.error_type,) if isinstance(record, records.Feedback) and record.error_type else ()


def _about_pair(record: Any) -> list[str]:
    margin = getattr(record, "margin", None)
    notes = [] if margin is None else [f"margin {margin:g}"]
    if isinstance(record, records.ScoredPair):
        if record.template:
            notes.append(f"scored with {record.template}")
        if not record.chosen_offsets or not record.rejected_offsets:
            notes.append("the scores have no offsets: give the model whose tokenizer they belong to")
    return notes


def _scored(record: records.ScoredPair, side: str, sign: int, text: str) -> Response:
    score, places = scores_of(record, side)
    name = "contrast" if record.score_kind == "contrast" else "reward"
    if not places:
        return Response(side, f"{len(score)} scores", sign, CHARACTERS, [text])
    texts, values = _between(text, places), [*score]
    if rest := text[sum(map(len, texts)) :]:  # of a response that was cut before it was scored
        texts, values = [*texts, rest], [*values, math.nan]
    return Response(side, "", sign, TOKENS, texts, {name: values})


def _annotated(name: str, about: str, sign: int, text: str, marked: Sequence[spans.Span]) -> Response:
    if not marked:
        return Response(name, about, sign, CHARACTERS, [text])
    texts, values, before = [], [], 0
    for span in sorted(marked):
        if span.start > before:
            texts.append(text[before : span.start])
            values.append(0.0)
        texts.append(text[span.start : span.end])
        values.append(span.weight)
        before = span.end
    if before < len(text):
        texts.append(text[before:])
        values.append(0.0)
    return Response(name, about, sign, CHARACTERS, texts, {"span": values})


def of_bad_row(file: str, line: int, raw: str, problems: Sequence[Problem], value: Any = None) -> Entry:
    """A row that gives no record: the texts of it that can be shown side by side, else all of it.

    Args:
        file, line: its place.
        raw: the row as it is in the file.
        problems: what is wrong with it.
        value: the row as it was read, None if it was not.
    """
    row = value if isinstance(value, Mapping) else {}
    given = {name: row[name] for name in ("chosen", "rejected", "response") if isinstance(row.get(name), str)}
    responses = [Response(name, "", SIGNS.get(name, 0), CHARACTERS, [text]) for name, text in given.items()]
    responses.append(Response("the row", "", 0, CHARACTERS, [raw]))
    prompt = [("prompt", row["prompt"])] if isinstance(row.get("prompt"), str) else []
    name = row.get("id", "")
    place = f"{file}:{line}" if line else file
    return Entry(str(name) if isinstance(name, str | int) else "", place, prompt, responses, (), (), problems)
