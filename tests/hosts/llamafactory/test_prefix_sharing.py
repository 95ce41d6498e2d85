"""The responses of a record as one tree of tokens: the same losses and weights as rows of their own."""

from __future__ import annotations

import pytest
import torch
from conftest import losses, weights


@pytest.fixture
def both(run, tmp_path, monkeypatch):
    """Runs with and without sharing, and how many trees and rows the former's forward passes had."""
    from finepref.hosts.llamafactory import forward, lists, pairs, unpaired

    def call(**settings):
        passes = []
        original = forward._pass

        def noted(trainer, model, rows):
            passes.append(type(rows).__name__)
            return original(trainer, model, rows)

        monkeypatch.setattr(forward, "_pass", noted)
        shared = run(output_dir=str(tmp_path / "shared"), **settings)
        of_shared, passes[:] = [*passes], []
        for module in (lists, pairs, unpaired):  # the option would also change the order of seapo_kto's rows
            monkeypatch.setattr(module, "sharing_of", lambda *_: None)
        alone = run(output_dir=str(tmp_path / "alone"), **settings)
        assert set(passes) == {"Rows"}
        return shared, alone, of_shared

    return call


SGD = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 2, "lr_scheduler_type": "constant"}


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("sepo", {"finetuning_type": "full"}),
        ("tdpo_spans", {"tdpo_sides": "two"}),
        ("tdpo_hh", {"dataset": "spans", "flash_attn": "disabled"}),
        ("seapo_kto", {"per_device_train_batch_size": 6}),
        ("dpo_pl", {"finetuning_type": "lora", "per_device_train_batch_size": 3}),
    ],
)
def test_trees_train_as_rows_of_their_own(both, name, overrides):
    shared, alone, passes = both(name=name, **SGD, **overrides)
    assert set(passes) == {"Trees"}
    assert losses(shared) == pytest.approx(losses(alone), abs=1e-5)
    assert shared.receipt.keys() == alone.receipt.keys()
    for name, tensor in weights(shared.folder).items():
        torch.testing.assert_close(tensor, weights(alone.folder)[name], rtol=0, atol=1e-5)
