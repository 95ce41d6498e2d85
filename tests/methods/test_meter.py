"""The meter: means over what was added, and nothing lost without a word."""

from __future__ import annotations

import pytest
import torch
from finepref.hosts.meter import Meter


def test_means_are_over_the_valid_values_of_all_batches_of_a_split():
    meter = Meter(["a", "b"])
    meter.add_values(
        "train", {"a": torch.tensor([1.0, 9.0]), "b": torch.tensor([2.0, 2.0])}, torch.tensor([True, False])
    )
    meter.add_values("train", {"a": torch.tensor([4.0])}, torch.tensor([True]))
    meter.add_values("eval", {"a": torch.tensor([7.0])}, torch.tensor([True]))
    assert meter.means("train", "cpu") == {"a": 2.5, "b": 2.0}
    assert meter.means("train", "cpu") == {}
    assert meter.sums("eval", "cpu") == {"a": (7.0, 1.0)}


def test_values_that_do_not_count_may_be_nan():
    meter = Meter(["a"])
    meter.add_values("train", {"a": torch.tensor([1.0, torch.nan])}, torch.tensor([True, False]))
    assert meter.means("train", "cpu") == {"a": 1.0}


def test_a_metric_that_the_row_does_not_name_is_an_error():
    with pytest.raises(ValueError, match="the loss returned kl/chosen: add the names to `metrics` of the stage row"):
        Meter(["a"]).add_values("train", {"kl/chosen": torch.zeros(1)}, torch.tensor([True]))


def test_a_loss_without_metrics_adds_nothing():
    meter = Meter(["a"])
    meter.add_values("train", {}, torch.tensor([True]))
    assert meter.means("train", "cpu") == {}
