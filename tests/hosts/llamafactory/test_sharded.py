"""Every stage under DeepSpeed on two CPU ranks: weights in shards, the same losses as one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import HOST, RECIPES, losses, weights
from finepref import stages
from warm import Warm

ONE_STEP_OF_FOUR = {"max_steps": 1, "gradient_accumulation_steps": 1, "optim": "sgd", "learning_rate": 0.1}


def zero(stage: int) -> dict:
    """A DeepSpeed configuration as users write it: sizes from the recipe, ZeRO stage 2 or 3."""
    sharding = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": stage == 3}
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return dict.fromkeys(sizes, "auto") | {"zero_allow_untested_optimizer": True, "zero_optimization": sharding}


@pytest.fixture(scope="module")
def deepspeed():
    """A process that has imported the host and DeepSpeed, which forks the ranks."""
    with Warm((*HOST, "deepspeed"), {"DS_ACCELERATOR": "cpu"}) as process:
        yield process


@pytest.fixture
def two_ranks(deepspeed, recipe_file, tmp_path):
    """Train on two ranks under DeepSpeed; returns the output folder."""

    def train(zero_stage: int, **overrides: object) -> Path:
        config = tmp_path / "zero.json"
        config.write_text(json.dumps(zero(zero_stage)))
        file, folder = recipe_file(deepspeed=str(config), output_dir=str(tmp_path / "sharded"), **overrides)
        worker = Path(__file__).with_name("sharded_worker.py")
        done = deepspeed.run(["python", worker, file], processes=2, environment={"DS_ACCELERATOR": "cpu"})
        assert done.code == 0, done.output[-3000:]
        return folder

    return train


@pytest.mark.parametrize(
    ("stage", "zero_stage"), [("sepo", 2), *((name, 3) for name in stages.all_stages())], ids=lambda x: str(x)
)
def test_shards_on_two_ranks_train_as_one_process_does(run, two_ranks, stage, zero_stage):
    """Two ranks of two rows are one batch of four. The head is not tied to the embedding, as ties hide its shards."""
    common = {"name": RECIPES[stage], "finetuning_type": "full", **ONE_STEP_OF_FOUR}
    alone = run(per_device_train_batch_size=4, **common)
    folder = two_ranks(zero_stage, per_device_train_batch_size=2, **common)
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    receipt = json.loads((folder / "finepref_receipt.json").read_text())
    assert log[0]["loss"] == pytest.approx(losses(alone)[0], abs=1e-5)
    assert [rank["loss_calls"] for rank in receipt["ranks"]] == [receipt["expected_loss_calls"]] * 2
    for name, tensor in weights(folder).items():
        torch.testing.assert_close(tensor, weights(alone.folder)[name], rtol=0, atol=2e-5)
