"""`finepref apo run` on a tiny model with the real host: a round, killed in each step in turn, ends the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, ranked_rows

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
SAMPLING = {"max_new_tokens": 6, "temperature": 1.0}


@pytest.fixture(scope="module")
def game(tiny_model, tmp_path_factory) -> Path:
    """A YAML with all the data of a game beside it."""
    folder = tmp_path_factory.mktemp("game")
    for name, start in (("human", 0), ("test_human", 30), ("testing_human", 60)):
        write(folder / f"{name}.jsonl", [row for row in ranked_rows(9, start=start) if "kind" not in row])
    for name, start in (("queries", 0), ("test_queries", 4)):
        rows = [{"prompt": f"What is {i} + {i}?", "chosen": f"It is {2 * i}."} for i in range(start, start + 4)]
        write(folder / f"{name}.jsonl", rows)
    files = {name: str(folder / f"{name}.jsonl") for name in ("human", "test_human", "testing_human")}
    files |= {name: str(folder / f"{name}.jsonl") for name in ("queries", "test_queries")}
    settings = {
        "model": str(tiny_model),
        **files,
        "template": "chatml",
        "learning_rates": [1.0e-3],
        "sample": {"n": 2, **SAMPLING},
        "answer": {"n": 1, **SAMPLING},
        "reward": {"recipe": "examples/apo_rm.yaml", "learning_rate": 1e-3, **TINY},
        "policy": {"recipe": "examples/apo_sft.yaml", **TINY},
        "merge": {"recipe": "examples/seapo_export.yaml", "infer_dtype": "float32"},
    }
    (folder / "game.yaml").write_text(yaml.safe_dump(settings))
    return folder / "game.yaml"


def write(path: Path, rows: list[dict]) -> None:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def play(game: Path, output: Path, *overrides: str) -> subprocess.Popen:
    """Start the command in a session of its own."""
    words = [Path(sys.executable).with_name("finepref"), "apo", "run", game, "--output", output, *overrides]
    log = open(output.with_suffix(".log"), "ab")
    return subprocess.Popen(words, stdout=log, stderr=log, cwd=ROOT, start_new_session=True, env=dict(os.environ))


def finished(game: Path, output: Path, *overrides: str) -> list[str]:
    """Play to the end; the steps in their order."""
    process = play(game, output, *overrides)
    assert process.wait(timeout=900) == 0, output.with_suffix(".log").read_text()[-4000:]
    return [line.split()[1] for line in (output / "steps.md").read_text().splitlines() if line.startswith("finepref")]


@pytest.fixture(scope="module")
def whole(game, tmp_path_factory) -> Path:
    """The folder of a game that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole") / "run"
    finished(game, output)
    return output


def test_a_round_ends_in_a_report(whole):
    report = (whole / "report.md").read_text()
    assert "| base |" in report
    assert "| 1 |" in report
    assert (whole / "rounds.png").stat().st_size > 1000
