"""What a run on OpenRLHF leaves is what LLaMA-Factory's leaves: a log, plots, a card, a head, and no weight twice."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from finepref.cli import app
from openrlhf_runs import ROOT, tensors
from safetensors.torch import load_file
from typer.testing import CliRunner


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]


PLACE = {"current_steps", "total_steps", "epoch", "percentage", "elapsed_time", "remaining_time"}


@pytest.mark.parametrize("name", ["selective", "tdpo", "kto", "apo_rm", "dpo_pl"])
def test_the_log_has_a_line_for_each_step_and_evaluation(train, name):
    """12 records in batches of 4 are 3 steps an epoch; the losses are those that the host logs for tensorboard."""
    done = train(name, train__max_epochs=2, eval__dataset=None if name == "kto" else DATA[name], eval__steps=3)
    lines = log_of(done.folder)
    steps, evaluations = ([each for each in lines if (key in each)] for key in ("loss", "eval_loss"))
    assert [line["current_steps"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in steps] == pytest.approx(done.log["train/loss_mean"], abs=1e-6)
    assert [line["lr"] for line in steps] == pytest.approx(done.log["train/lr"], abs=1e-9)
    assert [line["epoch"] for line in steps] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], abs=1e-4)
    assert {line["total_steps"] for line in steps} == {6}
    for line in steps:
        assert line.keys() >= PLACE | {"loss", "lr", "grad_norm", "accuracy"} | {
            f"rewards/{each}" for each in ("chosen", "rejected", "accuracies", "margins")
        }
        assert line["rewards/chosen"] - line["rewards/rejected"] == pytest.approx(line["rewards/margins"], abs=1e-5)
    assert [line["current_steps"] for line in evaluations] == ([] if name == "kto" else [3, 6])
    if evaluations:
        assert [line["eval_loss"] for line in evaluations] == pytest.approx(done.log["eval/eval_loss"], abs=1e-6)


DATA = {"selective": "scores", "tdpo": "spans", "apo_rm": "lists", "dpo_pl": "lists"}


def test_two_processes_and_micro_batches_log_the_rewards_of_the_whole_step(train, tmp_path):
    """The host logs those of each process's last micro-batch.

    In the first step the policy is the reference: rewards are 0 up to rounding, which decides about the accuracy.
    """
    found = []
    for processes, size in ((1, 4), (2, 1)):
        folder = tmp_path / str(processes)
        given = {"train__micro_batch_size": size, "ckpt__output_dir": folder, "adam__lr": 1e-2}
        found.append(log_of(train("tdpo", processes=processes, **given).folder))
    for step, (one, other) in enumerate(zip(*found, strict=True)):
        for key in ("loss", "rewards/chosen", "rewards/margins", *(["rewards/accuracies"] if step else [])):
            assert one[key] == pytest.approx(other[key], abs=1e-5), key


def test_plots_are_drawn_of_what_has_two_points(train):
    done = train("tdpo", eval__dataset="spans", eval__steps=3)
    names = {file.name for file in done.folder.glob("*.png")}
    assert names >= {"training_loss.png", "training_rewards_accuracies.png", "training_rewards_margins.png"}
    assert "training_eval_loss.png" not in names  # one evaluation
    for name in names:
        assert (done.folder / name).read_bytes().startswith(b"\x89PNG")
    steps = [line["loss"] for line in log_of(done.folder) if "loss" in line]
    (line,) = log_of(train("tdpo", logger__logging_steps=3).folder)
    assert (line["current_steps"], line["loss"]) == (3, pytest.approx(sum(steps) / 3, abs=1e-6))


def test_a_resumed_run_goes_on_in_the_same_log(train, tmp_path):
    common = {"ckpt__path": tmp_path / "ckpt", "ckpt__save_steps": 2}
    train("tdpo", train__max_epochs=1, **common)
    done = train("tdpo", train__max_epochs=2, ckpt__load_enable=True, **common)
    lines = log_of(done.folder)
    assert [line["current_steps"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["total_steps"] for line in lines] == [3, 3, 6, 6, 6, 6]


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    """Parameters of the models that transformers loads for the host, in the forked process too."""
    from transformers import AutoModelForCausalLM

    file, load = tmp_path / "loaded.txt", AutoModelForCausalLM.from_pretrained
    file.touch()

    def counted(*arguments, **options):
        model = load(*arguments, **options)
        with open(file, "a") as log:
            log.write(f"{sum(parameter.numel() for parameter in model.parameters())}\n")
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)

    def numbers() -> list[int]:
        found = [*map(int, file.read_text().split())]
        file.write_text("")
        return found

    return numbers


START = {"tdpo": math.log(2), "kto": 0.5}


@pytest.mark.parametrize("name", START)
@pytest.mark.parametrize("stage", [2, 3])
def test_a_lora_is_its_own_reference_with_the_losses_of_a_second_model(
    train, tmp_path, tiny_model, loaded, name, stage
):
    """The host loads the model twice. A copy of it in another folder is a second model."""
    found = []
    for place in (None, shutil.copytree(tiny_model, tmp_path / "copy")):
        given = {"ds__lora__rank": 4, "ds__zero_stage": stage, "adam__lr": 1e-2, "train__max_epochs": 2}
        done = train(name, ref__model_name_or_path=place, ckpt__output_dir=tmp_path / str(len(found)), **given)
        found.append((log_of(done.folder), done.receipt["run"]["reference"]["kind"], len(loaded()), done.output))
    assert [each[1:3] for each in found] == [("base", 1), ("model", 2)]
    assert "the reference is the model with its adapter switched off; no second model is loaded" in found[0][3]
    for one, other in zip(found[0][0], found[1][0], strict=True):
        for key in ("loss", "rewards/chosen", "rewards/margins", "grad_norm"):
            assert one[key] == pytest.approx(other[key], abs=1e-5), key
    assert found[0][0][0]["loss"] == pytest.approx(START[name], abs=1e-6)
    assert found[0][0][-1]["loss"] != pytest.approx(START[name], abs=1e-4)


def test_packed_with_gradient_checkpointing_and_dropout_a_lora_is_its_own_reference(train, loaded):
    """Dropout would make the policy differ from its reference, and the reference from itself."""
    given = {"ds__lora__rank": 4, "ds__lora__dropout": 0.5, "model__gradient_checkpointing_enable": True}
    done = train("tdpo", ds__packing_samples=True, ds__attn_implementation="sdpa", **given)
    assert len(loaded()) == 1
    assert log_of(done.folder)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_full_weights_need_a_second_model(train, loaded):
    assert train("tdpo").receipt["run"]["reference"]["kind"] == "model"
    assert len(loaded()) == 2


@pytest.mark.parametrize("stage", [2, 3])
def test_tied_weights_are_saved_once(train, tiny_model, tmp_path, stage):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "tied")
    given = {"model__model_name_or_path": tmp_path / "tied", "ds__zero_stage": stage}
    done = train("tdpo", ckpt__save_steps=3, ckpt__save_hf=True, **given)
    for folder in (done.folder, done.folder / "ckpt/global_step3_hf"):
        assert {*load_file(folder / "model.safetensors")} == {*load_file(tmp_path / "tied/model.safetensors")}
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_an_untied_head_is_still_saved(train):
    assert "lm_head.weight" in tensors(train("tdpo").folder)


@pytest.mark.parametrize(
    "given",
    [{}, {"ds__zero_stage": 3}, {"ds__lora__target_modules": "q_proj"}],
    ids=["all linear", "zero-3", "one target"],
)
def test_the_value_head_of_a_lora_is_trained_and_saved(train, tmp_path, tiny_model, given):
    """The host puts a LoRA on a random head, or leaves it random, and saves neither head."""
    untrained = train("apo_rm", ds__lora__rank=4, adam__lr=0.0, ckpt__output_dir=tmp_path / "0", **given).folder
    done = train("apo_rm", ds__lora__rank=4, adam__lr=1e-2, ckpt__output_dir=tmp_path / "1", **given)
    heads = [head for folder in (untrained, done.folder) for name, head in tensors(folder).items() if "score" in name]
    assert [head.shape for head in heads] == [(1, 32), (1, 32)]
    assert not torch.equal(*heads)
    called = CliRunner().invoke(app, ["apo", "export", str(done.folder), str(tmp_path / "classifier")])
    assert called.exit_code == 0, called.output
    assert torch.equal(load_file(tmp_path / "classifier/model.safetensors")["score.weight"], heads[1].float())


@pytest.mark.parametrize("rank", [0, 4])
def test_the_rewards_of_a_saved_model_are_those_of_its_evaluation(train, tmp_path, rank):
    """The host's mean over each list's best and worst response, which it writes into config.json."""
    given = {"ds__lora__rank": rank, "adam__lr": 1e-2, "eval__dataset": "lists", "eval__steps": 3}
    done = train("apo_rm", **given)
    config = json.loads((done.folder / "config.json").read_text())
    from finepref.formats.jsonl import write_jsonl
    from finepref.synth.apo.reward_model import RewardModel
    from finepref.synth.apo.score import score
    from sample_rows import ranked_rows

    write_jsonl(tmp_path / "lists.jsonl", ranked_rows())
    score(tmp_path / "lists.jsonl", tmp_path / "scored.jsonl", model=RewardModel(done.folder, pooling="eos"))
    rows = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    ordered = [
        [reward for _, reward in sorted(zip(row["scores"], row["rewards"], strict=True), key=lambda pair: -pair[0])]
        for row in rows
    ]
    best_and_worst = [each[i] for each in ordered for i in (0, -1)]
    assert config["mean"] == pytest.approx(sum(best_and_worst) / len(best_and_worst), abs=1e-4)


def test_the_card_says_what_was_trained_and_how(train, tiny_model):
    card = (train("tdpo").folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\ntags:\n- openrlhf\n- finepref\n- full\n---\n")
    assert f"{tiny_model}, trained on spans.\n" in card
    for line in ("- `learning_rate`: 0.001", "- `batch`: 4", "- `epochs`: 1", "- `seed`: 42", "- `steps`: 3"):
        assert f"{line}\n" in card
    assert "\n## Stage `tdpo`\n" in card


def test_the_small_run_of_the_page_leaves_the_files_of_its_table(train):
    page = (ROOT / "docs/openrlhf.md").read_text(encoding="utf-8")
    block = page[page.index("## A small run") :].split("```bash\n")[1].split("```")[0].replace("\\\n", " ")
    words = shlex.split(block.splitlines()[1])
    assert words[:5] == ["python", "-m", "finepref.hosts.openrlhf.train", "sepo", "--model.model_name_or_path"]
    given: dict[str, object] = {}
    for word in words[4:]:
        if word.startswith("--"):
            name = word.removeprefix("--").replace(".", "__")
            given[name] = True
        else:
            given[name] = word
    del given["ckpt__output_dir"], given["model__model_name_or_path"]
    folder = train("selective", **given).folder
    table = page[page.index("## What a run leaves") :].split("\n\n")[2]
    rows = [line.split(" | ")[0] for line in table.splitlines()[2:]]
    listed = {pattern for row in rows for pattern in re.findall(r"`([^`]+)`", row)}
    files = {file.name for file in folder.iterdir() if file.is_file()}
    assert not {name for name in files if not any(fnmatch(name, pattern) for pattern in listed)}
    missing = {pattern for pattern in listed if not any(fnmatch(name, pattern) for name in files)}
    assert missing <= {"rejected.jsonl", "skipped.jsonl"}
