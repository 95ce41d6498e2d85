"""`finepref reversegen run` on a tiny model: the whole loop, killed at each kind of step and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

PIPELINES = ROOT / "examples" / "pipelines"
TEMPLATE = "More like these:\n{examples}"

GYM = ['operators=["+"]', "max_terms=2", "max_digits=1", "allow_parentheses=false", "allow_negation=false"]


@pytest.fixture(scope="module")
def sum_writer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, trained here to go on from a few-shot prompt with a sum of digits, and to answer sums a little."""
    import random

    import torch
    from finepref.synth.engine_hf import load_model, prompt_ids
    from finepref.synth.reversegen import listed

    network, tokenizer = load_model(str(tiny_model), dtype="float32")
    network.train()
    chance, optimizer = random.Random(0), torch.optim.AdamW(network.parameters(), lr=1e-2)

    def dialogue() -> tuple[str, str]:
        a, b, *_ = numbers = [chance.randint(1, 4) for _ in range(6)]
        if chance.random() < 0.5:
            return f"What is {a} + {b}?", f"{a + b}"
        shown = [f"What is {x} + {y}?" for x, y in zip(numbers[2::2], numbers[3::2], strict=True)]
        return TEMPLATE.format(examples=listed(shown)), f"What is {a} + {b}?"

    from finepref.formats.records import Message

    for _ in range(150):
        rows = []
        for _ in range(16):
            asked, said = dialogue()
            prompt = prompt_ids(tokenizer, (Message("user", asked),))
            answer = [*tokenizer(said, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            rows.append((prompt + answer, [-100] * len(prompt) + answer))
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
        labels = torch.tensor([marks + [-100] * (width - len(marks)) for _, marks in rows])
        optimizer.zero_grad()
        network(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("sum_writer")
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def overrides(model: Path) -> list[str]:
    """What makes a small run of the demo's YAML."""
    small = {
        "proposer": model,
        "target": model,
        "rounds": 1,
        "gym.seeds": 20,
        "gym.held_out": 8,
        "gym.option": json.dumps(GYM),
        "few_shot": json.dumps({"shots": 2, "template": TEMPLATE}),
        "ask": "'{prompt}'",
        "warmup.n": 8,
        "propose": "{prompts: 6, n: 6, max_new_tokens: 12, batch_size: 16}",
        "answer.max_new_tokens": 4,
        "evaluate.sample": 8,
    }
    trained = {"lora_rank": 2, "max_steps": 2, "save_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": 2}
    trained |= {"plot_loss": "false", "learning_rate": 1e-4}
    for stage in ("warmup", "proposer", "target"):
        small |= {f"{stage}_training.{key}": value for key, value in trained.items()}
    return [f"{key}={value}" for key, value in small.items()]


def test_run(sum_writer):
    print(sum_writer)
    import shutil

    shutil.rmtree("/work/scratch/rgen/sw", ignore_errors=True)
    shutil.copytree(sum_writer, "/work/scratch/rgen/sw")
    print(" ".join(map(__import__("shlex").quote, overrides(Path("/work/scratch/rgen/sw")))))
