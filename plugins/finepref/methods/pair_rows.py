"""A pair as tokens: what its data says of each token of its two responses, before any option is applied.

A tokenised row is a dict, as a host's data set holds it. For side in chosen, rejected it has {side}_labels (-100 on
the prompt), {side}_weight (of the spans) and {side}_score, lists of one length, and {side}_annotated (has spans) and
{side}_scored; and example_id, side, mapped. `PairRow` is the view of it that methods read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from finepref.formats import records, scores, spans
from finepref.formats.problems import BadData, Problem
from finepref.formats.record_places import record_mark
from finepref.methods.batches import Weights
from finepref.methods.options import Options

SIDES = ("chosen", "rejected")
IGNORED = -100  # the label of a token that no loss reads

fingerprint = lru_cache(maxsize=4)(lambda tokenizer: scores.fingerprint(tokenizer.backend_tokenizer.to_str()))


class ResponseRow(NamedTuple):
    """One tokenised response with its prompt; the lists are as long as prompt and response together.

    Attributes:
        labels: -100 on the prompt.
        weight: of the spans' tokens, 0 elsewhere; 1 on every response token where there is no span.
        score: NaN where there is none.
        annotated: whether the data has spans in it.
        scored: whether the data has scores of its tokens.
    """

    labels: list[int]
    weight: list[float]
    score: list[float]
    annotated: bool
    scored: bool

    def whole(self) -> list[float]:
        """Weight 1 on every response token, the end token included."""
        return [float(label != IGNORED) for label in self.labels]


NO_RESPONSE = ResponseRow([], [], [], False, False)


class PairRow(NamedTuple):
    """One tokenised pair; `mapped` says that its scores were made for another tokenizer.

    In a batch of shape "single", `rejected` is `NO_RESPONSE`.
    """

    record_id: str
    chosen: ResponseRow
    rejected: ResponseRow
    mapped: bool

    @classmethod
    def of(cls, row: dict[str, Any]) -> PairRow:
        """The view of a tokenised row."""
        names = ("labels", "weight", "score", "annotated", "scored")
        chosen, rejected = (ResponseRow(*(row[f"{side}_{name}"] for name in names)) for side in SIDES)
        return cls(row["example_id"], chosen, rejected, row["mapped"])

    def sides(self) -> tuple[tuple[str, ResponseRow], ...]:
        """("chosen", its response), ("rejected", its response)."""
        return tuple(zip(SIDES, (self.chosen, self.rejected), strict=True))

    @property
    def annotated(self) -> tuple[str, ...]:
        """The sides that have spans."""
        return tuple(side for side, response in self.sides() if response.annotated)

    def whole(self) -> Weights:
        """Weight 1 on every response token."""
        return Weights(self.chosen.whole(), self.rejected.whole())

    def annotated_or_whole(self) -> Weights:
        """The weights of the spans; a response without spans counts as a whole."""
        return Weights(*(r.weight if r.annotated else r.whole() for r in (self.chosen, self.rejected)))

    def problem(self, field: str, code: str, text: str) -> Problem:
        """A problem of the row's record."""
        return Problem(record_mark(self.record_id), 0, field, code, text)

    def nothing_left(self, side: str, options: Options) -> Problem:
        """The problem of a response that has no token to train on."""
        field = f"{side}_spans" if side in self.annotated else side
        text = f"{options.key('cutoff_len')} cuts off every selected token, or all weights are 0"
        return self.problem(field, "FP214", text)


def weigh_all(row: PairRow, options: Options, seed: int) -> Weights:
    """`Stage.weigh` of a stage that names none: spans where the data has them, else every response token.

    Raises:
        BadData: nothing is left of a response.
    """
    weights = row.annotated_or_whole()
    problems = [
        row.nothing_left(side, options)
        for side, weight in zip(SIDES, (weights.chosen, weights.rejected), strict=True)
        if not any(weight)
    ]
    if problems:
        raise BadData(problems)
    return weights


def weigh_chosen(row: PairRow, options: Options, seed: int) -> list[float]:
    """The same for shape "single", where there is but one response."""
    return row.chosen.weight if row.chosen.annotated else row.chosen.whole()


def offsets_in(text: str, offsets: Iterable[tuple[int, int]], *, before: int) -> list[tuple[int, int]]:
    """The characters of a text that each token of a longer one has, which holds it after `before` characters.

    Tokens after the text's last, such as the end token, are left out; those before it have none, (0, 0).
    """
    found = [(min(max(a - before, 0), len(text)), min(max(b - before, 0), len(text))) for a, b in offsets]
    while found and found[-1][0] == found[-1][1]:
        found.pop()
    return found


def weights_and_scores(
    record: records.Record,
    side: str,
    count: int,
    start: int,
    offsets: list[tuple[int, int]],
    *,
    tokenizer: Any,
    problems: list[Problem],
) -> tuple[list[float], list[float]]:
    """Weight and score of each of a response's `count` tokens; what is wrong goes to `problems`.

    Weights are those of the spans' tokens (0 elsewhere), or 1 on every token where there is no span; scores are NaN
    where there is none. The end token, and what a template puts around the response, has no characters, so no span
    selects it.

    Args:
        record, side: the response.
        count: its tokens, with what the template puts around the text.
        start: where in the response's tokens those of its text begin; negative where they are in no one piece.
        offsets: the characters of each token of the text.
        tokenizer: the model's.
        problems: what is wrong goes here.
    """
    weight, score = [1.0] * count, [math.nan] * count
    annotated = spans_of(record, side)
    if start < 0 and selects(record, side):
        text = "the tokens of the chat template do not hold those of the response in one piece"
        problems.append(problem_of_record(record, side, "FP211", text))
    elif annotated:
        end = start + len(offsets)
        weight = [0.0] * start + spans.token_weights(annotated, offsets) + [0.0] * (count - end)
    elif isinstance(record, records.ScoredPair):
        known = _scores(record, side, offsets, tokenizer=tokenizer, problems=problems)[: count - start]
        score[start : start + len(known)] = known
    return weight, score


def _scores(
    record: records.ScoredPair,
    side: str,
    offsets: list[tuple[int, int]],
    *,
    tokenizer: Any,
    problems: list[Problem],
) -> list[float]:
    """The scores of a response's tokens; one more where the end token has a score.

    Args:
        record, side: whose scores.
        offsets: the characters of each token of the text.
        tokenizer: the model's.
        problems: what is wrong goes here.
    """
    given, places = scores_of(record, side)
    own = fingerprint(tokenizer)
    if record.tokenizer == own:
        if len(given) - len(offsets) in (0, 1):
            return list(given)
        text = f"{len(given)} scores, {len(offsets)} tokens, at most one of them beyond the text"
        problems.append(problem_of_record(record, f"{side}_scores", "FP213", text))
    elif not places:
        text = f"{record.tokenizer[:80]!a}, the model's is {own!r}; mapping needs {side}_offsets, which it lacks"
        problems.append(problem_of_record(record, "tokenizer", "FP212", text))
    else:
        mapped = scores.map_scores(given, places, offsets)
        return [*mapped, given[-1]] if places[-1][0] == places[-1][1] else mapped
    return []


def facts(record: records.Record, tokenizer: Any) -> dict[str, Any]:
    """What a row says of its record as a whole."""
    scored = isinstance(record, records.ScoredPair)
    row = {
        "example_id": record.id,
        "side": record.side if isinstance(record, records.SpanPair) else 0,
        "mapped": isinstance(record, records.ScoredPair) and record.tokenizer != fingerprint(tokenizer),
    }
    for side in SIDES:
        row |= {f"{side}_annotated": bool(spans_of(record, side)), f"{side}_scored": scored}
    return row


def spans_of(record: records.Record, side: str) -> tuple[records.Span, ...]:
    """The spans of one response; none where the record's format has none."""
    if not isinstance(record, records.SpanPair):
        return ()
    return record.chosen_spans if side == "chosen" else record.rejected_spans


def scores_of(record: records.ScoredPair, side: str) -> tuple[tuple[float, ...], tuple[tuple[int, int], ...]]:
    """The token scores of one response, and the characters of each token where the record has them."""
    if side == "chosen":
        return record.chosen_scores, record.chosen_offsets
    return record.rejected_scores, record.rejected_offsets


def selects(record: records.Record, side: str) -> bool:
    """Whether the record has anything that tells this response's tokens apart."""
    return isinstance(record, records.ScoredPair) or bool(spans_of(record, side))


def problem_of_record(record: records.Record, field: str, code: str, text: str) -> Problem:
    """A problem of a record."""
    return Problem(record_mark(record.id), 0, field, code, text)
