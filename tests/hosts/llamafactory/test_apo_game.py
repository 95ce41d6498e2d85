"""`finepref apo run` on a tiny model with the real host: a round, killed in each kind of step, ends the same.

That a step can be killed and started again is the mechanism of all steps, proven in tests/pipelines/test_steps.py;
what is proven here is that the commands of each kind take up again what they were at.
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

import pytest
from apo_game import STEPS, finish, kill, play, save_game
from sample_rows import ranked_rows
from warm import Warm

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


# The first step of each command, -> the file in its folder that shows that it is in the middle of its work; without
# one it is killed when it has been started.
KILLED = {
    "data/human": None,
    "base/reward": "model/checkpoint-1/trainer_state.json",
    "base/scored": "*.work/*.jsonl",
    "round_0/answers": "*.work/*.jsonl",
    "round_0/eval": None,
    "round_1/pairs": None,
    "round_1/selected": None,
    "round_1/policy": "model/checkpoint-1/trainer_state.json",
    "round_1/merged": None,
}


def kill_in(step: str, mark: str | None, game: Path, output: Path, warm: Warm) -> None:
    """Play until the step is at its mark, and kill all processes."""
    process = play(game, output, warm)
    folder = output / step
    while not ((folder / "log.txt").exists() and (mark is None or list(folder.glob(mark)))):
        assert process.poll() is None, output.with_suffix(".log").read_text()[-4000:]
        time.sleep(0.002)
    kill(process, output)


@pytest.fixture(scope="module")
def whole(game, tmp_path_factory) -> Path:
    """The folder of a game that nothing disturbed, every step of it in a new process as users have it."""
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


def commands(folder: Path) -> dict[str, str]:
    """Step -> its command without what it works on: `finepref apo score`, `llamafactory-cli train FILE`."""
    found = {step: json.loads((folder / step / "step.json").read_text())["command"] for step in STEPS}
    return {step: " ".join(words[: 2 if words[1] in ("convert", "export") else 3]) for step, words in found.items()}


def test_a_game_killed_in_each_kind_of_step_ends_with_the_same_report(game, whole, tmp_path, warm):
    told = commands(whole)
    assert len({told[step] for step in KILLED}) == len(KILLED), "each kind once"
    assert {told[step] for step in KILLED} == {*told.values()}, "and all of them"
    output = tmp_path / "run"
    for step, mark in KILLED.items():
        kill_in(step, mark, game, output, warm)
        assert "outputs" not in json.loads((output / step / "step.json").read_text()), f"{step} was finished"
    finish(game, output, warm)
    for name in ("report.md", "rounds.png"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()
