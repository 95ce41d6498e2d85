"""The receipt on OpenRLHF: the same entries as on LLaMA-Factory, and compared when a run resumes."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from sample_rows import span_rows, write_rows
from tiny_llama import save_byte_llama

ENTRIES = {
    *("stage", "paper", "settings", "seed", "versions", "run", "parts", "datasets", "rows", "optimizer_steps"),
    *("first_step", "gradient_accumulation_steps", "expected_loss_calls", "ranks"),
}
"""Those of every receipt, on either host."""


def test_the_receipt_says_what_was_trained_how_and_how_far(train, tiny_model, other_model):
    """12 records in batches of 4 are 3 steps an epoch."""
    given = {"ds__lora__rank": 4, "train__max_epochs": 2, "logger__wandb__project": "mine"}
    done = train("tdpo", ref__model_name_or_path=other_model, eval__dataset="spans", **given)
    assert done.receipt.keys() >= ENTRIES
    entry = done.receipt["run"]
    assert entry["host"] == "openrlhf"
    assert entry["purposes"] == ["train", "evaluate"]
    assert entry["model"]["path"] == str(tiny_model)
    assert len(entry["model"]["weights_sha256"]) == 64
    assert entry["reference"]["kind"] == "model"
    assert entry["reference"]["model"]["path"] == str(other_model)
    assert (entry["template"], entry["input_template"], entry["cutoff_len"]) == (None, None, 512)
    assert len(entry["chat_template_sha256"]) == 64
    assert (entry["datasets"], entry["eval_datasets"]) == (["spans"], ["spans"])
    assert (entry["finetuning"]["type"], entry["finetuning"]["rank"]) == ("lora", 4)
    assert (entry["optimizer"]["learning_rate"], entry["optimizer"]["warmup_ratio"]) == (1e-3, 0.0)
    assert entry["batch"] == {"per_device": 2, "accumulation": 2, "processes": 1, "total": 4}
    assert (entry["epochs"], entry["precision"]) == (2, "fp32")
    assert entry["steps"] == {"planned": 6, "done": 6}
    assert entry["devices"] == {"cpu": 1}
    assert done.receipt["rows"]["seen"] == 24
    assert "--ds.lora.rank" in entry["command"]["argv"]
    assert entry["command"]["settings"]["logger.wandb.project"] == "mine"
    assert "train.seed" not in entry["command"]["settings"]


def test_both_hosts_have_the_same_entries_under_run(train):
    from dataclasses import fields

    from finepref.hosts.run_setup import Setup

    done = train("selective")
    assert done.receipt["run"].keys() == {field.name for field in fields(Setup)} | {
        *("steps", "started", "ended", "devices")
    }
    assert done.receipt["run"]["reference"] == {"kind": "none", "model": None, "adapters": []}


@pytest.mark.parametrize(("name", "entry"), [("tdpo", "tokens"), ("apo_rm", "records"), ("dpo_pl", "lists")])
def test_what_the_ranks_counted_is_summed_as_on_llama_factory(train, name, entry):
    done = train(name, processes=2, train__micro_batch_size=1)
    counted = [rank["counts"] for rank in done.receipt["ranks"]]
    assert done.receipt[entry] == {key: sum(each.get(key, 0) for each in counted) for key in done.receipt[entry]}
    assert sum(done.receipt[entry].values()) == sum(sum(each.values()) for each in counted) > 0
    assert done.receipt["rows"]["seen"] == 12
    assert [rank["seen"] for rank in done.receipt["ranks"]] == [6, 6]


def test_the_saved_model_has_the_receipt_and_a_card_that_counts_rows(train):
    done = train("tdpo", data__max_samples=9)
    assert (done.folder / "model.safetensors").is_file()
    card = (done.folder / "README.md").read_text()
    assert "\n## Stage `tdpo`\n" in card
    assert "| in the training set | 9 |\n| in the evaluation sets | 0 |\n| skipped: max_samples | 3 |\n" in card


def test_a_wandb_key_is_in_no_receipt(train, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    done = train("tdpo", logger__wandb__key="0123456789" * 4)
    assert "0123456789" not in json.dumps(done.receipt)


@pytest.fixture
def data(sums, tmp_path):
    """The data sets of the tests, and another one for TDPO."""
    folder = shutil.copytree(sums, tmp_path / "two")
    rows = span_rows()
    for row in rows:
        row["prompt"] = f"{row['prompt']} Please."
    return write_rows(folder, rows, "spans7", formatting="span_pair")


@pytest.fixture
def resumed(train, attempt, data, tmp_path):
    """Train an epoch, then resume with changed flags."""
    common = {"data__dataset_dir": data, "ckpt__path": tmp_path / "ckpt", "ckpt__save_steps": 3}

    def call(**changed):
        train("tdpo", ckpt__output_dir=tmp_path / "first", **common)
        name = changed.pop("name", "tdpo")
        given = {"train__max_epochs": 2, **changed}
        return attempt(name, ckpt__output_dir=tmp_path / "second", ckpt__load_enable=True, **common, **given)

    return call


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data__dataset": "spans7"}, "was trained on spans (sha256 "),
        ({"train__seed": 7}, "has seed 42, this run 7"),
        ({"tdpo__variant": "tdpo1"}, "has tdpo_variant tdpo2, this run tdpo1"),
        ({"name": "selective", "data__dataset": "spans"}, "has stage tdpo, this run sepo"),
        ({"data__max_len": 400}, "has cutoff_len 512, this run 400"),
        ({"ds__lora__rank": 2}, "has finetuning type full, this run lora"),
    ],
)
def test_a_resume_of_another_run_is_refused_by_name(resumed, tmp_path, changed, message):
    done = resumed(**changed)
    assert done.code == 1
    assert "Traceback" not in done.output
    (line,) = (line for line in done.output.splitlines() if ": the checkpoint " in line)
    assert str(tmp_path / "ckpt/global_step3") in line
    assert message in line
    assert line.endswith(".resume_changed to resume anyway")
    assert not (tmp_path / "second").exists()


def test_with_the_option_it_resumes_and_the_receipt_lists_both_parts(resumed):
    done = resumed(data__dataset="spans7", tdpo__resume_changed=True)
    assert done.code == 0, done.output[-3000:]
    first, second = done.receipt["parts"]
    assert [(part["first_step"], part["last_step"], part["seen"]) for part in (first, second)] == [
        (0, 3, 12),
        (3, 6, 12),
    ]
    assert second["differs"].keys() == {"dataset", "epochs"}
    assert done.receipt["rows"]["seen"] == 24
    assert "it has epochs 1, this run 2" in done.output


def test_a_checkpoint_without_a_receipt_is_resumed_with_a_warning(resumed, tmp_path, monkeypatch):
    monkeypatch.setattr("finepref.hosts.receipt.write", lambda *arguments: None)
    done = resumed()
    assert done.code == 0, done.output[-3000:]
    assert f"there is no finepref_receipt.json in the checkpoint {tmp_path / 'ckpt/global_step3'}" in done.output


@pytest.mark.parametrize("name", ["tdpo", "kto"])
def test_a_reference_model_of_another_tokenizer_is_one_line_before_training(attempt, tmp_path, name):
    other = save_byte_llama(tmp_path / "bytes")
    done = attempt(name, ref__model_name_or_path=other)
    assert done.code == 1
    assert "Traceback" not in done.output
    assert f"--ref.model_name_or_path {other} has another tokenizer than the model: " in done.output
    assert not done.folder.exists()


@pytest.mark.parametrize("given", [{}, {"ds__lora__rank": 4}], ids=["full", "lora"])
def test_an_adapter_is_not_trained_further_in_silence(train, attempt, tmp_path, tiny_model, given):
    """With LoRA the host dropped it from the policy, but not from the reference: loss .704 in the first step."""
    adapter = train("tdpo", ds__lora__rank=4, ckpt__output_dir=tmp_path / "adapter").folder
    done = attempt("tdpo", model__model_name_or_path=adapter, ckpt__output_dir=tmp_path / "on", **given)
    assert done.code == 1
    assert "Traceback" not in done.output
    expected = f"--model.model_name_or_path {adapter} is an adapter, which OpenRLHF does not train further; merge it"
    assert expected in done.output
    assert f"lora_combiner --model_path {tiny_model} --lora_path {adapter}" in done.output


def test_an_adapter_can_be_the_reference_as_transformers_loads_it(train, tmp_path):
    """Not as the host saves it, with a config.json."""
    adapter = train("tdpo", ds__lora__rank=4, adam__lr=0.05, ckpt__output_dir=tmp_path / "adapter").folder
    (adapter / "config.json").unlink()
    done = train("tdpo", ref__model_name_or_path=adapter, ckpt__output_dir=tmp_path / "on")
    assert done.log["train/loss"][0] != pytest.approx(math.log(2), abs=1e-3)
    assert done.receipt["run"]["reference"]["model"]["path"] == str(adapter)


def test_a_full_run_starts_at_its_reference(train):
    assert train("tdpo").log["train/loss"][0] == pytest.approx(math.log(2), abs=1e-6)
