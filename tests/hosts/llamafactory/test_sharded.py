"""Every stage on several CPU ranks, also with weights in shards: the same losses and gradients as one process."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import world_sizes
from conftest import HOST, OF_A_BATCH, RECIPES, ROOT, losses, weights
from finepref.methods.draws import digest_text, sum_digests
from warm import Warm


@pytest.fixture(scope="module")
def deepspeed():
    """A process that has imported the host and DeepSpeed, which forks the ranks."""
    with Warm((*HOST, "deepspeed"), {"DS_ACCELERATOR": "cpu"}) as process:
        yield process


@pytest.fixture
def two_ranks(deepspeed, recipe_file, tmp_path):
    """Train on some ranks by one of the ways; returns the output folder, or the output of a run that is refused."""

    def train(way: str, *, processes: int = 2, refused: bool = False, **overrides: object) -> Path | str:
        keys, variables = world_sizes.WAYS[way]
        file, folder = recipe_file(output_dir=str(tmp_path / "sharded"), **keys, **overrides)
        worker = Path(__file__).with_name("sharded_worker.py")
        done = deepspeed.run(["python", worker, file], processes=processes, environment=variables)
        if refused:
            assert done.code != 0
            return done.output
        assert done.code == 0, done.output[-3000:]
        return folder

    return train


@pytest.fixture(scope="module")
def recipes(tiny_model, other_model, sums, tmp_path_factory) -> dict[str, dict]:
    """A recipe of each stage for one step."""
    common = {"cache_dir": str(tmp_path_factory.mktemp("cache"))}
    return {
        stage: world_sizes.settings_of(stage, RECIPES[stage], tiny_model, other_model, sums, dataset) | common
        for stage, dataset in OF_A_BATCH.items()
    }


@pytest.fixture(scope="module")
def alone(deepspeed, recipes, tmp_path_factory) -> dict[str, Path]:
    """The output folders of one process."""
    return world_sizes.one_step(deepspeed, tmp_path_factory.mktemp("one") / "runs", recipes, way="ddp", processes=1)


@pytest.mark.parametrize(
    ("way", "processes"), [("ddp", 4), ("fsdp1", 2), ("fsdp2", 2), ("zero2", 2), ("zero3", 2), ("zero3", 4)]
)
def test_every_way_to_share_a_step_gives_the_gradients_of_one_process(
    deepspeed, recipes, alone, tiny_model, tmp_path, way, processes
):
    """Half of the pairs need no token, so that half of the processes need none. The head is not tied to the embedding,
    as ties hide its shards."""
    start = world_sizes.tensors(tiny_model)
    shared = world_sizes.one_step(deepspeed, tmp_path / "runs", recipes, way=way, processes=processes)
    for stage, folder in shared.items():
        log, expected = (json.loads((each / "trainer_state.json").read_text()) for each in (folder, alone[stage]))
        receipt = json.loads((folder / "finepref_receipt.json").read_text())
        assert log["log_history"][0]["loss"] == pytest.approx(expected["log_history"][0]["loss"], abs=1e-5)
        assert [rank["loss_calls"] for rank in receipt["ranks"]] == [receipt["expected_loss_calls"]] * processes
        if stage in ("sepo", "tdpo", "granular_sft"):
            counts = [rank["tokens"] for rank in receipt["ranks"]]
            needed = [sum(count for name, count in each.items() if "selected" in name) for each in counts]
            assert needed.count(0) == processes // 2
        gradient, of_one = (world_sizes.gradients(each, start) for each in (folder, alone[stage]))
        assert world_sizes.largest(of_one) > 0.01
        absolute, relative = world_sizes.differences(gradient, of_one)
        assert absolute < 1e-6, stage
        assert relative < 1e-5, stage


def test_accelerate_makes_of_the_shipped_file_what_the_tests_run_with():
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    words = ["--config_file", str(ROOT / "examples/accelerate/fsdp2.yaml"), "-m", "llamafactory.launcher", "x.yaml"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    made = prepare_multi_gpu_env(arguments)
    expected = world_sizes.fsdp(2) | {"FSDP_SYNC_MODULE_STATES": "true"}
    assert {name: made[name] for name in expected} == expected


@pytest.mark.parametrize("way", ["ds_z2", "ds_z3"])
def test_the_shipped_deepspeed_files_train_every_stage_in_bf16(deepspeed, recipes, alone, tiny_model, tmp_path, way):
    start = world_sizes.tensors(tiny_model)
    shared = world_sizes.one_step(deepspeed, tmp_path / "runs", recipes, way=way, processes=2)
    for stage, folder in shared.items():
        log, expected = (json.loads((each / "trainer_state.json").read_text()) for each in (folder, alone[stage]))
        assert log["log_history"][0]["loss"] == pytest.approx(expected["log_history"][0]["loss"], rel=0.01)
        assert {tensor.dtype for tensor in weights(folder).values()} == {torch.bfloat16}  # the engine's own
        gradient, of_one = (world_sizes.gradients(each, start) for each in (folder, alone[stage]))
        _, relative = world_sizes.differences(gradient, of_one)
        assert relative < 0.1, stage  # a bf16 has 8 bits


def test_a_run_that_goes_on_with_fewer_and_more_ranks_draws_what_one_that_never_stopped_draws(
    run, two_ranks, tmp_path
):
    """12 records, 24 rows: twelve steps of four rows are two epochs. The parts end within an epoch."""
    common = {"gradient_accumulation_steps": 1, "lr_scheduler_type": "constant", "save_steps": 1}
    whole = run(output_dir=str(tmp_path / "whole"), max_steps=12, per_device_train_batch_size=4, **common)
    digests, kinds, checkpoint, receipt = [], Counter(), None, None
    for ranks, steps in ((2, 4), (1, 8), (2, 12)):
        folder = two_ranks(
            "ddp",
            processes=ranks,
            max_steps=steps,
            per_device_train_batch_size=4 // ranks,
            resume_from_checkpoint=checkpoint,
            **common,
        )
        checkpoint = str(folder / f"checkpoint-{steps}")
        receipt = json.loads((folder / "finepref_receipt.json").read_text())
        assert len(receipt["ranks"]) == ranks
        digests.append(int(receipt["draws"]["digest"], 16))
        kinds.update(receipt["draws"]["counts"])
    assert digest_text(sum_digests(digests)) == whole.receipt["draws"]["digest"]
    assert kinds == whole.receipt["draws"]["counts"]
    assert [part["last_step"] for part in receipt["parts"]] == [4, 8, 12]
    assert receipt["rows"]["seen"] == whole.receipt["rows"]["seen"] == 48
    for name, tensor in weights(whole.folder).items():
        torch.testing.assert_close(weights(folder)[name], tensor, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("recipe", "file"), [("tdpo_hh", "ds_z2"), ("sepo", "ds_z3")])
def test_a_full_recipe_runs_by_the_line_of_the_docs(deepspeed, tiny_model, sums, tmp_path, recipe, file):
    """`llamafactory-cli train examples/RECIPE.yaml deepspeed=examples/deepspeed/FILE.json`, on two ranks."""
    tiny = {
        "model_name_or_path": tiny_model,
        "template": "chatml",
        "dataset_dir": sums,
        "dataset": "scores" if recipe == "sepo" else "spans",
        "output_dir": tmp_path / "out",
        "cache_dir": tmp_path / "cache",
        "preprocessing_num_workers": 1,
        "dataloader_num_workers": 0,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "num_train_epochs": 1,
    }
    line = [f"examples/{recipe}.yaml", f"deepspeed=examples/deepspeed/{file}.json"]
    line += [f"{key}={value}" for key, value in tiny.items()]
    worker = Path(__file__).with_name("sharded_worker.py")
    done = deepspeed.run(["python", worker, *line], processes=2, environment={"DS_ACCELERATOR": "cpu"}, folder=ROOT)
    assert done.code == 0, done.output[-3000:]
    receipt = json.loads((tmp_path / "out/finepref_receipt.json").read_text())
    assert receipt["rows"]["seen"] == 12
    assert [rank["loss_calls"] for rank in receipt["ranks"]] == [3, 3]


def test_a_reward_model_is_evaluated_on_two_ranks_of_zero_3_as_on_one(run, two_ranks):
    """Eleven records: the ranks do not have as many."""
    common = {"name": RECIPES["apo_rm"], "finetuning_type": "full", "gradient_accumulation_steps": 1, "do_eval": True}
    common |= {"eval_dataset": "lists", "max_samples": 11, "per_device_eval_batch_size": 2}
    alone = run(per_device_train_batch_size=4, **common)
    folder = two_ranks("zero3", per_device_train_batch_size=2, **common)
    found, expected = (json.loads((each / "eval_results.json").read_text()) for each in (folder, alone.folder))
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
    for name in ("accuracies", "margins", "mean"):
        assert found[f"eval_rewards/{name}"] == pytest.approx(expected[f"eval_rewards/{name}"], abs=1e-5), name


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
    folder = two_ranks("zero2", per_device_train_batch_size=2, **common)
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert alone.receipt["run"]["reference"]["kind"] == "adapter"
    assert [entry["loss"] for entry in log[:3]] == pytest.approx(losses(alone), abs=1e-5)
    assert losses(alone)[2] != pytest.approx(losses(alone)[0], abs=2e-4)
    for name, tensor in weights(folder).items():
        torch.testing.assert_close(tensor, weights(alone.folder)[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize(("way", "named"), [("zero3", "DeepSpeed ZeRO-3"), ("fsdp2", "FSDP")])
def test_a_continued_adapter_in_shards_is_one_line_that_names_the_keys(two_ranks, adapter, tiny_model, way, named):
    common = {"name": RECIPES["tdpo"], **CONTINUED, "adapter_name_or_path": str(adapter)}
    output = two_ranks(way, refused=True, **common)
    assert (
        f"ValueError: the run continues the adapter {adapter}, and under {named} it cannot keep a copy of it "
        f"as reference: set `ref_model: {tiny_model}` and `ref_model_adapters: {adapter}`"
    ) in output
