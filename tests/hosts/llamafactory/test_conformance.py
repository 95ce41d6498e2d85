"""What every installed stage must do on the real host, those of other packages too: its row is enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import DATASETS, OF_A_LOSS, RECIPES, ROOT, host_keys, losses, weights
from finepref import methods, stages
from finepref.formats.check import check_file

STAGES = list(stages.all_stages().values())

BY_FORMAT = {"negatives": "sums", "scored_pair": "scores", "span_pair": "spans", "ranked": "lists"}

by_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda row: row.name)
by_batch = pytest.mark.parametrize(
    "stage", [row for row in STAGES if row.name not in OF_A_LOSS[1:]], ids=lambda row: row.name
)
"""Every stage but those whose batches and models are handled as another one's; one of these is there for all."""
of_ours = pytest.mark.parametrize("stage", methods.BUILT_IN, ids=lambda row: row.name)
with_demo = pytest.mark.parametrize("stage", [row for row in STAGES if row.demo_dataset], ids=lambda row: row.name)


def dataset_of(stage: stages.Stage) -> str:
    """A data set of the tests that the stage trains on."""
    return DATASETS.get(stage.name) or next(BY_FORMAT[name] for name in stage.formats if name in BY_FORMAT)


def tiny(stage: stages.Stage) -> dict[str, object]:
    """The stage's own recipe or, of another package, that of one of ours with the same shape of batches."""
    if stage in methods.BUILT_IN:
        return {"name": Path(stage.recipe).stem}
    like = next(row for row in methods.BUILT_IN if row.shape == stage.shape)
    defaults = {name: option.default for name, option in like.options.new_on("llamafactory").items()}
    return {"name": Path(like.recipe).stem, "stage": stage.name, "dataset": dataset_of(stage), **defaults}


@of_ours
def test_the_row_names_a_recipe_of_one_screen_and_a_demo_set_that_is_good_and_small(stage):
    recipe = (ROOT / stage.recipe).read_text(encoding="utf-8")
    asked = f"\nstage: {stage.host_stage}\n{stage.switch}: true" if stage.switch else f"\nstage: {stage.name}\n"
    assert asked in recipe
    assert len(recipe.splitlines()) <= 75
    entry = json.loads((ROOT / "dataset_info" / "dataset_info.json").read_text())[stage.demo_dataset]
    assert entry["formatting"] in stage.formats
    file = ROOT / "dataset_info" / entry["file_name"]
    assert check_file(file, entry["formatting"]).passes()
    assert file.stat().st_size < 500_000


@by_stage
def test_a_run_leaves_a_receipt_whose_loss_calls_and_rows_add_up(run, stage):
    """Batch 2 x accumulation 2 over 2 steps are 4 micro-batches, so 4 loss calls."""
    done = run(
        **tiny(stage),
        val_size=2,
        do_eval=True,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=2,
        save_steps=1,
    )
    receipt = done.receipt
    assert receipt["stage"] == stage.name
    assert receipt["ranks"][0]["loss_calls"] == receipt["expected_loss_calls"] == 4
    assert receipt["rows"] == {
        "read": 12,
        "in_training_set": 10,
        "in_evaluation_set": 2,
        "repeated": 0,
        "skipped": {},
        "rejected": {},
        "cut": {},
        "responses_skipped": {},
        "seen": 8,
    }
    assert {card["outcome"] for card in receipt["ranks"][0]["cards"]} == {"applied", "verified"}
    assert {card["source"] for card in receipt["ranks"][0]["cards"]} == {"tested"}
    for step in (1, 2):
        saved = json.loads((done.folder / f"checkpoint-{step}" / "finepref_receipt.json").read_text())
        assert saved["ranks"][0]["loss_calls"] == 2 * step
    evaluated = json.loads((done.folder / "eval_results.json").read_text())
    assert {"eval_loss", *([] if stage.host_stage == "sft" else ["eval_rewards/margins"])} <= evaluated.keys()


@by_stage
def test_the_plots_and_the_model_card_name_the_method(run, stage):
    done = run(**tiny(stage), plot_loss=True)
    assert (done.folder / "training_loss.png").stat().st_size > 1000
    assert (done.folder / "training_rewards_chosen.png").exists() == (stage.host_stage != "sft")
    card = (done.folder / "README.md").read_text()
    assert f"Stage `{stage.name}`" in card
    assert stage.paper in card
    for key, value in done.receipt["settings"].items():
        assert f"- `{key}`: {value}\n" in card


def ways_of_training() -> list[object]:
    """Every stage with LoRA; full and frozen training too, except for those of ours that differ in the loss alone."""
    return [
        pytest.param(stage, way, id=f"{stage.name}-{way}")
        for stage in STAGES
        for way in ("lora", "full", "freeze")
        if way == "lora" or stage.name not in OF_A_LOSS
    ]


@pytest.mark.parametrize(("stage", "finetuning_type"), ways_of_training())
def test_eight_steps_equal_four_and_a_resumed_four(run, tmp_path, stage, finetuning_type):
    """12 records, batch 2 x 2: an epoch is 3 steps (6 where a record gives two rows), so 4 is in mid-epoch."""
    common = {**tiny(stage), "finetuning_type": finetuning_type, "save_steps": 4, "max_steps": 8}
    if finetuning_type == "freeze":
        common["freeze_trainable_layers"] = 1
    whole = run(output_dir=str(tmp_path / "whole"), **common)
    checkpoint = str(whole.folder / "checkpoint-4")
    again = run(output_dir=str(tmp_path / "again"), resume_from_checkpoint=checkpoint, **common)
    for name, tensor in weights(whole.folder).items():
        assert torch.equal(tensor, weights(again.folder)[name]), name
    assert losses(whole)[4:] == losses(again)[-4:]
    assert again.receipt["first_step"] == 4
    assert again.receipt["ranks"][0]["loss_calls"] == again.receipt["expected_loss_calls"] == 8


@by_batch
def test_two_ranks_leave_one_receipt_that_lists_both(forked, stage):
    """Under torchrun itself: test_launchers.py."""
    both = forked(processes=2, **tiny(stage))
    assert both.code == 0, both.output[-3000:]
    ranks = both.receipt["ranks"]
    assert [rank["rank"] for rank in ranks] == [0, 1]
    assert [rank["loss_calls"] for rank in ranks] == [both.receipt["expected_loss_calls"]] * 2
    assert [card["card"] for card in ranks[1]["cards"]] == [*stage.llamafactory_cards]
    assert {card["outcome"] for rank in ranks for card in rank["cards"]} == {"applied", "verified"}


@by_batch
def test_the_exported_model_loads_in_transformers_and_generates(run, recipe, tmp_path, stage):
    from llamafactory.train.tuner import export_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trained = run(**tiny(stage), finetuning_type="lora")
    settings = recipe("seapo_export", adapter_name_or_path=str(trained.folder), export_dir=str(tmp_path / "merged"))
    wanted = ("model_name_or_path", "adapter_name_or_path", "template", "export_dir", "export_device", "export_size")
    export_model({"stage": stage.name} | {key: settings[key] for key in wanted})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    prompt = tokenizer("What is", return_tensors="pt", return_token_type_ids=False)
    assert model.generate(**prompt, max_new_tokens=4).shape[1] > prompt["input_ids"].shape[1]


@by_batch
def test_a_tokenised_folder_trains_as_the_files_do(run, tmp_path, stage):
    common = {**tiny(stage), "tokenized_path": str(tmp_path / "tokens")}
    first = run(output_dir=str(tmp_path / "first"), **common)
    second = run(output_dir=str(tmp_path / "second"), **common)
    assert losses(second) == losses(first)
    assert second.receipt["datasets"] == first.receipt["datasets"]
    assert second.receipt.get("draws") == first.receipt.get("draws")
    assert ("draws" in first.receipt) == (stage.name == "seapo_kto")


@by_batch
def test_a_stream_trains(run, stage):
    done = run(**tiny(stage), streaming=True, dataloader_num_workers=1, max_steps=3, preprocessing_batch_size=4)
    assert done.receipt["ranks"][0]["loss_calls"] == 6
    assert len(losses(done)) == 3
    if stage.name == "seapo_kto":
        assert sum(done.receipt["draws"]["counts"].values()) > 0


@with_demo
def test_several_evaluation_sets_are_each_checked_and_logged(run, sums, stage):
    name = dataset_of(stage)
    done = run(
        **tiny(stage),
        eval_dataset=f"{name},{stage.demo_dataset}",
        eval_on_each_dataset=True,
        do_eval=True,
        per_device_eval_batch_size=8,
        cutoff_len=2048,
        **{key: True for key in stage.options.described("llamafactory") if key.endswith("_map_scores")},
    )
    keys = json.loads((done.folder / "eval_results.json").read_text()).keys()
    assert {f"eval_{name}_loss", f"eval_{stage.demo_dataset}_loss"} <= keys


@by_stage
def test_packing_is_refused(run, stage):
    with pytest.raises(ValueError, match=f"`packing` is not for stage {stage.name}"):
        run(**tiny(stage), packing=True)


@by_stage
def test_the_stage_and_its_keys_are_in_the_help(stage):
    from dataclasses import fields

    import llamafactory.hparams.finetuning_args as host

    known = {field.name for field in fields(host.FinetuningArguments)}
    assert {*stage.options.described("llamafactory")} <= known


def test_every_recipe_of_the_table_is_used_by_the_tests():
    assert {row.name: Path(row.recipe).stem for row in methods.BUILT_IN} == RECIPES


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_host_knows_every_key_of_a_shipped_recipe(file):
    keys = yaml.safe_load(file.read_text(encoding="utf-8")).keys()
    assert {"model_name_or_path", "template"} <= keys
    assert keys <= host_keys()
