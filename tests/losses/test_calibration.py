"""Calibration errors, with numbers derived by hand."""

import pytest
import torch
from finepref.losses.calibration import calibration_error, reliability


def test_the_three_errors_of_two_filled_bins():
    """Bins [0, .5) with p = .1, .3 and labels 0, 1: gap |.5 - .2| = .3; [.5, 1] with p = 1 and label 1: gap 0.

    ECE = 2/3 * .3 + 1/3 * 0 = .2, ACE = (.3 + 0) / 2 = .15, MCE = .3.
    """
    errors = calibration_error(torch.tensor([0.1, 0.3, 1.0]), torch.tensor([0, 1, 1]), bins=2)
    assert errors == pytest.approx((0.2, 0.15, 0.3), abs=1e-6)


def test_empty_bins_do_not_lower_the_average():
    """One of ten bins is filled, with gap |1 - .75| = .25."""
    assert calibration_error(torch.tensor([0.75]), torch.tensor([1])).average == pytest.approx(0.25)


def test_the_diagram_counts_a_probability_of_one_in_the_last_bin_and_an_edge_in_the_upper_one():
    count, confidence, accuracy = reliability(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0, 0, 1]), bins=2)
    assert count.tolist() == [1, 2]
    assert confidence.tolist() == [0.0, 0.75]
    assert accuracy.tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [([], []), ([0.5], [0, 1]), ([1.2], [1]), ([float("nan")], [1]), ([0.5], [2])],
)
def test_impossible_inputs_are_refused(probabilities, labels):
    with pytest.raises(ValueError, match=r"probabilit"):
        calibration_error(torch.tensor(probabilities), torch.tensor(labels))
