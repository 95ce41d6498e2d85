"""A tokenised pair: the weight and the score that the data gives to each token, before any option is applied.

A tokenised row is a dict, as stored in a host's data set. For each side (chosen, rejected) it has lists of one length:
{side}_labels (-100 on the prompt), {side}_weight (of the spans) and {side}_score, and the flags {side}_annotated (has
spans) and {side}_scored. It also has example_id, side, mapped, other_prompt, contrast and end_token. Methods read
it as a `PairRow`.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from finepref.formats import records, scores, spans
from finepref.formats.problems import BadData, Problem
from finepref.formats.record_places import record_mark
from finepref.methods.batches import Weights
from finepref.methods.options import Options
from finepref.methods.overlong import RESPONSE_CUT

SIDES = ("chosen", "rejected")
IGNORED = -100  # the label of a token that no loss reads
CHAT_TEMPLATE = "the tokenizer's chat template"
"""How score files and messages name it; LLaMA-Factory's templates have names of their own."""

fingerprint = lru_cache(maxsize=4)(lambda tokenizer: scores.fingerprint(tokenizer.backend_tokenizer.to_str()))


class ResponseRow(NamedTuple):
    """One tokenised response with its prompt; the lists are as long as prompt and response together.

    Attributes:
        labels: -100 on the prompt.
        weight: weight of the span around each token, 0 outside spans; 1 on every response token if there are no spans.
        score: score of each token, NaN if it has none.
        annotated: whether the data has spans in this response.
        scored: whether the data has token scores for this response.
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
    """One tokenised pair.

    Attributes:
        rejected: in a batch of shape "single" it is `NO_RESPONSE`.
        mapped: whether its scores were made with another tokenizer.
        other_prompt: what is wrong if its scores were made after another prompt, else "".
        contrast: whether its scores are of the kind "contrast", see `formats.records.ScoredPair`.
        end_token: id of the tokenizer's end token, -1 if it has none.
        cut: whether the end of a response was cut off. (Not known where the host keeps the end token in any case.)
        margin: how much better the chosen response is, in the unit of the data; None if the data does not say.
    """

    record_id: str
    chosen: ResponseRow
    rejected: ResponseRow
    mapped: bool
    other_prompt: str = ""
    contrast: bool = False
    end_token: int = -1
    cut: bool = False
    margin: float | None = None

    @classmethod
    def of(cls, row: dict[str, Any]) -> PairRow:
        """Make a PairRow from a tokenised row (see the module's docstring)."""
        names = ("labels", "weight", "score", "annotated", "scored")
        chosen, rejected = (ResponseRow(*(row[f"{side}_{name}"] for name in names)) for side in SIDES)
        return cls(
            row["example_id"],
            chosen,
            rejected,
            row["mapped"],
            row.get("other_prompt", ""),
            row.get("contrast", False),
            row.get("end_token", -1),
            RESPONSE_CUT in row.get("cut", "").split(","),
            None if math.isnan(row.get("margin", math.nan)) else row["margin"],
        )

    def sides(self) -> tuple[tuple[str, ResponseRow], ...]:
        """("chosen", its response), ("rejected", its response)."""
        return tuple(zip(SIDES, (self.chosen, self.rejected), strict=True))

    @property
    def annotated(self) -> tuple[str, ...]:
        """The sides that have spans."""
        return tuple(side for side, response in self.sides() if response.annotated)

    def after_text(self, response: ResponseRow) -> list[bool]:
        """Which tokens of a response are its last end token, or what a template writes after that."""
        labels = response.labels
        if self.end_token < 0 or self.end_token not in labels:
            return [False] * len(labels)
        end = len(labels) - 1 - labels[::-1].index(self.end_token)
        return [i >= end and label != IGNORED for i, label in enumerate(labels)]

    def whole(self) -> Weights:
        """Weight 1 on every response token."""
        return Weights(self.chosen.whole(), self.rejected.whole())

    def annotated_or_whole(self) -> Weights:
        """The weights of the spans; a response without spans counts as a whole."""
        return Weights(*(r.weight if r.annotated else r.whole() for r in (self.chosen, self.rejected)))

    def problem(self, field: str, code: str, text: str) -> Problem:
        """A problem at a field of the row's record. File and line are added when it is reported."""
        return Problem(record_mark(self.record_id), 0, field, code, text)

    def require_spans(self, options: Options, masks: str) -> None:
        """Refuse a pair without spans (FP210); `masks` is the name of the option that asks for them."""
        if not self.annotated:
            asked, whole = options.key(masks, "annotated"), options.key(masks, "none")
            text = f"{asked} needs spans; {whole} trains on whole responses"
            raise BadData([self.problem("rejected_spans", "FP210", text)])

    def with_margin(self, weights: Weights, options: Options, name: str) -> Weights:
        """The weights with the pair's margin, if the option `name` asks for it.

        Raises:
            BadData: the pair has none (FP264).
        """
        if not getattr(options, name):
            return weights
        if self.margin is None:
            raise BadData([self.problem("margin", "FP264", f"{options.key(name)} reads it")])
        return weights._replace(margin=self.margin)

    def nothing_left(self, side: str, options: Options) -> Problem:
        """FP214: a response has no token to train on."""
        field = f"{side}_spans" if side in self.annotated else side
        text = f"{options.key('cutoff_len')} cuts off every selected token, or all weights are 0"
        return self.problem(field, "FP214", text)


def weigh_all(row: PairRow, options: Options, seed: int) -> Weights:
    """Default of `Stage.weigh`: the weights of the spans, or 1 on every token of a response without spans.

    Raises:
        BadData: FP214, no token of a response has a weight.
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


def weigh_by_masks(row: PairRow, options: Options, masks: str) -> Weights:
    """Weight 1 on every response token, or the weights of the spans.

    Args:
        row: the tokenised pair.
        options: of the stage.
        masks: the name of its option with the values "none" and "annotated".

    Raises:
        BadData: with "annotated", the pair has no spans (FP210), or no token in the spans is left (FP214).
    """
    if getattr(options, masks) == "none":
        return row.whole()
    row.require_spans(options, masks)
    return weigh_all(row, options, 0)


def weigh_chosen(row: PairRow, options: Options, seed: int) -> list[float]:
    """Default of `Stage.weigh` for shape "single": the same for the chosen response alone."""
    return row.chosen.weight if row.chosen.annotated else row.chosen.whole()


def offsets_in(text: str, offsets: Iterable[tuple[int, int]], *, before: int) -> list[tuple[int, int]]:
    """Convert character ranges in a longer text to ranges in `text`, which begins there after `before` characters.

    Tokens after the end of `text`, such as the end token, are dropped. Tokens before it get the empty range (0, 0).
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
    """Weight and score of each of a response's `count` tokens. Problems are appended to `problems`.

    A token's weight is that of the span around it, 0 outside spans, or 1 if the response has no spans. Its score is
    NaN if it has none. The end token, and what a template writes around the response, have no characters in the text,
    so no span selects them.

    Args:
        record, side: the response.
        count: number of its tokens, including what the template writes around the text.
        start: index of the first token of the text; negative if the text's tokens are not found in one piece.
        offsets: character range of each token of the text.
        tokenizer: the model's tokenizer.
        problems: list to which FP211, FP212 and FP213 are appended.
    """
    weight, score = [1.0] * count, [math.nan] * count
    annotated = spans_of(record, side)
    if start < 0 and selects(record, side):
        text = "the tokens of the chat template do not hold those of the response in one piece"
        problems.append(problem_of_record(record, side, "FP211", text))
    elif annotated:
        end = start + len(offsets)
        places = spans.covering(record.chosen if side == "chosen" else record.rejected, offsets)
        weight = [0.0] * start + spans.token_weights(annotated, places) + [0.0] * (count - end)
    elif isinstance(record, records.ScoredPair):
        known = _scores(record, side, offsets, tokenizer=tokenizer, problems=problems)[: count - start]
        score[start : start + len(known)] = known
    return _float32(weight), _float32(score)


def _float32(values: list[float]) -> list[float]:
    """The values as they are kept in tokenised rows, so that both hosts compare the same numbers."""
    return array("f", values).tolist()


def _scores(
    record: records.ScoredPair,
    side: str,
    offsets: list[tuple[int, int]],
    *,
    tokenizer: Any,
    problems: list[Problem],
) -> list[float]:
    """The scores of a text's tokens, and of the end token if it has one; empty if there is a problem.

    Args:
        record, side: the response.
        offsets: character range of each token of the text.
        tokenizer: the model's tokenizer.
        problems: list to which FP212 and FP213 are appended.
    """
    given, places = scores_of(record, side)
    own = fingerprint(tokenizer)
    if record.tokenizer == own:
        if len(given) - len(offsets) in (0, 1) or _of_beginning(places, offsets):
            return list(given)
        text = f"{len(given)} scores, {len(offsets)} tokens, at most one of them beyond the text"
        problems.append(problem_of_record(record, f"{side}_scores", "FP213", text))
    elif not places:
        text = f"{record.tokenizer[:80]!a}, the model's is {own!r}; mapping needs {side}_offsets, which are missing"
        problems.append(problem_of_record(record, "tokenizer", "FP212", text))
    else:
        mapped = scores.map_scores(given, places, offsets)
        return [*mapped, given[-1]] if places[-1][0] == places[-1][1] else mapped
    return []


def _of_beginning(places: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> bool:
    """Whether scores at `places` are those of a response that was cut before it was scored; the rest has none."""
    return 0 < len(places) < len(offsets) and [*places] == [*map(tuple, offsets[: len(places)])]


def facts(record: records.Record, tokenizer: Any, prompt: Sequence[int], template: str) -> dict[str, Any]:
    """The columns of a tokenised row about its whole record.

    They are id, side, mapped, other_prompt, contrast, end_token, margin (NaN if there is none), and for each response
    whether it has spans and scores.

    Args:
        record: the record.
        tokenizer: the model's tokenizer.
        prompt: token ids of the whole prompt, before anything is cut off.
        template: the name of the template that wrote it, as the user knows it.
    """
    scored = isinstance(record, records.ScoredPair)
    mapped = isinstance(record, records.ScoredPair) and record.tokenizer != fingerprint(tokenizer)
    row: dict[str, Any] = {
        "example_id": record.id,
        "side": record.side if isinstance(record, records.SpanPair) else 0,
        "mapped": mapped,
        "other_prompt": "" if mapped else other_prompt(record, prompt, template),
        "contrast": isinstance(record, records.ScoredPair) and record.score_kind == "contrast",
        "end_token": -1 if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
        "margin": math.nan if getattr(record, "margin", None) is None else float(record.margin),
    }
    for side in SIDES:
        row |= {f"{side}_annotated": bool(spans_of(record, side)), f"{side}_scored": scored}
    return row


def other_prompt(record: records.Record, prompt: Sequence[int], template: str) -> str:
    """What is wrong if the scores of a record were made after other tokens of the prompt; "" if they were not.

    A record without a digest is not compared. Scores of another tokenizer have another digest by nature.

    Args:
        record: any record; only token scores have a digest.
        prompt: token ids of the whole prompt.
        template: the name of the template that wrote it.
    """
    if not isinstance(record, records.ScoredPair) or record.prompt_digest in ("", scores.prompt_digest(prompt)):
        return ""
    theirs = record.template or "one that the file does not name"
    if theirs == template:
        return f"scored and trained with template {template!a}, but other settings of it wrote the prompt: score again"
    return f"scored with template {theirs!a}, trained with {template!a}: score again with the latter"


def spans_of(record: records.Record, side: str) -> tuple[records.Span, ...]:
    """The spans of one response; empty if the record's format has no spans."""
    if not isinstance(record, records.SpanPair):
        return ()
    return record.chosen_spans if side == "chosen" else record.rejected_spans


def scores_of(record: records.ScoredPair, side: str) -> tuple[tuple[float, ...], tuple[tuple[int, int], ...]]:
    """The token scores of one response, and each token's character range (empty if the record has none)."""
    if side == "chosen":
        return record.chosen_scores, record.chosen_offsets
    return record.rejected_scores, record.rejected_offsets


def selects(record: records.Record, side: str) -> bool:
    """Whether the record has token scores, or spans in this response."""
    return isinstance(record, records.ScoredPair) or bool(spans_of(record, side))


def problem_of_record(record: records.Record, field: str, code: str, text: str) -> Problem:
    """A problem at a field of a record. File and line are added when it is reported."""
    return Problem(record_mark(record.id), 0, field, code, text)
