"""`finepref apo run` on a tiny model with the real host: a round, killed in each step in turn, ends the same."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from apo_game import STEPS, finish, play, save_game
from conftest import ranked_rows

TINY = {
    "finetuning_type": "lora",
    "lora_rank": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_steps": 2,
    "save_steps": 1,
    "bf16": False,
    "warmup_steps": 0,
    "logging_steps": 1,
    "plot_loss": False,
    "preprocessing_num_workers": 1,
    "dataloader_num_workers": 0,
}


@pytest.fixture(scope="module")
def game(tiny_model, tmp_path_factory) -> Path:
    """A YAML with all the data of a game beside it."""
    return save_game(
        tmp_path_factory.mktemp("game"),
        tiny_model,
        partial(ranked_rows, 9),
        template="chatml",
        reward={"recipe": "examples/apo_rm.yaml", "learning_rate": 1e-2, **TINY},
        policy={"recipe": "examples/apo_sft.yaml", **TINY},
        merge={"recipe": "examples/seapo_export.yaml", "infer_dtype": "float32"},
    )


def kill_in(step: str, game: Path, output: Path) -> None:
    """Play until the step's command has begun to write, or has run for a second, and kill all processes.

    Two trainings, one of each kind, are killed after their first checkpoint instead.
    """
    process = play(game, output)
    log = output / step / "log.txt"
    while not log.exists():
        assert process.poll() is None, output.with_suffix(".log").read_text()[-4000:]
        time.sleep(0.02)
    if step in ("base/reward", "round_1/policy"):
        while not list(log.parent.glob("model/checkpoint-*/trainer_state.json")):
            assert process.poll() is None, output.with_suffix(".log").read_text()[-4000:]
            time.sleep(0.02)
    begun = time.monotonic()
    while time.monotonic() < begun + 1 and not list(log.parent.rglob("*.jsonl")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def whole(game, tmp_path_factory) -> Path:
    """The folder of a game that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole") / "run"
    finish(game, output)
    return output


def test_a_round_has_these_steps_and_ends_in_a_report_and_plots(whole):
    found = {str(path.parent.relative_to(whole)) for path in whole.rglob("step.json")}
    assert found == {*STEPS}
    report = (whole / "report.md").read_text()
    rows = [line.split("|")[1:-1] for line in report.splitlines() if line.startswith(("| base ", "| 0 ", "| 1 "))]
    assert [row[0].strip() for row in rows] == ["base", "1", "0", "1"]
    human, *_ = (json.loads((whole / f"round_{i}/eval/eval.json").read_text())["human"] for i in (1, 0))
    assert rows[1][1].strip() == f"{human['rewards/accuracies']:.4f}"
    assert rows[2][5].strip() == "0.5000", "answers against themselves are ties"
    assert (whole / "rounds.png").stat().st_size > 1000
    assert "round_1/policy/model" in (whole / "steps.md").read_text()


def test_the_reward_model_of_a_round_starts_from_the_base_model_and_sees_both_kinds(whole, tiny_model):
    receipt = json.loads((whole / "round_1/reward/model/finepref_receipt.json").read_text())
    assert [entry["name"] for entry in receipt["datasets"]] == ["human", "apo_1"]
    words = json.loads((whole / "round_1/reward/step.json").read_text())["command"]
    assert f"model_name_or_path={tiny_model}" in words
    assert not [word for word in words if word.startswith("adapter_name_or_path")]


def test_a_game_killed_in_each_step_in_turn_ends_with_the_same_report(game, whole, tmp_path):
    output = tmp_path / "run"
    for step in STEPS:
        kill_in(step, game, output)
        record = json.loads((output / step / "step.json").read_text())
        print(step, "finished" if "outputs" in record else "killed")
    finish(game, output)
    for name in ("report.md", "rounds.png"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()
