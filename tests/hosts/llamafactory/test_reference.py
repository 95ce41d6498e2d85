"""Which model is the reference: of a run that continues an adapter, the model with that adapter as it was loaded."""

from __future__ import annotations

import json
import math
import shutil
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
    """The same run with a second model, the base with the adapter merged into it; its folder has another path."""
    tiny_model = shutil.copytree(tiny_model, tmp_path / "copy")
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


@preference
def test_a_reference_model_that_is_named_is_taken(run, recipe_of, adapter, tiny_model, tmp_path, loaded, stage):
    """Also where it is the model below the adapter: then it is the model with its adapter switched off."""
    found = []
    for place in (tiny_model, shutil.copytree(tiny_model, tmp_path / "copy")):
        more = {"ref_model": str(place), "output_dir": str(tmp_path / f"out-{len(found)}")}
        done = run(**recipe_of(stage, adapter_name_or_path=str(adapter), **more))
        described = done.receipt["run"]["reference"]
        found.append((losses(done), described["kind"], described["adapters"], len(loaded)))
    assert [each[1:] for each in found] == [("base", [], 1), ("model", [], 3)]
    assert found[0][0] == pytest.approx(found[1][0], abs=2e-5)
    assert found[0][0][0] != pytest.approx(START[stage], abs=1e-3)


CASES = {
    "lora": ({}, 1, "base"),
    "dora": ({"use_dora": True}, 1, "base"),
    "rslora": ({"use_rslora": True}, 1, "base"),
    "modules to save": ({"additional_target": "lm_head"}, 1, "base"),
    "oft": ({"finetuning_type": "oft", "oft_block_size": 4, "oft_rank": 0}, 1, "base"),
    "the model by name": ({"ref_model": "MODEL"}, 1, "base"),
    "the model by name, dora": ({"ref_model": "MODEL", "use_dora": True}, 1, "base"),
    "a further adapter": ({"adapter_name_or_path": "ADAPTER"}, 1, "adapter"),
    "a further adapter, by name": (
        {"adapter_name_or_path": "ADAPTER", "ref_model": "MODEL", "ref_model_adapters": "ADAPTER"},
        1,
        "adapter",
    ),
    "a new adapter on a merged one": ({"adapter_name_or_path": "ADAPTER", "create_new_adapter": True}, 1, "base"),
    "a new adapter on a merged one, by name": (
        {
            "adapter_name_or_path": "ADAPTER",
            "create_new_adapter": True,
            "ref_model": "MODEL",
            "ref_model_adapters": "ADAPTER",
        },
        1,
        "base",
    ),
    "full": ({"finetuning_type": "full"}, 2, "model"),
    "freeze": ({"finetuning_type": "freeze", "freeze_trainable_layers": 1}, 2, "model"),
    "another model": ({"ref_model": "OTHER"}, 2, "model"),
    "the model below a merged adapter": (
        {"adapter_name_or_path": "ADAPTER", "create_new_adapter": True, "ref_model": "MODEL"},
        2,
        "model",
    ),
}


@pytest.fixture
def loaded(monkeypatch) -> list[int]:
    """The numbers of parameters of the models that transformers has loaded for the host."""
    from transformers import AutoModelForCausalLM

    found, load = [], AutoModelForCausalLM.from_pretrained

    def counted(*arguments, **options):
        model = load(*arguments, **options)
        found.append(sum(parameter.numel() for parameter in model.parameters()))
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_second_model_is_loaded_only_where_the_policy_cannot_be_its_own_reference(
    run, recipe_of, adapter, tiny_model, other_model, loaded, case
):
    """LLaMA-Factory's issue 10514: a second 7B model beside a LoRA on top of it."""
    given, models, kind = CASES[case]
    places = {"MODEL": str(tiny_model), "ADAPTER": str(adapter), "OTHER": str(other_model)}
    given = {key: places.get(value, value) for key, value in given.items()}
    done = run(**recipe_of("tdpo", **{"max_steps": 2, **given}))
    assert len(loaded) == models
    assert len({*loaded}) == 1
    assert done.receipt["run"]["reference"]["kind"] == kind
    equal = case not in ("another model", "the model below a merged adapter")
    assert (losses(done)[0] == pytest.approx(math.log(2), abs=1e-5)) == equal
    assert losses(done)[1] != pytest.approx(math.log(2), abs=1e-5)


def test_the_log_says_that_no_second_model_is_loaded(forked, recipe_of, tiny_model):
    done = forked(**recipe_of("tdpo", ref_model=str(tiny_model), max_steps=1))
    assert done.code == 0, done.output[-3000:]
    line = (
        "The reference is the model with its adapter switched off; no second model is loaded. `ref_model` is the model"
    )
    assert f"{line} itself." in done.output


def arguments(**given):
    model = {"model_name_or_path": "m", "adapter_name_or_path": None, "quantization_bit": None}
    model |= {"use_kt": False, "use_unsloth": False}
    finetuning = {"finetuning_type": "lora", "create_new_adapter": False, "ref_model": None}
    finetuning |= {"ref_model_adapters": None, "ref_model_quantization_bit": None}
    parts = [{key: given.get(key, value) for key, value in part.items()} for part in (model, finetuning)]
    parts = [SimpleNamespace(**part) for part in parts]
    return SimpleNamespace(model=parts[0], finetuning=parts[1], training=SimpleNamespace(do_train=True, fsdp=""))


@pytest.mark.parametrize(
    ("given", "kind", "adapters"),
    [
        ({"quantization_bit": 4}, "base", ()),
        ({"quantization_bit": 4, "ref_model": "m"}, "model", ()),  # in full precision, as the key says
        ({"quantization_bit": 4, "ref_model": "m", "ref_model_quantization_bit": 4}, "base", ()),
        ({"quantization_bit": 4, "adapter_name_or_path": ["a"], "create_new_adapter": True}, "adapter", ("a",)),
        ({"adapter_name_or_path": ["a", "b"]}, "adapter", ("a", "b")),
        ({"adapter_name_or_path": ["a", "b"], "ref_model": "m", "ref_model_adapters": ["a"]}, "base", ("a",)),
        ({"adapter_name_or_path": ["a", "b"], "ref_model": "m", "ref_model_adapters": "a,b"}, "adapter", ("a", "b")),
        ({"adapter_name_or_path": ["a", "b"], "ref_model": "m", "ref_model_adapters": ["b"]}, "model", ("b",)),
        ({"adapter_name_or_path": ["a", "b"], "ref_model": "m"}, "model", ()),
    ],
)
def test_what_the_reference_is_of_quantised_models_and_several_adapters(given, kind, adapters):
    """bitsandbytes needs a GPU, so that the choice is tested alone."""
    from finepref.hosts.llamafactory.reference import choose

    chosen = choose(arguments(**given), needed=True)
    assert (chosen.kind, chosen.path, chosen.adapters) == (kind, "m", adapters)


def test_sharded_weights_have_a_second_model_where_a_copy_of_the_adapter_would_be_needed(monkeypatch):
    from finepref.hosts.llamafactory.reference import choose

    monkeypatch.setattr("finepref.hosts.llamafactory.reference.under_fsdp", lambda _: True)
    named = {"adapter_name_or_path": ["a"], "ref_model": "m", "ref_model_adapters": ["a"]}
    assert choose(arguments(**named), needed=True).kind == "model"
    assert choose(arguments(), needed=True).kind == "base"


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
        ("under_fsdp", "finepref.hosts.llamafactory.reference", "FSDP"),
    ],
)
def test_sharded_weights_cannot_be_kept_and_the_keys_for_a_second_model_are_named(
    refused, recipe_of, adapter, monkeypatch, tiny_model, name, where, what
):
    monkeypatch.setattr(f"{where}.{name}", lambda *_: True)
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
