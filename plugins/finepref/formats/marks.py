"""Marks of an annotator: characters of a response that are good or bad, how they become spans, how two people agree.

A mark counts characters as a span does: code points, as in Python.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from finepref.formats.problems import BadData, Problem
from finepref.formats.row import INT64, Span, kind_of

SIDES = ("chosen", "rejected")
KINDS = ("good", "bad")
NONE = "none"
"""The kind of a character without a mark, in tables of agreement."""


class Mark(NamedTuple):
    """Characters [start, end) of a response that are "good" or "bad"; `weight` says how much, it is not below 0."""

    start: int
    end: int
    kind: str
    weight: float = 1.0


Marks = tuple[Mark, ...]
"""The marks of one response, sorted; they do not overlap, and those that touch differ in kind or weight."""
BySide = Mapping[str, Marks]
"""Side ("chosen", "rejected") -> the marks of that response."""


def marked(marks: Marks, new: Mark) -> Marks:
    """The marks with a new one, which replaces what it overlaps."""
    return _joined([*cleared(marks, new.start, new.end), new])


def cleared(marks: Marks, start: int, end: int) -> Marks:
    """The marks without those parts that are in [start, end)."""
    parts = []
    for mark in marks:
        parts += [mark._replace(end=min(mark.end, start)), mark._replace(start=max(mark.start, end))]
    return _joined(part for part in parts if part.start < part.end)


def _joined(marks: Iterable[Mark]) -> Marks:
    joined: list[Mark] = []
    for mark in sorted(marks):
        if joined and joined[-1].end == mark.start and joined[-1][2:] == mark[2:]:
            joined[-1] = joined[-1]._replace(end=mark.end)
        else:
            joined.append(mark)
    return tuple(joined)


def of_spans(spans: Iterable[Span], side: str) -> Marks:
    """The marks that mean the same as spans: good in the chosen response, bad in the rejected one.

    A span of negative weight is a mark of the other kind.
    """
    own, other = KINDS if side == "chosen" else KINDS[::-1]
    return _joined(Mark(s.start, s.end, own if s.weight >= 0 else other, abs(s.weight)) for s in spans)


def to_spans(marks: Marks, side: str, length: int) -> tuple[Span, ...] | None:
    """The spans by which a stage trains on a response as its marks say; () = all of it counts.

    A stage raises the chosen response and lowers the rejected one, so good characters of the first and bad ones of the
    second are its spans. Where all marks are of the other kind, the spans are all characters without a mark: those
    that are marked are not trained on. Beside spans such marks need nothing more.

    Args:
        marks: of the response.
        side: "chosen" or "rejected".
        length: of the response, in characters.

    Returns:
        The spans; None if nothing of the response is left to train on.
    """
    own = "good" if side == "chosen" else "bad"
    spans = tuple(Span(mark.start, mark.end, mark.weight) for mark in marks if mark.kind == own)
    if not spans and marks:
        ends = [0, *(end for mark in marks for end in (mark.start, mark.end)), length]
        spans = tuple(Span(a, b) for a, b in zip(ends[::2], ends[1::2], strict=True) if a < b)
        return spans or None
    return spans if not spans or any(span.weight for span in spans) else None


def against(marks: BySide) -> bool:
    """Whether a mark goes against its response, bad in chosen or good in rejected: spans cannot tell it."""
    return any(mark.kind != ("good" if side == "chosen" else "bad") for side in SIDES for mark in marks[side])


def to_lists(marks: BySide) -> dict[str, list[list[object]]]:
    """Marks for JSON: side -> [start, end, kind, weight] each."""
    return {side: [[*mark] for mark in marks[side]] for side in SIDES}


def of_lists(value: object, lengths: Mapping[str, int], *, file: str = "<marks>", line: int = 0) -> dict[str, Marks]:
    """The marks that `to_lists` wrote.

    Args:
        value: as it was read.
        lengths: side -> number of characters of the response.
        file, line: their place, for the problem.

    Raises:
        BadData: FP326, they are of another form; FP322 or FP323, see `mark_of`.
    """
    if not isinstance(value, Mapping) or {*value} != {*SIDES}:
        raise _bad(file, line, "marks", "FP326", f"expected marks of chosen and rejected, got {kind_of(value)}")
    found: dict[str, Marks] = {}
    for side in SIDES:
        items = value[side]
        if not isinstance(items, list) or any(not isinstance(item, list) or len(item) != 4 for item in items):
            raise _bad(file, line, f"marks.{side}", "FP326", "expected a list of [start, end, kind, weight]")
        marks = [mark_of(*item, length=lengths[side], file=file, line=line, field=f"marks.{side}") for item in items]
        if any(right.start < left.end for left, right in pairwise(sorted(marks))):
            raise _bad(file, line, f"marks.{side}", "FP322", "two marks overlap")
        found[side] = _joined(marks)
    return found


def mark_of(
    start: Any, end: Any, kind: Any, weight: Any, *, length: int, file: str = "", line: int = 0, field: str = "marks"
) -> Mark:
    """A mark from values that somebody else made.

    Args:
        start, end: in characters, inside the response.
        kind: "good" or "bad".
        weight: a number from 0 on.
        length: of the response, in characters.
        file, line, field: the place of the mark, for the problem.

    Raises:
        BadData: FP322, there is no such place in the response; FP323, the weight is none; FP326, another kind.
    """
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= length:
        text = f"[{start!s:.20}, {end!s:.20}) is no part of the {length} characters of the response"
        raise _bad(file, line, field, "FP322", text)
    if type(weight) not in (int, float) or not 0 <= weight < INT64:
        raise _bad(file, line, field, "FP323", f"expected a number from 0 on, got {weight!s:.20}")
    if kind not in KINDS:
        raise _bad(file, line, field, "FP326", f"expected good or bad, got {kind!s:.20}")
    return Mark(start, end, kind, float(weight))


def _bad(file: str, line: int, field: str, code: str, text: str) -> BadData:
    return BadData([Problem(file, line, field, code, text)])


class Run(NamedTuple):
    """Characters [start, end) to which each of two annotators gave one mark, or none."""

    start: int
    end: int
    marks: tuple[Mark | None, Mark | None]

    @property
    def kinds(self) -> tuple[str, str]:
        """What each of them says of these characters: good, bad or none."""
        first, second = (NONE if mark is None else mark.kind for mark in self.marks)
        return first, second


def runs(first: Marks, second: Marks, length: int) -> Iterator[Run]:
    """A response of `length` characters in pieces, each with the marks that two annotators gave it."""
    ends = sorted({0, length, *(end for mark in (*first, *second) for end in mark[:2])})
    for start, end in pairwise(ends):
        yield Run(start, end, (_at(first, start), _at(second, start)))


def _at(marks: Marks, place: int) -> Mark | None:
    return next((mark for mark in marks if mark.start <= place < mark.end), None)


class Agreement(NamedTuple):
    """How two annotators agree on characters.

    Attributes:
        table: (kind of the first, kind of the second) -> number of characters.
    """

    table: Mapping[tuple[str, str], int]

    @property
    def characters(self) -> int:
        """How many characters both looked at."""
        return sum(self.table.values())

    @property
    def same(self) -> float:
        """The share of characters of which both say the same, p_o; NaN without characters."""
        equal = sum(count for (a, b), count in self.table.items() if a == b)
        return equal / self.characters if self.characters else math.nan

    @property
    def kappa(self) -> float:
        """Cohen's kappa (1960), (p_o - p_e) / (1 - p_e) with p_e = sum over kinds of p(first) p(second).

        NaN if both give all characters one and the same kind, where p_e is 1 and nothing is left to chance.
        """
        if not self.characters:
            return math.nan
        firsts, seconds = Counter[str](), Counter[str]()
        for (a, b), count in self.table.items():
            firsts[a] += count
            seconds[b] += count
        # Whole numbers, so that p_e = 1 is met exactly: n^2 p_e and n^2 p_o.
        by_chance = sum(count * seconds[kind] for kind, count in firsts.items())
        equal = self.characters * sum(count for (a, b), count in self.table.items() if a == b)
        most = self.characters**2
        return math.nan if by_chance == most else (equal - by_chance) / (most - by_chance)

    @property
    def overlap(self) -> float:
        """Of the characters that either marked, how many both marked alike, as a share (Jaccard); NaN without any."""
        marks = sum(count for pair, count in self.table.items() if pair != (NONE, NONE))
        alike = sum(count for (a, b), count in self.table.items() if a == b != NONE)
        return alike / marks if marks else math.nan


def agreement(found: Iterable[Run]) -> Agreement:
    """The agreement over pieces of any number of responses."""
    table: Counter[tuple[str, str]] = Counter()
    for run in found:
        table[run.kinds] += run.end - run.start
    return Agreement(dict(table))


def merged(found: Sequence[Run], keep: str) -> Marks:
    """One set of marks from those of two annotators of a response, with the mean of weights where both agree.

    Args:
        found: the pieces of the response.
        keep: "both" keeps characters that both marked alike; "either" also those that one marked and the other did
            not. Characters that are good to one and bad to the other are never kept.
    """
    marks = []
    for run in found:
        given = [mark for mark in run.marks if mark is not None]
        alike = len({mark.kind for mark in given}) == 1
        if alike and (len(given) == 2 or keep == "either"):
            weight = sum(mark.weight for mark in given) / len(given)
            marks.append(Mark(run.start, run.end, given[0].kind, weight))
    return _joined(marks)
