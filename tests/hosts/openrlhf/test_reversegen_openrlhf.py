"""`finepref reversegen run` with `host: openrlhf` on a tiny model: the loop with its control, stopped once."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from apo_game import steps_in
from finepref.formats.jsonl import write_jsonl
from finepref.pipelines import settings
from finepref.pipelines.reversegen import reversegen
from finepref.pipelines.steps import Pipeline, StepFailed
from openrlhf_runs import tensors

TRAINING = {
    "train": {"batch_size": 2, "micro_batch_size": 2, "max_epochs": 1},
    "data": {"max_len": 256, "max_samples": 4},
    "adam": {"lr": 1e-3},
    "lr_warmup_ratio": 0.0,
    "ckpt": {"save_steps": 1},
    "ds": {"attn_implementation": "sdpa"},
}
LORA = {**TRAINING, "ds": {"attn_implementation": "sdpa", "lora": {"rank": 2}}}


@pytest.fixture
def loop(tiny_model: Path, warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The loop of one round; its steps are forks of a warm process. The target fails where it does not say "is"."""
    for name, start in (("seeds", 0), ("held_out", 20)):
        rows = [{"prompt": f"What is {i} + 1?"} for i in range(start, start + 8)]
        given = [row | {"id": str(i)} for i, row in enumerate(rows)] if name == "held_out" else rows
        write_jsonl(tmp_path / f"{name}.jsonl", given)
    keys = {
        "host": "openrlhf",
        "launcher": "python -m finepref.hosts.openrlhf.host_cli",
        **{name: str(tmp_path / f"{name}.jsonl") for name in ("seeds", "held_out")},
        **dict.fromkeys(("proposer", "target"), str(tiny_model)),
        "rounds": 1,
        "few_shot": {"shots": 2},
        "warmup": {"n": 4},
        "propose": {"prompts": 2, "n": 24, "max_new_tokens": 64, "batch_size": 48},
        "dedup": {"method": "exact"},
        "answer": {"max_new_tokens": 4, "batch_size": 32},
        "judge": {"judge": "contains", "pattern": "is"},
        "improve": {"template": "No.", "control": True},
        "warmup_training": TRAINING,
        "proposer_training": LORA,
        "target_training": LORA,
        "export": {"ds": {"param_dtype": "bf16"}},
    }
    file = tmp_path / "loop.yaml"
    file.write_text(yaml.safe_dump(keys))
    processes = steps_in(warm.address)
    monkeypatch.setattr("finepref.pipelines.steps.subprocess", processes)

    def play() -> None:
        with Pipeline(tmp_path / "run") as pipeline:
            settings.call(reversegen, settings.load(file), file=file, pipeline=pipeline)

    return play, processes


@pytest.mark.slow
def test_the_hosts_sft_and_plain_dpo_train_proposer_target_and_control(loop, tiny_model, tmp_path):
    play, processes = loop
    run, start = tmp_path / "run", processes.Popen

    def killed(words: list[str], **more: object):
        child = start(words, **more)
        if "openrlhf.cli.train_tdpo" in words:
            processes.Popen = start
            child.kill()
        return child

    processes.Popen = killed
    with pytest.raises(StepFailed, match="round_1/train ended with code -9"):
        play()
    play()
    found = json.loads((run / "results.json").read_text())
    assert found["trained"] == {"proposer": [True], "target": True, "control": True}
    assert found["improve"]["records"] > 0
    commands = {
        path.parent.relative_to(run).as_posix(): json.loads(path.read_text())["command"]
        for path in run.rglob("step.json")
    }
    modules = {step: words[3] for step, words in commands.items() if step.endswith("/train")}
    assert modules == {
        "warmup/train": "openrlhf.cli.train_sft",
        "round_1/train": "openrlhf.cli.train_tdpo",
        "improve/train": "openrlhf.cli.train_sft",
        "control/train": "openrlhf.cli.train_sft",
    }
    receipt = json.loads((run / "round_1/train/model/finepref_receipt.json").read_text())
    assert receipt["datasets"][0]["name"] == "pairs"
    folders = (tiny_model, run / "warmup/train/model", run / "round_1/export/model")
    for old, new in pairwise(tensors(Path(folder)) for folder in folders):
        assert any((new[name].float() != old[name].float()).any() for name in old.keys() & new.keys())
    lines = (run / "report.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith(("| after |", "| control |"))]) == 2
