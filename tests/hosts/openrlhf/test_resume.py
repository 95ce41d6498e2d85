"""A run that goes on from a checkpoint in mid-epoch has the losses of one that was never stopped.

12 records in batches of 5: two steps per epoch, and two records left out of each, which is where OpenRLHF itself
resumes wrongly (#1350).
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from openrlhf_runs import tensors

UNEVEN = {"train__batch_size": 5, "train__micro_batch_size": 5, "train__max_epochs": 4, "ckpt__save_steps": 3}


@pytest.mark.parametrize(
    ("name", "processes", "settings"),
    [
        ("selective", 1, {}),
        ("tdpo", 1, {"ds__zero_stage": 3}),
        ("kto", 1, {"model__beta": 0.5}),
        ("apo_rm", 1, {"train__micro_batch_size": 1}),
        ("cdpo", 1, {}),
        ("confpo", 1, {}),
        ("dpo_pl", 1, {}),
        ("apo_rm", 1, {"apo__group_by_length": True, "train__batch_size": 6, "train__micro_batch_size": 2}),
        ("tdpo", 2, {"tdpo__group_by_length": True, "train__batch_size": 6, "train__micro_batch_size": 1}),
        ("selective", 2, {"ds__zero_stage": 3, "train__batch_size": 8, "train__micro_batch_size": 1}),
    ],
)
def test_resuming_in_mid_epoch_gives_the_same_following_losses(train, tmp_path, name, processes, settings):
    settings = UNEVEN | {"ckpt__path": tmp_path / "ckpt", "ckpt__save_hf": True} | settings
    whole = train(name, processes=processes, ckpt__output_dir=tmp_path / "whole", **settings)
    steps = len(whole.log["train/loss_mean"])
    assert steps == 12 // settings["train__batch_size"] * 4
    at = json.loads((tmp_path / "ckpt/global_step3/finepref_receipt.json").read_text())
    accumulation = settings["train__batch_size"] // settings["train__micro_batch_size"] // processes
    assert at["ranks"][0]["loss_calls"] == at["expected_loss_calls"] == 3 * accumulation
    assert at["records_left_out_per_epoch"] == 12 % settings["train__batch_size"]
    assert (tmp_path / "ckpt/global_step3_hf/finepref_receipt.json").is_file()

    for later in (tmp_path / "ckpt").glob("global_step[!3]*"):
        shutil.rmtree(later)
    (tmp_path / "ckpt/latest").write_text("global_step3")
    again = train(name, processes=processes, ckpt__output_dir=tmp_path / "again", ckpt__load_enable=True, **settings)
    for key in ("loss_mean", "lr", "chosen_reward"):
        assert again.log[f"train/{key}"] == pytest.approx(whole.log[f"train/{key}"][3:], abs=1e-6), key
    assert again.receipt["first_step"] == 3
    assert again.receipt["ranks"][0]["loss_calls"] == (steps - 3) * accumulation
    for key, tensor in tensors(again.folder).items():
        torch.testing.assert_close(tensor, tensors(whole.folder)[key], rtol=0, atol=1e-6)


def test_every_epoch_leaves_out_other_records(host):
    """Over four epochs of two batches of five, each of the 12 records is trained on, and none twice in an epoch."""
    from finepref.hosts.openrlhf.strategy import WholeBatches

    class Twelve:
        epoch = torch.zeros(1, dtype=torch.int64)

        def __len__(self) -> int:
            return 12

    samplers = [WholeBatches(Twelve(), batch_size=5, num_replicas=5, rank=rank, seed=3) for rank in range(5)]
    seen = []
    for epoch in range(4):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        mine = [list(sampler) for sampler in samplers]
        assert {len(rows) for rows in mine} == {2}
        assert len({row for rows in mine for row in rows}) == 10
        for step in range(2):
            assert set(samplers[0].step_rows(step, 5)) == {rows[step] for rows in mine}
        seen += [row for rows in mine for row in rows]
    assert set(seen) == set(range(12))
    assert int(Twelve.epoch) == 3  # the data set is told


def test_the_rows_of_all_steps_of_an_epoch_are_found_in_one_order(host, monkeypatch):
    """A permutation of a million rows takes as long as a small model's step, so it is drawn once per epoch."""
    from finepref.hosts.openrlhf.strategy import WholeBatches

    class Rows:
        epoch = torch.zeros(1, dtype=torch.int64)

        def __len__(self) -> int:
            return 12

    sampler = WholeBatches(Rows(), batch_size=4, num_replicas=1, rank=0, seed=3)
    drawn, randperm = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *given, **more: drawn.append(given) or randperm(*given, **more))
    for epoch in range(2):
        sampler.set_epoch(epoch)
        steps = [sampler.step_rows(step, 4) for step in (0, 1, 2) for _ in range(3)]
        assert sorted(row for rows in steps[::3] for row in rows) == [*range(12)]
    assert drawn == [(12,), (12,)]


def test_micro_batches_of_all_processes_have_rows_of_similar_length_if_asked(host):
    """400 of 403 rows of different lengths, on two processes in micro-batches of 4 and steps of 16."""
    from finepref.hosts.openrlhf.strategy import WholeBatches

    lengths = np.arange(403) * 7 % 403

    class Rows:
        epoch = torch.zeros(1, dtype=torch.int64)

        def __len__(self) -> int:
            return 403

        def lengths(self) -> np.ndarray:
            return lengths

    common = {"batch_size": 16, "micro_batch_size": 4, "num_replicas": 2, "seed": 3}
    samplers = [WholeBatches(Rows(), rank=rank, **common) for rank in range(2)]
    orders = []
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        mine = [[*sampler] for sampler in samplers]
        orders.append(mine)
        assert len({row for rows in mine for row in rows}) == 400
        for step in range(25):
            of_step = [row for rows in mine for row in rows[8 * step : 8 * step + 8]]
            assert sorted(samplers[1].step_rows(step, 16)) == sorted(of_step)
        at_once = [mine[0][i : i + 4] + mine[1][i : i + 4] for i in range(0, 200, 4)]
        assert np.mean([np.ptp(lengths[rows]) for rows in at_once]) < 403 / 8
        assert abs(np.corrcoef([lengths[rows].mean() for rows in at_once], range(50))[0, 1]) < 0.5  # not sorted
        samplers[0].set_epoch(epoch, consumed_samples=48)
        assert [*samplers[0]] == mine[0][24:]
    assert orders[0] != orders[1]
