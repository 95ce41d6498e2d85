"""Which model is the reference: of a run that continues an adapter, the model with that adapter as it was loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import losses, weights
from tiny_llama import save_byte_llama

START = {"tdpo": math.log(2), "seapo_kto": 0.5}
"""Loss of a policy that equals its reference."""

LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all"}

preference = pytest.mark.parametrize("stage", START)


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of granular SFT, trained far enough that the model with it answers otherwise than the one without."""
    from llamafactory.train.tuner import run_exp

    folder = tmp_path_factory.mktemp("sft")
    settings = {
        **LORA,
        "stage": "sft",
        "granular": True,
        "do_train": True,
        "model_name_or_path": str(tiny_model),
        "template": "chatml",
        "dataset_dir": str(sums),
        "dataset": "granular",
        "output_dir": str(folder / "adapter"),
        "cache_dir": str(folder / "cache"),
        "max_steps": 4,
        "learning_rate": 0.05,
        "report_to": "none",
    }
    run_exp(settings)
    return folder / "adapter"


@pytest.fixture
def recipe_of(tiny_model):
    """The settings of a short run of a stage."""
    names = {"tdpo": "tdpo_spans", "seapo_kto": "seapo_kto"}

    def settings(stage: str, **more: object) -> dict[str, object]:
        return {"name": names[stage], "stage": stage, **LORA, "max_steps": 4, **more}

    return settings


@preference
def test_a_continued_adapter_starts_at_its_reference(run, recipe_of, adapter, stage):
    """LLaMA-Factory's issue 8459: with the base model as reference, the first loss was .48 to .68."""
    done = run(**recipe_of(stage, adapter_name_or_path=str(adapter)))
    assert losses(done)[0] == pytest.approx(START[stage], abs=1e-6)
    assert losses(done)[-1] != pytest.approx(START[stage], abs=1e-4)
    described = done.receipt["run"]["reference"]
    assert described["kind"] == "adapter"
    assert [each["path"] for each in described["adapters"]] == [str(adapter)]
    if stage == "tdpo":
        first = next(entry for entry in done.log if "loss" in entry)
        assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)
        assert first["kl/rejected"] == pytest.approx(0, abs=1e-6)


@preference
def test_the_kept_adapter_is_the_reference_that_two_models_would_give(
    run, recipe_of, adapter, tmp_path, stage, tiny_model
):
    """The same run with a second model, the base with the adapter merged into it."""
    kept = run(**recipe_of(stage, adapter_name_or_path=str(adapter), output_dir=str(tmp_path / "kept")))
    two = {"ref_model": str(tiny_model), "ref_model_adapters": str(adapter)}
    second = run(**recipe_of(stage, adapter_name_or_path=str(adapter), output_dir=str(tmp_path / "two"), **two))
    assert second.receipt["run"]["reference"]["kind"] == "model"
    assert [each["path"] for each in second.receipt["run"]["reference"]["adapters"]] == [str(adapter)]
    assert losses(kept) == pytest.approx(losses(second), abs=2e-5)
    for name, tensor in weights(kept.folder).items():
        torch.testing.assert_close(tensor, weights(second.folder)[name], rtol=0, atol=2e-4)


@preference
def test_the_reference_is_neither_trained_nor_saved_nor_counted(run, recipe_of, adapter, stage, caplog):
    done = run(**recipe_of(stage, adapter_name_or_path=str(adapter), save_steps=2, val_size=2, do_eval=True))
    before, after = weights(adapter), weights(done.folder)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for folder in (done.folder, done.folder / "checkpoint-2"):
        assert [each.name for each in folder.rglob("adapter_model*")] == ["adapter_model.safetensors"] * (
            3 if folder == done.folder else 1
        )


def test_a_new_adapter_has_the_merged_model_as_reference(run, recipe_of, adapter):
    done = run(**recipe_of("tdpo", adapter_name_or_path=str(adapter), create_new_adapter=True))
    assert losses(done)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert done.receipt["run"]["reference"]["kind"] == "base"


def test_a_reference_model_that_is_named_is_taken(run, recipe_of, adapter, tiny_model):
    done = run(**recipe_of("tdpo", adapter_name_or_path=str(adapter), ref_model=str(tiny_model)))
    assert losses(done)[0] != pytest.approx(math.log(2), abs=1e-3)
    described = done.receipt["run"]["reference"]
    assert (described["kind"], described["model"]["path"], described["adapters"]) == ("model", str(tiny_model), [])


@preference
def test_a_resumed_run_keeps_the_reference_of_its_first_step(run, recipe_of, adapter, tmp_path, stage):
    common = recipe_of(stage, adapter_name_or_path=str(adapter), save_steps=2)
    whole = run(output_dir=str(tmp_path / "whole"), **common)
    checkpoint = str(whole.folder / "checkpoint-2")
    again = run(output_dir=str(tmp_path / "again"), resume_from_checkpoint=checkpoint, **common)
    assert losses(again)[-2:] == losses(whole)[2:]


@preference
def test_two_processes_have_the_same_reference(forked, recipe_of, adapter, stage):
    both = forked(processes=2, **recipe_of(stage, adapter_name_or_path=str(adapter)))
    assert both.code == 0, both.output[-3000:]
    log = json.loads((both.folder / "trainer_state.json").read_text())["log_history"]
    assert losses(SimpleNamespace(log=log))[0] == pytest.approx(START[stage], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "where", "what"),
    [
        ("is_deepspeed_zero3_enabled", "transformers.integrations", "DeepSpeed ZeRO-3"),
        ("is_fsdp_enabled", "transformers.modeling_utils", "FSDP"),
    ],
)
def test_sharded_weights_cannot_be_kept_and_the_keys_for_a_second_model_are_named(
    refused, recipe_of, adapter, monkeypatch, tiny_model, name, where, what
):
    monkeypatch.setattr(f"{where}.{name}", lambda: True)
    message = refused(**recipe_of("tdpo", adapter_name_or_path=str(adapter)))
    assert f"under {what} it cannot keep a copy" in message
    assert f"set `ref_model: {tiny_model}` and `ref_model_adapters: {adapter}`" in message
    assert "\n" not in message


@preference
def test_a_reference_model_of_another_tokenizer_is_one_line_before_training(refused, recipe_of, tmp_path, stage):
    """It failed in step 0 of tdpo, or was trained on in seapo_kto."""
    other = save_byte_llama(tmp_path / "bytes")
    message = refused(**recipe_of(stage, ref_model=str(other)))
    assert message.startswith(f"ref_model {other} has another tokenizer than the model: ")
    assert "\n" not in message


def test_a_reference_model_with_too_small_an_embedding_is_one_line(refused, recipe_of, tmp_path, other_model):
    """Without a tokenizer.json only the sizes can be compared."""
    small = tmp_path / "small"
    small.mkdir()
    config = json.loads((other_model / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"vocab_size": 200}))
    message = refused(**recipe_of("tdpo", ref_model=str(small)))
    assert message.startswith(f"ref_model {small} has an embedding for 200 tokens, the model's tokenizer has ")


@pytest.mark.parametrize("finetuning", ["full", "freeze"])
def test_new_tokens_train_with_a_second_model_that_starts_equal(run, recipe_of, finetuning):
    """The host's own dpo fails here, as it splits the list of the tokens twice."""
    more = {"add_tokens": "<aa>,<bb>", "resize_vocab": True, "finetuning_type": finetuning}
    done = run(**recipe_of("tdpo", **more, freeze_trainable_layers=1))
    assert losses(done)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert done.receipt["run"]["reference"]["kind"] == "model"


def test_asft_with_lora_needs_a_reference_model(refused):
    """The host calls None."""
    message = refused(name="granular_sft", **LORA, use_asft_loss=True)
    assert message.startswith("`use_asft_loss` with LoRA needs `ref_model`, such as ")
