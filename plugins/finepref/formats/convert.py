"""Convert records of one format to another.

    from \\ to  | pair          | span_pair          | ranked     | feedback         | negatives
    pair       | unchanged     | no spans, or diff  | margin, 0  | two rows         | with an error type
    span_pair  | without spans | unchanged          | 1, 0       | two rows         | with an error type
    scored_pair| without scores|                    |            |                  |
    ranked     | by scores     |                    | unchanged  |                  |
    feedback   | joined by prompt to negatives, then as negatives | interleaved     | joined by prompt
    negatives  | one per type  | the injected spans | 1, then 0s | one row per text | unchanged

Multiple-choice questions (`choice`) are only rewritten as such.

Fields that the target cannot hold are counted in `Converter.left_out`.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from itertools import chain, combinations

from finepref.formats.check import SeenIds
from finepref.formats.negatives import join_feedback
from finepref.formats.problems import BadData, Problem
from finepref.formats.records import (
    Choice,
    Feedback,
    Negatives,
    Pair,
    Prompt,
    Ranked,
    Record,
    ScoredPair,
    Span,
    SpanPair,
    content_id,
)
from finepref.formats.spans import diff_spans

Placed = tuple[str, int, Record]
"""(file, line, record)"""

TARGETS: dict[str, tuple[str, ...]] = {
    "pair": ("pair", "span_pair", "ranked", "feedback", "negatives"),
    "span_pair": ("span_pair", "pair", "ranked", "feedback", "negatives"),
    "scored_pair": ("scored_pair", "pair"),
    "ranked": ("ranked", "pair"),
    "feedback": ("feedback", "negatives", "pair", "span_pair", "ranked"),
    "negatives": ("negatives", "feedback", "pair", "span_pair", "ranked"),
    "choice": ("choice",),
}
"""Format -> the formats it converts to; itself, to rewrite a file in canonical form."""


class Converter:
    """Converts records of one format to `target`, one of the TARGETS of that format.

    Args:
        target: a format.
        types: keep only negatives of these error types.
        error_type: the type given to undesirable responses without one, when the target is `negatives`.
        diff: if a pair has no spans, mark on both sides what differs between the two responses.

    Attributes:
        left_out: field -> number of records whose field the target cannot hold.
        problems: why records could not be converted.
    """

    def __init__(
        self, target: str, *, types: Collection[str] | None = None, error_type: str | None = None, diff: bool = False
    ) -> None:
        self.target = target
        self.types = types
        self.error_type = error_type
        self.diff = diff
        self.left_out: Counter[str] = Counter()
        self.problems: list[Problem] = []

    def run(self, source: Iterable[Placed]) -> Iterator[Record]:
        """The converted records. `feedback` rows come interleaved by prompt, see `interleave`.

        Raises:
            BadData: after the last record, if there are `problems`.
        """
        source = iter(source)
        first = next(source, None)
        if first is None:
            return
        source = chain([first], source)
        origin = first[2]
        if (self.target == "negatives" and not isinstance(origin, Negatives)) or (
            isinstance(origin, Feedback) and self.target != "feedback"
        ):
            source = self._joined(source)
        converted: Iterator[Record] = (new for file, line, record in source for new in self._one(file, line, record))
        if self.target == "feedback":
            converted = interleave([row for row in converted if isinstance(row, Feedback)], self.problems)
        with SeenIds() as seen:
            for number, record in enumerate(converted, start=1):
                first_use = seen.line_of(record.id, number)
                if first_use is None:
                    yield record
                else:
                    message = f"rows {first_use} and {number} would both have the id {record.id!a}"
                    self.problems.append(Problem("the converted rows", number, "id", "FP060", message))
        if self.problems:
            raise BadData(self.problems)

    def _joined(self, source: Iterable[Placed]) -> Iterator[Placed]:
        """Join feedback rows (a pair counts as two) by prompt into negatives."""
        rows: list[tuple[str, int, Feedback]] = []
        for file, line, record in source:
            for row in self._as_feedback(record):
                if isinstance(record, Feedback) and row.id != content_id(row.prompt, row.response):
                    self.left_out["id"] += 1
                if not row.label and row.error_type is None:
                    row = replace(row, error_type=self.error_type)
                rows.append((file, line, row))
        joined, problems = join_feedback(rows)
        self.problems += problems
        return ((each.file, each.line, each.record) for each in joined)

    def _one(self, file: str, line: int, record: Record) -> list[Record]:
        if isinstance(record, Negatives):
            kept = {name: text for name, text in record.negatives.items() if self.types is None or name in self.types}
            self._leave_out(negatives=len(kept) < len(record.negatives))
            if not kept:
                message = f"has {', '.join(record.negatives)}, but not {', '.join(sorted(self.types or ()))}"
                self.problems.append(Problem(file, line, "negatives", "FP204", message))
                return []
            spans = {name: spans for name, spans in record.spans.items() if name in kept}
            record = replace(record, negatives=kept, spans=spans)
        match self.target, record:
            case ("pair", Pair()) | ("span_pair", SpanPair()) | ("ranked", Ranked()) | ("negatives", Negatives()):
                return [record]
            case ("scored_pair", ScoredPair()) | ("choice", Choice()):
                return [record]
            case "feedback", _:
                return [*self._as_feedback(record)]
            case "pair", _:
                return [*self._as_pairs(record)]
            case "span_pair", _:
                return [*self._as_span_pairs(file, line, record)]
            case "ranked", _:
                return [self._as_ranked(record)]
        raise TypeError(f"a {type(record).__name__} cannot become {self.target}")

    def _as_feedback(self, record: Record) -> Iterator[Feedback]:
        match record:
            case Feedback():
                yield record
            case Pair() | SpanPair():
                self._leave_out_of_pair(record)
                yield Feedback(_derived(record.id, "chosen"), record.prompt, record.chosen, True)
                yield Feedback(_derived(record.id, "rejected"), record.prompt, record.rejected, False, self.error_type)
            case Negatives():
                self._leave_out(spans=bool(record.spans), rejected=record.rejected is not None)
                yield Feedback(_derived(record.id, "chosen"), record.prompt, record.chosen, True)
                for name, text in record.negatives.items():
                    yield Feedback(_derived(record.id, name), record.prompt, text, False, name)
            case _:
                raise TypeError(f"a {type(record).__name__} has no labels")

    def _as_pairs(self, record: Record) -> Iterator[Pair]:
        match record:
            case SpanPair():
                self._leave_out_of_pair(record)
                yield Pair(record.id, record.prompt, record.chosen, record.rejected)
            case ScoredPair():
                self._leave_out(tokenizer=True, chosen_scores=True, rejected_scores=True)
                yield Pair(record.id, record.prompt, record.chosen, record.rejected)
            case Ranked():
                self._leave_out(kind=record.kind != "human")
                scored = sorted(range(len(record.scores)), key=lambda i: -record.scores[i])
                for i, j in combinations(scored, 2):
                    margin = record.scores[i] - record.scores[j]
                    if margin > 0:
                        new_id = _derived(record.id, f"{i}-{j}")
                        yield Pair(new_id, record.prompt, record.responses[i], record.responses[j], margin)
            case Negatives():
                self._leave_out(spans=bool(record.spans), rejected=record.rejected is not None)
                for name, text in record.negatives.items():
                    yield Pair(_derived(record.id, name), record.prompt, record.chosen, text)
            case _:
                raise TypeError(f"a {type(record).__name__} cannot become pairs")

    def _as_span_pairs(self, file: str, line: int, record: Record) -> Iterator[SpanPair]:
        match record:
            case Pair():
                self._leave_out(margin=record.margin is not None)
                yield self._span_pair(record.id, record.prompt, record.chosen, record.rejected, ())
            case Negatives():
                self._leave_out(rejected=record.rejected is not None)
                for name, text in record.negatives.items():
                    if not record.spans.get(name) and not self.diff:
                        message = "the negative has no span; mark the difference to chosen with --diff"
                        self.problems.append(Problem(file, line, f"spans.{name}", "FP047", message))
                        continue
                    spans = record.spans.get(name, ())
                    yield self._span_pair(_derived(record.id, name), record.prompt, record.chosen, text, spans)
            case _:
                raise TypeError(f"a {type(record).__name__} cannot become span pairs")

    def _span_pair(self, new_id: str, prompt: Prompt, chosen: str, rejected: str, spans: tuple[Span, ...]) -> SpanPair:
        if not self.diff:
            return SpanPair(new_id, prompt, chosen, rejected, (), spans)
        return SpanPair(
            new_id, prompt, chosen, rejected, diff_spans(rejected, chosen), spans or diff_spans(chosen, rejected)
        )

    def _as_ranked(self, record: Record) -> Ranked:
        match record:
            case Pair() | SpanPair():
                margin = 1.0
                if isinstance(record, Pair) and record.margin is not None and record.margin > 0:
                    margin = record.margin
                else:
                    self._leave_out_of_pair(record)
                return Ranked(record.id, record.prompt, (record.chosen, record.rejected), (margin, 0.0))
            case Negatives():
                self._leave_out(spans=bool(record.spans), rejected=record.rejected is not None)
                self._leave_out(error_types=True)
                responses = (record.chosen, *record.negatives.values())
                return Ranked(record.id, record.prompt, responses, (1.0, *[0.0] * len(record.negatives)))
        raise TypeError(f"a {type(record).__name__} cannot become a ranking")

    def _leave_out(self, **fields: bool) -> None:
        self.left_out.update(name for name, present in fields.items() if present)

    def _leave_out_of_pair(self, record: Pair | SpanPair) -> None:
        if isinstance(record, Pair):
            self._leave_out(margin=record.margin is not None)
        else:
            self._leave_out(
                chosen_spans=bool(record.chosen_spans),
                rejected_spans=bool(record.rejected_spans),
                side=record.side != 0,
            )


def interleave(rows: list[Feedback], problems: list[Problem]) -> Iterator[Feedback]:
    """Order rows so that no two rows of one prompt are adjacent and the labels are mixed.

    The hosts' KTO forms a mismatched pair with the neighbouring row's response; with rows in the order positive,
    negative, negative of one prompt, both would be of the same prompt. Greedy: each step takes the prompt with most
    rows left, except the previous row's prompt; ties go to the first. This finds an order whenever one exists.
    """
    queues: dict[Prompt, deque[Feedback]] = {}
    for row in rows:
        queues.setdefault(row.prompt, deque()).append(row)
    for i, queue in enumerate(queues.values()):
        queue.rotate(-i % len(queue))
    largest = max(map(len, queues.values()), default=0)
    if largest > (len(rows) + 1) // 2:
        message = f"{largest} of the {len(rows)} rows have one prompt, so two of them would be adjacent"
        problems.append(Problem("the converted rows", 0, "prompt", "FP068", message))
        return
    waiting = [(-len(queue), i, queue) for i, queue in enumerate(queues.values())]
    heapq.heapify(waiting)
    held: tuple[int, int, deque[Feedback]] | None = None
    while waiting:
        left, i, queue = heapq.heappop(waiting)
        yield queue.popleft()
        if held is not None:
            heapq.heappush(waiting, held)
        held = (left + 1, i, queue) if queue else None


def _derived(record_id: str, part: str) -> str:
    """The id of a part of a record: "id:part", or 16 hex digits of its hash if that is too long for an id."""
    derived = f"{record_id}:{part}"
    return derived if len(derived) <= 256 else hashlib.blake2b(derived.encode(), digest_size=8).hexdigest()
