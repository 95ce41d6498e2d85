"""The words and intervals of ReverseGen's report."""

from __future__ import annotations

import pytest
from finepref.pipelines.reversegen_report import change, interval


@pytest.mark.parametrize(
    ("part", "whole", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (54, 84, 0.5362, 0.7370), (0, 0, 0.0, 1.0)],
)
def test_the_interval_is_wilsons(part, whole, low, high):
    """(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.96; for 0 of 10, z^2 / (10 + z^2) = 0.2775."""
    assert interval(part, whole) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ([(54, 84), (69, 75)], "rose, and the 95 % intervals are apart: from 64.3% (54% to 74%) for the warm-up"),
        ([(54, 128), (59, 128)], "rose, but the 95 % intervals overlap: from 42.2%"),
        ([(5, 10), (5, 10)], "did not rise: from 50.0%"),
        ([(5, 10), (0, 0)], "did not rise: from 50.0%"),
    ],
)
def test_the_report_says_no_more_than_the_figures_do(counts, told):
    assert f"The failure rate of all {told}" in change("of all", counts)
