"""Intervals of shares and of their changes, and what a report says about a change."""

from __future__ import annotations

import math
from itertools import product

import pytest
from finepref.pipelines.intervals import Change, independent, over_repeats, paired, paired_means, told
from finepref.synth.intervals import wilson


@pytest.mark.parametrize(
    ("part", "whole", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (54, 84, 0.5362, 0.7370), (0, 0, 0.0, 1.0)],
)
def test_the_interval_is_wilsons(part, whole, low, high):
    """(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.96; for 0 of 10, z^2 / (10 + z^2) = 0.2775."""
    assert wilson(part, whole) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "low", "high"),
    [((48, 80), (56, 70), 0.0524, 0.3339), ((3, 10), (9, 10), 0.1705, 0.8090), ((0, 10), (10, 10), 0.6075, 1.0)],
)
def test_the_interval_of_a_change_of_independent_shares_is_newcombes(old, new, low, high):
    """The examples (a), (b) and (h) of the paper's table II, method 10."""
    found = independent(old, new)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_the_interval_of_paired_answers_holds_the_change_as_often_as_it_says():
    """Every table of 16 questions, by its probability: it has to hold in 95 % of all cases, or nearly so."""
    n = 16
    for shares in ((0.4, 0.3, 0.1, 0.2), (0.25, 0.25, 0.25, 0.25), (0.1, 0.6, 0.05, 0.25)):
        _, new_only, old_only, _ = shares
        held = 0.0
        for counts in product(range(n + 1), repeat=3):
            if (left := n - sum(counts)) < 0:
                continue
            whole = (*counts, left)
            chance = math.factorial(n) * math.prod(
                p**k / math.factorial(k) for p, k in zip(shares, whole, strict=True)
            )
            kinds = ((True, True), (False, True), (True, False), (False, False))
            found = paired([kind for kind, count in zip(kinds, whole, strict=True) for _ in range(count)])
            held += chance * (found.low <= new_only - old_only <= found.high)
        assert 0.93 < held < 0.995, shares


def test_equal_questions_narrow_the_interval_and_a_single_one_shows_nothing():
    right = [(True, True)] * 40 + [(False, False)] * 40 + [(False, True)] * 8
    found = paired(right)
    apart = independent((40, 88), (48, 88))
    assert found.shown
    assert not apart.shown
    assert found.low > apart.low
    assert not paired([(False, True)]).shown
    assert (paired([]), independent((0, 0), (1, 2))) == (None, None)


def test_over_repeats_a_change_is_shown_only_if_the_repeats_and_the_instructions_show_it():
    """Students t of 3: 4.303 sd / sqrt(3). 0.1, 0.2 and 0.3 have sd 0.1, and so 0.2 -+ 0.2484."""
    steady = [Change(0.2, 0.4, 0.1, 0.3)] * 3
    assert over_repeats(steady) == pytest.approx((0.2, 0.4, 0.1, 0.3))
    spread = [Change(0.2, 0.2 + each, each - 0.05, each + 0.05) for each in (0.1, 0.2, 0.3)]
    assert over_repeats(spread) == pytest.approx((0.2, 0.4, -0.0484, 0.4484), abs=1e-4)
    assert over_repeats(steady[:1]) is steady[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            independent((54, 84), (59, 63)),
            "From A to B, X rose: 64.3% to 93.7%, +29.4 points (95 % interval +16.4 to +40.7).",
        ),
        (
            independent((59, 63), (54, 84)),
            "From A to B, X fell: 93.7% to 64.3%, -29.4 points (95 % interval -40.7 to -16.4).",
        ),
        (independent((54, 128), (59, 128)), "From A to B, a change of X is not shown: 42.2% to 46.1%, +3.9 points"),
        (independent((5, 10), (5, 10)), "From A to B, a change of X is not shown: 50.0% to 50.0%, +0.0 points"),
        (None, "From A to B, X cannot be compared: there is nothing to count."),
    ],
)
def test_only_what_the_interval_shows_rose_or_fell(change, words):
    """Wilson: 0.536 to 0.737 and 0.848 to 0.975; 0.294 - sqrt(0.089^2 + 0.094^2) = 0.164."""
    said = told("From A to B", "X", change)
    assert said.startswith(words)
    assert ("rose" in said or "fell" in said) == (change is not None and change.shown)


def test_the_change_of_a_mean_is_that_of_the_same_questions_and_is_told_in_its_unit():
    """Differences -1, -2, -3: mean -2, standard deviation 1, t(2) = 4.303: -2 +- 4.303 / sqrt(3) = -4.484 to 0.484."""
    found = paired_means([(3.0, 2.0), (3.0, 1.0), (3.0, 0.0)])
    assert found == pytest.approx((3.0, 1.0, -4.48433, 0.48433), abs=1e-5)
    assert told("From a to b", "the entropy", found, "nats") == (
        "From a to b, a change of the entropy is not shown: 3.000 to 1.000 nats (95 % interval -4.484 to +0.484)."
    )
    many = paired_means([(1.0, 0.5), (1.0, 0.4)] * 8)
    assert many.high == pytest.approx(-0.55 + 2.131 * 0.0516398 / 4, abs=1e-5)
    assert many.shown
    assert paired_means([(1.0, 2.0)]) is None
