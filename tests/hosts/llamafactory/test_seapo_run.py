"""A run of `seapo_kto` on the real host: it trains, proves it, resumes exactly, and draws the same anywhere."""

from __future__ import annotations

import json
import random

import pytest
import torch
from conftest import weights
from sample_rows import rows, write_rows


def test_every_error_type_has_its_reward_margin_and_count_in_the_log(run):
    done = run(max_steps=6)
    keys = {key for entry in done.log for key in entry}
    for name in ("correctness", "logic", "hallucination"):
        assert {f"rewards/rejected/{name}", f"rewards/margins/{name}", f"count/{name}"} <= keys
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "kl"} <= keys
    counted = sum(
        entry.get(f"count/{name}", 0) for entry in done.log for name in ("correctness", "logic", "hallucination")
    )
    assert (
        counted == sum(done.receipt["draws"]["counts"].values()) == 12
    )  # 24 rows are one epoch, half of them negatives


@pytest.mark.parametrize("finetuning_type", ["full", "freeze", "lora"])
def test_every_way_of_fine_tuning_trains_what_it_says(run, tiny_model, finetuning_type):
    done = run(finetuning_type=finetuning_type, freeze_trainable_layers=1)
    trained = weights(done.folder)
    if finetuning_type == "lora":
        assert all(tensor.abs().sum() > 0 for name, tensor in trained.items() if "lora_B" in name)
        return
    base = weights(tiny_model)
    moved = {name for name, tensor in trained.items() if not torch.equal(tensor, base[name])}
    expected = {name for name in base if finetuning_type == "full" or ".layers.1." in name}
    assert moved == expected


def test_evaluation_in_mid_training_draws_alike_each_time(run):
    """The learning rate is 0, so two evaluations differ only if their draws do."""
    done = run(val_size=4, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=4, learning_rate=0.0)
    evaluations = [entry for entry in done.log if "eval_loss" in entry]
    assert len(evaluations) == 2
    for key in ("eval_loss", "eval_rewards/chosen", "eval_logps/rejected", "eval_kl"):
        assert evaluations[0][key] == evaluations[1][key], key


def test_training_lowers_the_loss_and_raises_the_margin_of_every_error_type(run):
    done = run(max_steps=30, learning_rate=5e-3, finetuning_type="full", lr_scheduler_type="constant", pref_beta=0.5)
    losses = [entry["loss"] for entry in done.log if "loss" in entry]
    assert sum(losses[-5:]) / 5 < 0.9 * losses[0]
    for name in ("correctness", "logic", "hallucination"):
        margins = [entry[f"rewards/margins/{name}"] for entry in done.log if f"rewards/margins/{name}" in entry]
        assert sum(margins[-4:]) > 0


def test_a_resumed_run_draws_what_the_whole_run_draws(run, tmp_path):
    """An epoch is 6 steps, so the resume at 4 is in mid-epoch and crosses an epoch."""
    common = {"save_steps": 4, "max_steps": 8}
    whole = run(output_dir=str(tmp_path / "whole"), **common)
    checkpoint = whole.folder / "checkpoint-4"
    again = run(output_dir=str(tmp_path / "again"), resume_from_checkpoint=str(checkpoint), **common)
    first = json.loads((checkpoint / "finepref_receipt.json").read_text())["draws"]["digest"]
    parts = (int(first, 16) + int(again.receipt["draws"]["digest"], 16)) % (1 << 62)
    assert f"{parts:016x}" == whole.receipt["draws"]["digest"]


def test_the_drawn_negatives_do_not_depend_on_row_order_workers_or_the_dataset_cache(run, tmp_path):
    records = rows()
    random.Random(3).shuffle(records)
    shuffled = write_rows(tmp_path / "shuffled", records)
    epochs = {"max_steps": -1, "num_train_epochs": 3}
    plain = run(output_dir=str(tmp_path / "plain"), **epochs)
    variants = {
        "other order": {"dataset_dir": str(shuffled)},
        "two workers": {"dataloader_num_workers": 2},
        "two persistent workers": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
        "cache": {},
        "two preprocessing workers": {"preprocessing_num_workers": 2, "overwrite_cache": True},
    }
    for name, overrides in variants.items():
        other = run(output_dir=str(tmp_path / name), **(epochs | overrides))
        assert other.receipt["draws"] == plain.receipt["draws"], name


def test_the_draw_changes_with_the_seed_and_between_epochs_unless_asked_to_stay(run, tmp_path):
    """With `once` every epoch draws as the first, so each type's count over 3 epochs is a multiple of 3."""
    epochs = {"max_steps": -1, "num_train_epochs": 3}
    plain = run(output_dir=str(tmp_path / "plain"), **epochs)
    seeded = run(output_dir=str(tmp_path / "seeded"), seed=7, **epochs)
    assert seeded.receipt["draws"]["digest"] != plain.receipt["draws"]["digest"]
    once = run(output_dir=str(tmp_path / "once"), seapo_resample="once", **epochs)
    assert all(count % 3 == 0 for count in once.receipt["draws"]["counts"].values())
    assert any(count % 3 for count in plain.receipt["draws"]["counts"].values())


def test_only_the_asked_error_types_are_drawn(run):
    done = run(seapo_error_types="logic, hallucination", max_steps=6)
    assert set(done.receipt["draws"]["counts"]) <= {"logic", "hallucination"}
    assert sum(done.receipt["draws"]["counts"].values()) == 12


def test_the_nll_term_of_pref_ftx_changes_the_loss(run, tmp_path):
    plain = run(output_dir=str(tmp_path / "plain"), max_steps=1)
    with_nll = run(output_dir=str(tmp_path / "ftx"), max_steps=1, pref_ftx=0.5)
    assert with_nll.log[0]["loss"] > plain.log[0]["loss"] + 0.5


def test_automatic_weights_pull_the_chosen_weight_into_the_papers_range(run, tmp_path, caplog):
    """At the first step reward and reference point are 0, so a row's loss is half its weight."""
    warned = run(output_dir=str(tmp_path / "warned"), max_steps=6, kto_chosen_weight=3.0)
    assert "outside [1, 4/3]" in caplog.text
    ruled = run(output_dir=str(tmp_path / "ruled"), max_steps=6, kto_chosen_weight=3.0, seapo_auto_weights=True)
    assert warned.log[0]["loss"] > ruled.log[0]["loss"]


def test_every_loss_is_a_mean_over_the_rows_of_all_ranks(run, monkeypatch):
    """A mean of each rank's own would weigh the rows of a rank with fewer of them more."""
    from finepref.losses import ops

    averaged = []
    reduce = ops.reduce
    monkeypatch.setattr(ops, "reduce", lambda out, **rest: averaged.append(len(out.loss)) or reduce(out, **rest))
    done = run()
    assert averaged == [2] * done.receipt["ranks"][0]["loss_calls"]
