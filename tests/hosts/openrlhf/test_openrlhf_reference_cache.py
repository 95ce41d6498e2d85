"""`--kto.reference_cache`, `--tdpo.reference_cache`: the reference is read once, into files that later runs find."""

from __future__ import annotations

from pathlib import Path

import pytest

STAGES = {
    "kto": {"kto__reference_cache": True, "train__max_epochs": 2},
    "tdpo": {"tdpo__variant": "dpo", "tdpo__reference_cache": True},
    "dpo_pl": {"dpo_pl__reference_cache": True},
}
LORA = {"ds__lora__rank": 4}


@pytest.fixture(autouse=True)
def cache(host, tmp_path, monkeypatch) -> Path:
    """A cache of the test's own, small batches, and a line of the output for each model that is loaded."""
    from finepref.hosts import reference_cache
    from finepref.hosts.openrlhf import data
    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained

    def told(*arguments, **options):
        print("a model is loaded")
        return load(*arguments, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", told)
    monkeypatch.setattr(reference_cache, "BATCH_TOKENS", 1024)
    monkeypatch.setattr(data, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def without_cache(given: dict) -> dict:
    return {name: value for name, value in given.items() if "reference_cache" not in name}


def models(done) -> int:
    return done.output.count("a model is loaded")


def file_of(cache: Path) -> Path:
    (file,) = cache.rglob("logps.npy")
    return file


@pytest.mark.parametrize(
    ("name", "kind"), [("kto", "lora"), ("tdpo", "full"), ("kto", "another model"), ("dpo_pl", "another model")]
)
def test_training_reads_from_the_file_what_the_reference_would_compute(
    train, tmp_path, cache, other_model, name, kind
):
    more = {"lora": LORA, "full": {}, "another model": {"ref__model_name_or_path": other_model}}[kind]
    common = STAGES[name] | more
    plain = train(name, ckpt__output_dir=tmp_path / "plain", **without_cache(common))
    made = train(name, ckpt__output_dir=tmp_path / "made", **common)
    again = train(name, ckpt__output_dir=tmp_path / "again", **common)
    assert made.log["train/loss_mean"] == pytest.approx(plain.log["train/loss_mean"], abs=1e-6)
    assert again.log["train/loss_mean"] == made.log["train/loss_mean"]
    assert models(plain) == (1 if kind == "lora" else 2)
    assert (models(made), models(again)) == (2 if kind == "another model" else 1, 1)
    assert "found 12 rows" in again.output
    assert "found" not in made.output
    assert made.receipt["run"]["reference"]["cache"] == [file_of(cache).parent.name]
    assert again.receipt["run"]["reference"] == made.receipt["run"]["reference"]


@pytest.mark.parametrize("name", ["kto"])
def test_shards_and_two_processes_make_the_same_file(train, tmp_path, cache, name):
    """The evaluation reads it too."""
    common = STAGES[name] | {"eval__dataset": "sums" if name == "kto" else "spans"}
    found = {}
    for way, processes, zero in (("one", 1, 2), ("two", 2, 2), ("shards", 2, 3)):
        done = train(name, processes=processes, ckpt__output_dir=tmp_path / way, ds__zero_stage=zero, **common)
        assert (models(done), "found" in done.output) == (1 if zero < 3 else 2, False)
        found[way] = done.log, file_of(cache).read_bytes()
        cache.rename(tmp_path / f"cache of {way}")
    assert found["two"][1] == found["one"][1]
    assert found["shards"][0]["train/loss_mean"] == pytest.approx(found["one"][0]["train/loss_mean"], abs=1e-5)
    assert found["two"][0]["eval/eval_loss"] == pytest.approx(found["one"][0]["eval/eval_loss"], abs=1e-6)


def test_a_resumed_full_training_finds_the_file_or_makes_it_of_the_first_weights(train, tmp_path, cache):
    common = STAGES["tdpo"] | {"train__max_epochs": 2, "ckpt__save_steps": 3, "adam__lr": 1e-2}
    train("tdpo", ckpt__output_dir=tmp_path / "run", **common | {"train__max_epochs": 1})
    first = file_of(cache).read_bytes()
    cache.rename(tmp_path / "gone")
    train("tdpo", ckpt__output_dir=tmp_path / "run", ckpt__load_enable=True, **common)
    assert file_of(cache).read_bytes() == first


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        (
            "selective",
            {"selective__reference_cache": True},
            "--selective.reference_cache: sepo reads no reference model",
        ),
        ("tdpo", {"tdpo__reference_cache": True}, "tdpo2 reads its whole distribution"),
        ("tdpo", STAGES["tdpo"] | {"tdpo__log_kl": True}, "--tdpo.log_kl reads its whole distribution"),
        (
            "kto",
            STAGES["kto"] | {"ds__ring_attn_size": 2, "ds__packing_samples": True},
            "--kto.reference_cache does not go with --ds.ring_attn",
        ),
    ],
)
def test_what_cannot_be_kept_is_one_line(attempt, name, given, told):
    done = attempt(name, **given)
    line = done.output.strip().splitlines()[-1]
    assert done.code == 1
    assert told in line
    assert models(done) == 0
