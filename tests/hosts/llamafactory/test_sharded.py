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
    """Train on two ranks under DeepSpeed; returns the output folder, or the output of a run that is refused."""

    def train(zero_stage: int, *, refused: bool = False, **overrides: object) -> Path | str:
        config = tmp_path / "zero.json"
        config.write_text(json.dumps(zero(zero_stage)))
        file, folder = recipe_file(deepspeed=str(config), output_dir=str(tmp_path / "sharded"), **overrides)
        worker = Path(__file__).with_name("sharded_worker.py")
        done = deepspeed.run(["python", worker, file], processes=2, environment={"DS_ACCELERATOR": "cpu"})
        if refused:
            assert done.code != 0
            return done.output
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


CONTINUED = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all", "optim": "sgd", "learning_rate": 5.0}


@pytest.fixture
def adapter(run, tmp_path) -> Path:
    """A LoRA that makes the model another one."""
    more = {**CONTINUED, "optim": "adamw_torch", "learning_rate": 0.05, "max_steps": 4}
    return run(name="granular_sft", output_dir=str(tmp_path / "adapter"), **more).folder


@pytest.mark.parametrize("stage", ["tdpo", "seapo_kto"])
def test_a_continued_adapter_keeps_its_reference_under_zero_2(run, two_ranks, adapter, stage):
    """The optimizer's shards are views of the weights, which a forward pass of the reference takes away and back."""
    common = {"name": RECIPES[stage], **CONTINUED, "adapter_name_or_path": str(adapter), "max_steps": 3}
    common["gradient_accumulation_steps"] = 1
    alone = run(per_device_train_batch_size=4, **common)
    folder = two_ranks(2, per_device_train_batch_size=2, **common)
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert alone.receipt["run"]["reference"]["kind"] == "adapter"
    assert [entry["loss"] for entry in log[:3]] == pytest.approx(losses(alone), abs=1e-5)
    assert losses(alone)[2] != pytest.approx(losses(alone)[0], abs=2e-4)
    for name, tensor in weights(folder).items():
        torch.testing.assert_close(tensor, weights(alone.folder)[name], rtol=0, atol=2e-5)


def test_a_continued_adapter_under_zero_3_is_one_line_that_names_the_keys(two_ranks, adapter, tiny_model):
    common = {"name": RECIPES["tdpo"], **CONTINUED, "adapter_name_or_path": str(adapter)}
    output = two_ranks(3, refused=True, **common)
    assert (
        f"ValueError: the run continues the adapter {adapter}, and under DeepSpeed ZeRO-3 it cannot keep a copy of it "
        f"as reference: set `ref_model: {tiny_model}` and `ref_model_adapters: {adapter}`"
    ) in output
