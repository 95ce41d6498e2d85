"""Figures of our own tasks by hand."""

from __future__ import annotations

import pytest
from finepref.evals.detection import auroc
from finepref.evals.local_tasks import SECTIONS, metric, rewardbench


def test_auroc_counts_pairs_and_half_of_each_tie():
    """.4 is above .1 and .3, .3 above .1 and equal to .3, .0 above none: 3.5 of 6."""
    assert auroc([0.1, 0.3], [0.4, 0.3, 0.0]) == pytest.approx(3.5 / 6)


def test_a_metric_is_a_mean_with_its_standard_error():
    found = metric([1.0, 0.0, 1.0, 1.0])
    assert found["value"] == 0.75
    assert found["stderr"] == pytest.approx((0.75 * 0.25 / 3) ** 0.5)
    assert metric([1.0])["stderr"] is None


def test_a_section_of_rewardbench_is_a_mean_over_pairs_and_reasoning_one_over_maths_and_code():
    by = {each: {"n": 10, "accuracy": 0.5} for subsets in SECTIONS.values() for each in subsets}
    by["alpacaeval-easy"] = {"n": 60, "accuracy": 1.0}
    by["math-prm"] = {"n": 447, "accuracy": 0.9}
    by["hep-cpp"] = {"n": 70, "accuracy": 0.0}
    found = rewardbench(by)
    assert found["Chat"] == pytest.approx(100 * (60 + 20) / 100)
    assert found["Chat Hard"] == found["Safety"] == pytest.approx(50)
    assert found["Reasoning"] == pytest.approx((90 + 100 * 25 / 120) / 2)
    del by["hep-rust"]
    assert rewardbench(by) == {}
