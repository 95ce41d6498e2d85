"""Calibration: figures derived by hand, and intervals and temperatures of data whose truth is known."""

import json
import math

import numpy as np
import pytest
import torch
from finepref.synth.calibration import (
    calibration,
    calibration_error,
    described,
    draw,
    fit_temperature,
    of_logits,
    of_margins,
    reliability,
)
from finepref.synth.intervals import wilson


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


def sure_of(log_odds, shown_at):
    """Margins of pairs that are right with the log-odds given, shown by a model at another scale."""
    generator = np.random.default_rng(3)
    right = generator.random(len(log_odds)) < 1 / (1 + np.exp(-log_odds))
    return np.where(right, 1, -1) * log_odds * shown_at


SPREAD = np.abs(np.random.default_rng(2).normal(1.0, 1.2, 600))


def test_a_pair_counts_once_with_the_confidence_in_the_response_that_is_preferred():
    confidence, correct = of_margins(torch.tensor([2.0, -1.0, 0.0]))
    assert confidence == pytest.approx([0.880797, 0.731059, 0.5], abs=1e-6)
    assert correct.tolist() == [1.0, 0.0, 0.5]


def test_counting_each_pair_in_both_orders_gives_the_same_three_errors():
    margins = sure_of(SPREAD, 0.6)
    both = np.concatenate([margins, -margins])
    mirrored = calibration_error(1 / (1 + np.exp(-both)), np.repeat([1.0, 0.0], len(margins)))
    assert calibration_error(*of_margins(margins)) == pytest.approx(mirrored, abs=1e-12)


def test_the_figures_of_four_pairs_by_hand():
    """Confidences .6 and .6, both right: gap .4. Confidences .95 and .95, one right: gap .45."""
    found = calibration([0.6, 0.6, 0.95, 0.95], [1, 1, 1, 0])
    assert (found["n"], found["groups"]) == (4, 4)
    assert (found["accuracy"], found["confidence"], found["gap"]) == pytest.approx((0.75, 0.775, 0.025))
    assert (found["ece"], found["ace"], found["mce"]) == pytest.approx((0.425, 0.425, 0.45))
    assert [[each[name] for name in ("from", "to", "n", "confidence", "accuracy")] for each in found["bins"]] == [
        pytest.approx([0.6, 0.7, 2, 0.6, 1.0]),
        pytest.approx([0.9, 1.0, 2, 0.95, 0.5]),
    ]
    assert found["bins"][1]["interval"] == [*wilson(1, 2)]
    assert (found["verdict"], found["temperature"], found["after_temperature"]) == ("neither", None, None)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("scale", "verdict", "word"), [(0.3, "underconfident", "more"), (3.0, "overconfident", "less")]
)
def test_a_scaled_reward_is_named_and_its_temperature_found_with_a_low_error_after_it(scale, verdict, word):
    found = calibration(*of_margins(sure_of(SPREAD, scale)))
    assert found["verdict"] == verdict
    assert found["temperature"] == pytest.approx(scale, rel=0.25)
    assert found["ece"] > found["ece_if_calibrated"]["percentile_95"]
    assert found["after_temperature"]["ece"] < found["ece"] / 2
    assert found["after_temperature"]["verdict"] == "neither"
    assert f"{verdict}: it is right {word} often than it is sure" in described(found)[1]


def test_a_calibrated_model_is_called_neither_and_its_error_is_one_that_chance_explains():
    found = calibration(*of_margins(sure_of(SPREAD, 1.0)))
    assert found["verdict"] == "neither"
    assert found["ece"] < found["ece_if_calibrated"]["percentile_95"]
    assert described(found)[1].startswith("neither over- nor underconfidence is shown")


def test_the_interval_of_accuracy_is_that_of_the_binomial_distribution():
    """80 of 100: standard error sqrt(.8 * .2 / 100) = .04, so about .8 -+ .078."""
    found = calibration(np.full(100, 0.8), np.repeat([1, 0], [80, 20]))
    assert found["intervals"]["accuracy"] == pytest.approx([0.72, 0.88], abs=0.015)
    assert found["intervals"]["gap"] == pytest.approx([-0.08, 0.08], abs=0.015)


def test_copies_of_an_answer_in_one_group_do_not_narrow_the_interval():
    p, y = np.full(100, 0.8), np.repeat([1, 0], [80, 20])
    tripled = {"groups": np.tile(np.arange(100), 3)}
    alone, apart = calibration(p, y), calibration(np.tile(p, 3), np.tile(y, 3))
    together = calibration(np.tile(p, 3), np.tile(y, 3), **tripled)
    assert together["groups"] == 100
    assert together["intervals"]["accuracy"] == pytest.approx(alone["intervals"]["accuracy"])
    width = np.ptp(alone["intervals"]["accuracy"])
    assert np.ptp(apart["intervals"]["accuracy"]) == pytest.approx(width / math.sqrt(3), rel=0.15)


def test_the_same_seed_gives_the_same_figures():
    pairs = of_margins(sure_of(SPREAD, 0.5))
    assert calibration(*pairs, seed=1) == calibration(*pairs, seed=1) != calibration(*pairs, seed=2)


def test_the_best_temperature_of_two_answers_is_derived_by_hand():
    """Log-odds 2, right in 3 of 4 cases: the likelihood is greatest where sigmoid(2 / T) = 3/4, T = 2 / log 3."""
    at = lambda t: np.full(4, 1 / (1 + math.exp(-2 / t)))  # noqa: E731
    assert fit_temperature(at, [1, 1, 1, 0]) == pytest.approx(2 / math.log(3), rel=1e-4)


@pytest.mark.parametrize("right", [1.0, 0.0])
def test_answers_that_are_all_right_or_all_wrong_have_no_best_temperature(right):
    found = calibration(*of_margins(np.where(right, 1, -1) * SPREAD))
    assert found["temperature"] is None
    assert found["after_temperature"] is None


def test_choices_among_options_are_rescaled_by_their_logits():
    """Softmax of (1, 0, 0) is e / (e + 2) = .576; at temperature 1/2 it is e^2 / (e^2 + 2) = .787."""
    logits = [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    for temperature, confidence in ((1.0, 0.576117), (0.5, 0.786986)):
        found, correct = of_logits(logits, [0, 0], temperature=temperature)
        assert found == pytest.approx([confidence] * 2, abs=1e-6)
        assert correct.tolist() == [1.0, 0.0]


def test_a_fitted_temperature_of_choices_undoes_the_scale_of_their_logits():
    generator = np.random.default_rng(5)
    logits = generator.normal(0, 1.5, (600, 4))
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    right = np.array([generator.choice(4, p=each) for each in chance])
    at = lambda t: of_logits(3 * logits, right, temperature=t)[0]  # noqa: E731
    found = calibration(*of_logits(3 * logits, right), rescale=at)
    assert found["verdict"] == "overconfident"
    assert found["temperature"] == pytest.approx(3, rel=0.2)


def test_the_diagram_says_model_counts_and_errors_and_begins_at_a_half_for_pairs(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **more: drawn.append(figure))
    found = calibration(*of_margins(sure_of(SPREAD, 0.3)))
    draw(found, tmp_path / "deep" / "plot.png", title="saves/reward, on human", lowest=0.5, unit="pairs")
    axis, below = drawn[0].axes
    assert axis.get_title().startswith("saves/reward, on human\n600 pairs, accuracy 0.7")
    assert f"ECE {found['ece']:.3f} (" in axis.get_title()
    assert "underconfident" in axis.get_title()
    assert axis.get_xlim() == (0.5, 1.0)
    assert [text.get_text() for text in below.texts] == [str(each["n"]) for each in found["bins"]]


def test_wilsons_interval_by_hand():
    """5 of 10, z = 1.96: centre 1/2, half width 1.96 sqrt(.025 + .96 / 100) / 1.384 = .2634."""
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
