"""Every stage under DeepSpeed on two CPU ranks: weights in shards, the same losses as one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import RECIPES, losses, weights
from finepref import stages

ONE_STEP_OF_FOUR = {"max_steps": 1, "gradient_accumulation_steps": 1, "optim": "sgd", "learning_rate": 0.1}


def zero(stage: int) -> dict:
    """A DeepSpeed configuration as users write it: sizes from the recipe, ZeRO stage 2 or 3."""
    sharding = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": stage == 3}
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return dict.fromkeys(sizes, "auto") | {"zero_allow_untested_optimizer": True, "zero_optimization": sharding}


@pytest.fixture
def two_ranks(recipe, tmp_path):
    """Train on two ranks under DeepSpeed; returns the output folder."""

    def train(zero_stage: int, **overrides: object) -> Path:
        config, file = tmp_path / "zero.json", tmp_path / "recipe.yaml"
        config.write_text(json.dumps(zero(zero_stage)))
        settings = recipe(deepspeed=str(config), output_dir=str(tmp_path / "sharded"), **overrides)
        file.write_text(yaml.safe_dump(settings))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launch = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
        worker = str(Path(__file__).with_name("sharded_worker.py"))
        done = subprocess.run(
            [sys.executable, "-m", *launch, worker, str(file)],
            env={**os.environ, "DS_ACCELERATOR": "cpu"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return Path(settings["output_dir"])

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
