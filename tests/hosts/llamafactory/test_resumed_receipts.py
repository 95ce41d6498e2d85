"""A resume of another run is refused by name; with `finepref_resume_changed` the receipt lists both parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sample_rows import span_rows, write_rows

LORA = {"name": "tdpo_spans", "finetuning_type": "lora", "lora_rank": 4, "lora_target": "all", "save_steps": 2}


@pytest.fixture(scope="module")
def data(sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data sets of the tests, and another one for TDPO."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(sums, folder, dirs_exist_ok=True)
    rows = span_rows()[:7]
    for row in rows:
        row["prompt"] = f"{row['prompt']} Please."
    return write_rows(folder, rows, "spans7", formatting="span_pair")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The first run, once it is done."""
    return {"folder": tmp_path_factory.mktemp("kept") / "first"}


@pytest.fixture
def checkpoint(run, data, kept, tmp_path) -> Path:
    """A checkpoint of step 2 of 2, made once."""
    if not kept["folder"].is_dir():
        run(**LORA, dataset_dir=str(data), output_dir=str(kept["folder"]))
    return shutil.copytree(kept["folder"], tmp_path / "first") / "checkpoint-2"


@pytest.fixture
def again(recipe, run, data, checkpoint, tmp_path):
    """Resume for two more steps with changed settings; the run, or the message of the refusal."""

    def call(**changed: object):
        settings = {**LORA, "max_steps": 4, "dataset_dir": str(data), "output_dir": str(tmp_path / "second")} | changed
        return run(**settings, resume_from_checkpoint=str(checkpoint))

    return call


CHANGES = [
    ({"dataset": "spans7"}, "was trained on spans (sha256 ", ", this run reads spans7 (sha256 "),
    ({"seed": 7}, "has seed 42, this run 7", ""),
    ({"tdpo_variant": "tdpo1", "tdpo_alpha": None}, "has tdpo_variant tdpo2, this run tdpo1", ""),
    ({"pref_beta": 0.3}, "has pref_beta 0.1, this run 0.3", ""),
    ({"stage": "sepo"}, "has stage tdpo, this run sepo", ""),
    ({"cutoff_len": 200}, "has cutoff_len ", ", this run 200"),
    ({"template": "qwen"}, "has template chatml, this run qwen", ""),
    ({"max_samples": 9}, "has rows in_training_set 12, this run 9", ""),
    ({"lora_alpha": 3}, "has finetuning alpha ", ", this run 3"),
]


@pytest.mark.parametrize(("changed", "before", "now"), CHANGES, ids=lambda value: None)
def test_a_resume_of_another_run_is_refused_by_name_before_a_model_loads(
    again, monkeypatch, changed, before, now, checkpoint
):
    if changed.get("stage") == "sepo":
        changed = {"dataset": "spans", "name": "sepo", "lora_rank": 4}
    monkeypatch.setattr("llamafactory.model.load_model", lambda *args, **rest: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="the checkpoint ") as caught:
        again(**changed)
    message = str(caught.value)
    assert message.startswith(f"the checkpoint {checkpoint} ")
    assert before in message
    assert now in message
    assert message.endswith("; use `finepref_resume_changed: true` to resume anyway")
    assert "\n" not in message


def test_another_model_is_refused_and_a_moved_one_is_not(again, other_model, tiny_model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"has model .*, this run "):
        again(model_name_or_path=str(other_model))
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    assert again(model_name_or_path=str(moved)).receipt["first_step"] == 2


def test_with_the_option_it_resumes_and_the_receipt_lists_both_parts(again):
    done = again(dataset="spans7", seed=7, finepref_resume_changed=True)
    first, second = done.receipt["parts"]
    assert (first["first_step"], first["last_step"], first["differs"], first["seen"]) == (0, 2, {}, 8)
    assert (second["first_step"], second["last_step"]) == (2, 4)
    assert second["differs"].keys() == {"dataset", "seed", "rows in_training_set", "max_steps"}
    assert second["differs"]["seed"] == {"before": 42, "now": 7}
    assert second["differs"]["dataset"]["before"].startswith("spans (sha256 ")
    assert second["differs"]["dataset"]["now"].startswith("spans7 (sha256 ")
    assert done.receipt["rows"]["seen"] == first["seen"] + second["seen"]
    saved = json.loads((done.folder / "checkpoint-4/finepref_receipt.json").read_text())
    assert [part["last_step"] for part in saved["parts"]] == [2, 4]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"num_train_epochs": 9, "max_steps": 5},
        {"save_steps": 1, "logging_steps": 2},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        {"finepref_full_logits": True},
        {"eval_dataset": "spans7", "eval_strategy": "steps", "eval_steps": 1},
        {"dataset_dir": "moved"},
    ],
    ids=str,
)
def test_what_does_not_make_it_another_run_is_not_refused(again, data, tmp_path, changed):
    if "dataset_dir" in changed:
        shutil.copytree(data, tmp_path / "moved")
        changed = {"dataset_dir": str(tmp_path / "moved")}
    done = again(**changed)
    assert [(part["first_step"], part["receipt"]) for part in done.receipt["parts"]] == [(0, True), (2, True)]
    if "per_device_train_batch_size" in changed:
        assert done.receipt["parts"][1]["differs"]["batch per_device"] == {"before": 2, "now": 1}


def test_a_checkpoint_without_a_receipt_is_resumed_with_a_warning(again, checkpoint, caplog):
    (checkpoint / "finepref_receipt.json").unlink()
    warnings: list[str] = []
    import finepref.hosts.llamafactory.workflow as workflow

    workflow.logger.warning_rank0, original = warnings.append, workflow.logger.warning_rank0
    try:
        done = again()
    finally:
        workflow.logger.warning_rank0 = original
    assert f"there is no finepref_receipt.json in the checkpoint {checkpoint}" in warnings[0]
    first, second = done.receipt["parts"]
    assert first == {"first_step": 0, "last_step": 2, "receipt": False, "differs": {}}
    assert (second["first_step"], second["last_step"]) == (2, 4)
    assert done.receipt["rows"]["seen"] is None


def test_a_receipt_of_an_older_version_is_compared_in_what_it_has(again, checkpoint):
    file = checkpoint / "finepref_receipt.json"
    old = json.loads(file.read_text())
    for key in ("run", "parts"):
        del old[key]
    old["rows"] = {"read": 12, "trained": 12, "evaluated": 0, "skipped_by_max_samples": 0, "rejected": 0}
    del old["settings"]["finepref_overlong"]
    file.write_text(json.dumps(old))
    with pytest.raises(ValueError, match="has seed 42, this run 7; use"):
        again(seed=7)
    assert [part["last_step"] for part in again().receipt["parts"]] == [2, 4]


def test_a_damaged_receipt_is_named(again, checkpoint):
    (checkpoint / "finepref_receipt.json").write_text("{")
    with pytest.raises(ValueError, match=r"finepref_receipt\.json is not a receipt of finepref"):
        again()


def test_the_last_checkpoint_of_the_output_folder_is_compared_too(run, data, tmp_path):
    """The host resumes from it without being asked."""
    common = {**LORA, "dataset_dir": str(data), "output_dir": str(tmp_path / "same"), "overwrite_output_dir": False}
    run(**common)
    with pytest.raises(ValueError, match=r"checkpoint-2 was trained on spans .*, this run reads spans7"):
        run(**common | {"dataset": "spans7", "max_steps": 4})


def test_a_checkpoint_that_is_not_there_is_named(refused, data):
    message = refused(**LORA, dataset_dir=str(data), resume_from_checkpoint="runs/nowhere")
    assert message == "`resume_from_checkpoint`: there is no folder 'runs/nowhere'"
