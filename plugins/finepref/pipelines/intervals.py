"""95 % intervals of shares and of their differences, and what a report may say about a change.

Wilson's score interval for a share. For the difference of two shares Newcombe's intervals that are made of Wilson's:
of two independent samples (Statistics in Medicine 17:873-890, 1998, method 10), and of the same questions asked twice
(17:2635-2650, 1998, method 10).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from finepref.synth.intervals import NOT_SHOWN, half_width, shown, wilson


class Change(NamedTuple):
    """A difference between two figures, with its 95 % interval, and the two figures."""

    old: float
    new: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0."""
        return shown(self.low, self.high) != NOT_SHOWN


def independent(old: tuple[int, int], new: tuple[int, int]) -> Change | None:
    """The change between two samples, each as (part, whole); None if one is empty."""
    if not old[1] or not new[1]:
        return None
    return _newcombe(old, new, correlation=0.0)


def paired(answers: Sequence[tuple[bool, bool]]) -> Change | None:
    """The change of a share of the same questions, each with its old and new answer; None if there is none."""
    if not answers:
        return None
    both, new_only, old_only, neither = (
        sum(each == kind for each in answers) for kind in ((True, True), (False, True), (True, False), (False, False))
    )
    product = both * neither - new_only * old_only
    if product > 0:
        product = max(product - len(answers) / 2, 0)  # Newcombe's correction for continuity
    margins = (both + new_only) * (old_only + neither) * (both + old_only) * (new_only + neither)
    correlation = product / math.sqrt(margins) if margins else 0.0
    return _newcombe((both + old_only, len(answers)), (both + new_only, len(answers)), correlation=correlation)


def paired_means(values: Sequence[tuple[float, float]]) -> Change | None:
    """The change of the mean of a figure of the same questions, each with its old and new one; None below two.

    The interval is that of the mean difference, by Student's t.
    """
    if len(values) < 2:
        return None
    old, new = (fmean(side) for side in zip(*values, strict=True))
    wide = half_width([after - before for before, after in values])
    return Change(old, new, new - old - wide, new - old + wide)


def _newcombe(old: tuple[int, int], new: tuple[int, int], *, correlation: float) -> Change:
    (first, second), ((low_1, high_1), (low_2, high_2)) = (
        [part / whole for part, whole in (old, new)],
        [wilson(*each) for each in (old, new)],
    )

    def size(up: float, down: float) -> float:
        return math.sqrt(max(0.0, up * up - 2 * correlation * up * down + down * down))

    change = second - first
    low, high = change - size(second - low_2, high_1 - first), change + size(high_2 - second, first - low_1)
    return Change(first, second, max(-1.0, low), min(1.0, high))


def over_repeats(changes: Sequence[Change]) -> Change:
    """The mean change of several repeats; its interval holds that over repeats (Student's t) and the mean of theirs.

    The first is about other seeds, the second about other instructions: a change is shown if it is for both.
    """
    old, new, low, high = (fmean(values) for values in zip(*changes, strict=True))
    if len(changes) == 1:
        return changes[0]
    wide = half_width([change.new - change.old for change in changes])
    return Change(old, new, min(low, new - old - wide), max(high, new - old + wide))


def told(between: str, figure: str, change: Change | None, unit: str = "") -> str:
    """A sentence on a change of a share, or of a figure in a unit; only what is shown rose or fell.

    Args:
        between: what is compared, such as "From before to after".
        figure: the share, such as "the failure rate".
        change: None = there is nothing to compare.
        unit: of the figure, such as "nats"; "" = it is a share.
    """
    if change is None:
        return f"{between}, {figure} cannot be compared: there is nothing to count."
    points = 100 * (change.new - change.old)
    said = f"{figure} {'rose' if points > 0 else 'fell'}" if change.shown else f"a change of {figure} is not shown"
    if unit:
        limits = f"95 % interval {change.low:+.3f} to {change.high:+.3f}"
        return f"{between}, {said}: {change.old:.3f} to {change.new:.3f} {unit} ({limits})."
    limits = f"95 % interval {100 * change.low:+.1f} to {100 * change.high:+.1f}"
    return f"{between}, {said}: {change.old:.1%} to {change.new:.1%}, {points:+.1f} points ({limits})."
