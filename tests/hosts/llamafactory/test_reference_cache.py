"""`finepref_reference_cache`: the reference is read once, into files that later runs find."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import world_sizes
from conftest import HOST, losses
from tiny_llama import save_perturbed
from warm import Warm

STAGES = {
    "seapo_kto": {"name": "seapo_kto", "max_steps": 7},  # 24 rows: two epochs, with other draws
    "dpo": {
        "name": "tdpo_spans",
        "tdpo_variant": "dpo",
        "tdpo_alpha": None,
        "pref_beta": 0.2,
        "max_steps": 4,
    },
}
FULL = {"finetuning_type": "full"}
LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all"}
CACHED = {"finepref_reference_cache": True}


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """The folders from which transformers has loaded a model for the host."""
    from transformers import AutoModelForCausalLM

    found, load = [], AutoModelForCausalLM.from_pretrained

    def counted(*arguments, **options):
        found.append(options["pretrained_model_name_or_path"])
        return load(*arguments, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    return found


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """The number of responses in each pass that reads a reference for a file."""
    from finepref.hosts import reference_cache

    found, fill = [], reference_cache._fill
    monkeypatch.setattr(reference_cache, "BATCH_TOKENS", 1024)

    def watched(cache, read, *rest):
        def counted(texts):
            found.append(len(texts))
            return read(texts)

        return fill(cache, counted, *rest)

    monkeypatch.setattr(reference_cache, "_fill", watched)
    return found


def files_of(cache: Path) -> list[Path]:
    """The files of a cache, by their age."""
    return sorted(cache.rglob("logps.npy"), key=lambda file: file.stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("stage", "kind"), [("seapo_kto", "lora"), ("dpo", "full"), ("seapo_kto", "full"), ("dpo", "another model")]
)
def test_training_reads_from_the_file_what_the_reference_would_compute(
    run, tmp_path, other_model, loaded, passes, stage, kind
):
    given = LORA if kind == "lora" else FULL if kind == "full" else FULL | {"ref_model": str(other_model)}
    common = STAGES[stage] | given
    plain = run(output_dir=str(tmp_path / "plain"), **common)
    models = len(loaded)
    made = run(output_dir=str(tmp_path / "made"), **common, **CACHED)
    read = len(passes)
    again = run(output_dir=str(tmp_path / "again"), **common, **CACHED)
    assert losses(made) == pytest.approx(losses(plain), abs=1e-6)
    assert losses(again) == losses(made)
    assert len(passes) == read > 1
    assert models == (1 if kind == "lora" else 2)
    assert len(loaded) - models == (3 if kind == "another model" else 2)
    noted = made.receipt["run"]["reference"]
    assert (
        noted["cache"] == [files_of(tmp_path / "cache")[0].parent.name] == again.receipt["run"]["reference"]["cache"]
    )
    assert "cache" not in plain.receipt["run"]["reference"]


def test_what_is_trained_on_is_what_the_file_says(run, tmp_path):
    """With 1 added to the log-probabilities of a file, the first loss is another one."""
    import numpy as np

    common = STAGES["dpo"] | LORA | CACHED | {"max_steps": 1}
    first = run(output_dir=str(tmp_path / "first"), **common)
    (file,) = files_of(tmp_path / "cache")
    values = np.load(file)
    assert values.dtype == np.float32
    assert (values < 0).all()
    np.save(file, values * np.linspace(0.5, 1, len(values), dtype=np.float32))
    second = run(output_dir=str(tmp_path / "second"), **common)
    assert losses(first)[0] == pytest.approx(0.6931, abs=1e-4)
    assert abs(losses(second)[0] - losses(first)[0]) > 0.01


class EnoughError(Exception):
    """The files are there, no training is needed."""


def test_a_changed_model_adapter_template_cutoff_or_record_makes_a_new_file(
    run, tmp_path, tiny_model, sums, monkeypatch
):
    """Another way of finetuning, other options or weights, or a copy of model and data elsewhere finds the file."""
    from finepref.hosts.llamafactory.pairs import PairAdapter

    cache, common = tmp_path / "cache", STAGES["dpo"] | LORA | {"max_steps": 1} | CACHED
    run(output_dir=str(tmp_path / "trained"), **common)

    def enough(*_: object, **__: object) -> None:
        raise EnoughError

    monkeypatch.setattr(PairAdapter, "build_trainer", enough)

    def files(**given: object) -> int:
        with pytest.raises(EnoughError):
            run(output_dir=str(tmp_path / "out"), **common | given)
        return len(files_of(cache))

    copy = {
        "model_name_or_path": str(shutil.copytree(tiny_model, tmp_path / "copy")),
        "dataset_dir": str(shutil.copytree(sums, tmp_path / "data")),
    }
    whole = {"tdpo_masks": "none", "tdpo_sides": "two"}
    assert files(**FULL, **copy, **whole, pref_beta=0.5, seed=7) == 1
    assert files(model_name_or_path=str(save_perturbed(tiny_model, tmp_path / "other"))) == 2
    assert files(cutoff_len=40, **whole) == 3
    assert files(template="qwen") == 4
    assert files(max_samples=8) == 5
    adapter = {"adapter_name_or_path": str(tmp_path / "trained")}
    assert files(**adapter) == 6
    assert files(**adapter, create_new_adapter=True) == 6
    file = tmp_path / "data" / "spans.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[1:], lines[0]]) + "\n")
    assert files(**copy) == 7


def test_a_resumed_full_training_makes_the_file_of_the_first_weights(run, tmp_path):
    """Not of those of the checkpoint, which are far away; the losses go on as those of a run that never stopped."""
    common = STAGES["dpo"] | FULL | CACHED | {"save_steps": 2, "learning_rate": 1e-2}
    whole = run(output_dir=str(tmp_path / "whole"), **common)
    (file,) = files_of(tmp_path / "cache")
    first = file.read_bytes()
    shutil.rmtree(file.parent)
    again = run(
        output_dir=str(tmp_path / "again"), resume_from_checkpoint=str(whole.folder / "checkpoint-2"), **common
    )
    assert losses(again)[-2:] == losses(whole)[2:]
    assert files_of(tmp_path / "cache") == [file]
    assert file.read_bytes() == first


def test_a_pass_that_was_killed_goes_on_with_the_parts_that_are_there(run, tmp_path, passes, monkeypatch):
    from finepref.hosts import reference_cache

    common = STAGES["seapo_kto"] | LORA | CACHED | {"max_steps": 1}
    whole = run(output_dir=str(tmp_path / "whole"), **common)
    (file,) = files_of(tmp_path / "cache")
    expected, needed = file.read_bytes(), len(passes)
    shutil.rmtree(file.parent)
    batch, made = reference_cache._batch, []

    def killed(*given):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(given)
        return batch(*given)

    monkeypatch.setattr(reference_cache, "_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        run(output_dir=str(tmp_path / "killed"), **common)
    monkeypatch.setattr(reference_cache, "_batch", batch)
    assert not files_of(tmp_path / "cache")
    passes.clear()
    done = run(output_dir=str(tmp_path / "again"), **common)
    assert len(passes) == needed - 3
    assert file.read_bytes() == expected
    assert losses(done) == losses(whole)
    assert [each.name for each in file.parents[1].iterdir() if each.suffix != ".lock"] == [file.parent.name]


def test_evaluation_splits_have_files_of_their_own(run, tmp_path, passes):
    common = STAGES["seapo_kto"] | LORA | {"max_steps": 2, "val_size": 4, "eval_strategy": "steps", "eval_steps": 1}
    plain = run(output_dir=str(tmp_path / "plain"), **common)
    kept = run(output_dir=str(tmp_path / "kept"), **common, **CACHED)
    assert sorted(kept.receipt["run"]["reference"]["cache"]) == sorted(
        file.parent.name for file in files_of(tmp_path / "cache")
    )
    assert len(files_of(tmp_path / "cache")) == 2
    for mine, theirs in zip(kept.log, plain.log, strict=True):
        for name in ("loss", "eval_loss", "eval_rewards/margins", "eval_kl"):
            assert mine.get(name, 0) == pytest.approx(theirs.get(name, 0), abs=2e-6)


def test_a_model_that_cannot_be_hashed_is_known_by_its_name(run, tmp_path, monkeypatch, passes):
    from finepref.hosts.llamafactory import cached_reference

    def unknown(name):
        return {"path": name, **dict.fromkeys(("config_sha256", "weights_sha256", "weights_hashed", "weights_bytes"))}

    monkeypatch.setattr(cached_reference, "identity", unknown)
    common = STAGES["dpo"] | LORA | CACHED | {"max_steps": 1}
    run(output_dir=str(tmp_path / "first"), **common)
    made = len(passes)
    run(output_dir=str(tmp_path / "second"), **common)
    assert len(passes) == made > 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "sepo"}, "sepo reads no reference model, so that there is nothing to keep"),
        ({"name": "tdpo_spans"}, "tdpo2 reads its whole distribution over the vocabulary: only `tdpo_variant: dpo`"),
        (STAGES["dpo"] | {"tdpo_log_kl": True}, "`tdpo_log_kl: true` reads its whole distribution"),
        ({"name": "apo_rm"}, "tgdpo, tis_dpo, not of apo_rm"),
        (STAGES["seapo_kto"] | {"streaming": True, "dataloader_num_workers": 1}, "which a stream does not have"),
        (STAGES["dpo"] | {"add_tokens": "<a>", "resize_vocab": True}, "save the model with its new tokens first"),
        (STAGES["seapo_kto"] | {"ignore_pad_token_for_loss": False}, "also reads padding, which is in no file"),
    ],
)
def test_what_cannot_be_kept_is_one_line(refused, given, told):
    message = refused(**given, **CACHED)
    assert told in message
    assert "\n" not in message


@pytest.fixture(scope="module")
def deepspeed():
    """A process that has imported the host and DeepSpeed, which forks the ranks."""
    with Warm((*HOST, "deepspeed"), {"DS_ACCELERATOR": "cpu"}) as process:
        yield process


@pytest.mark.parametrize(("stage", "way"), [("seapo_kto", "ddp"), ("seapo_kto", "zero3"), ("dpo", "fsdp2")])
def test_two_processes_fill_one_file(deepspeed, run, recipe_file, tmp_path, stage, way):
    """Without shards it is that of one process, bit by bit."""
    common = STAGES[stage] | FULL | CACHED | {"max_steps": 2, "gradient_accumulation_steps": 1}
    one = run(output_dir=str(tmp_path / "one"), **common)
    (file,) = files_of(tmp_path / "cache")
    keys, variables = world_sizes.WAYS[way]
    halves = {"per_device_train_batch_size": 1, "cache_dir": str(tmp_path / "cache of two")}
    recipe, folder = recipe_file(output_dir=str(tmp_path / "two"), **keys, **common, **halves)
    worker = Path(__file__).with_name("sharded_worker.py")
    done = deepspeed.run(["python", worker, recipe], processes=2, environment=variables)
    assert done.code == 0, done.output[-3000:]
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert [entry["loss"] for entry in log if "loss" in entry] == pytest.approx(losses(one), abs=1e-5)
    (shared,) = files_of(tmp_path / "cache of two")
    assert shared.parent.name == file.parent.name
    assert way != "ddp" or shared.read_bytes() == file.read_bytes()
