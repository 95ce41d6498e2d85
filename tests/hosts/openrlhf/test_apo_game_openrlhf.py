"""`finepref apo run` with `host: openrlhf` on a tiny model: a round to its report, and trainings killed in it."""

from __future__ import annotations

import json
import os
import shutil
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from apo_game import STEPS, finish, kill, play, save_game
from finepref.formats.jsonl import write_jsonl
from finepref.formats.records import Message
from finepref.pipelines import openrlhf
from finepref.synth.engines.checkpoint import prompt_ids
from openrlhf_runs import run_forked, tensors
from sample_rows import ranked_rows

TRAINING = {
    "train": {"batch_size": 2, "micro_batch_size": 2, "max_epochs": 2},
    "lr_warmup_ratio": 0.0,
    "ckpt": {"save_steps": 1},
}


@pytest.fixture(scope="module")
def game(tiny_model, tmp_path_factory) -> Path:
    """A YAML with all the data of a game beside it."""
    return save_game(
        tmp_path_factory.mktemp("game"),
        tiny_model,
        partial(ranked_rows, 6),
        host="openrlhf",
        launcher="python -m finepref.hosts.openrlhf.host_cli",
        reward={**TRAINING, "adam": {"lr": 1e-2}, "ds": {"param_dtype": "fp32"}},
        policy={**TRAINING, "ds": {"attn_implementation": "sdpa"}},
    )


@pytest.fixture(scope="module")
def whole(game, warm, tmp_path_factory) -> Path:
    """The folder of a game that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole") / "run"
    finish(game, output, warm)
    return output


def command(folder: Path, step: str) -> list[str]:
    return json.loads((folder / step / "step.json").read_text())["command"]


def test_a_round_has_these_steps_and_ends_in_a_report(whole, tiny_model):
    assert {str(path.parent.relative_to(whole)) for path in whole.rglob("step.json")} == {*STEPS} - {"round_1/merged"}
    rows = [line for line in (whole / "report.md").read_text().splitlines() if line.startswith(("| base ", "| 1 "))]
    assert len(rows) == 3
    receipt = json.loads((whole / "round_1/reward/model/finepref_receipt.json").read_text())
    assert receipt["run"]["host"] == "openrlhf"
    assert [entry["name"] for entry in receipt["datasets"]] == ["human", "apo_1"]
    assert str(tiny_model) in command(whole, "round_1/reward")
    assert "openrlhf.cli.train_sft" in command(whole, "round_1/policy")
    assert str(whole / "round_1/policy/model") in command(whole, "round_1/answers")
    assert not [*whole.rglob("checkpoints")]


def test_a_training_that_is_killed_and_gone_on_with_changes_nothing_that_comes_after(game, warm, whole):
    """All steps behind the scores stay: they would be refused if a reward differed in a single bit."""
    before = (whole / "report.md").read_bytes()
    shutil.rmtree(whole / "round_1/reward")
    shutil.rmtree(whole / "round_1/scored")
    process = play(game, whole, warm)
    latest = whole / "round_1/reward/checkpoints/latest"
    while not (latest.exists() and latest.read_text()):  # it is made before its text is in it
        assert process.poll() is None, whole.with_suffix(".log").read_text()[-4000:]
        time.sleep(0.002)
    kill(process, whole)
    assert "outputs" not in json.loads((whole / "round_1/reward/step.json").read_text())
    finish(game, whole, warm)
    receipt = json.loads((whole / "round_1/reward/model/finepref_receipt.json").read_text())
    assert receipt["first_step"] > 0
    assert (whole / "report.md").read_bytes() == before


def test_the_hosts_train_sft_goes_on_from_a_checkpoint_as_if_it_had_not_been_stopped(host, tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    start = (
        tmp_path / "start"
    )  # in the host's bf16: in a forked process, torch cannot convert it in the loader's threads
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(start)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(start)
    rows = [{"messages": [{"role": r, "content": f"{i} {r}"} for r in ("user", "assistant")]} for i in range(5)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    flags = {**openrlhf.flat({**TRAINING, "ds": {"attn_implementation": "sdpa"}}), "data.input_key": "messages"}
    flags |= {"model.model_name_or_path": start, "data.dataset": tmp_path / "rows.jsonl"}
    flags |= {"data.apply_chat_template": True, "adam.lr": 1e-3, "ckpt.path": tmp_path / "checkpoints"}

    def train(name: str) -> dict:
        words = openrlhf.spelled(flags | {"ckpt.output_dir": tmp_path / name, "ckpt.load_enable": True})
        child = os.fork()
        if child == 0:
            run_forked(
                "finepref.hosts.openrlhf.host_cli", ["openrlhf.cli.train_sft", *words], tmp_path / f"{name}.log"
            )
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == 0, (tmp_path / f"{name}.log").read_text()[-4000:]
        return tensors(tmp_path / name)

    whole = train("whole")
    shutil.rmtree(tmp_path / "checkpoints/global_step4")
    (tmp_path / "checkpoints/latest").write_text("global_step3")
    resumed = train("resumed")
    assert "consumed_samples: 6" in (tmp_path / "resumed.log").read_text()
    for name, tensor in tensors(start).items():
        assert torch.equal(resumed[name], whole[name])
        assert not torch.equal(whole[name], tensor), name


def test_the_host_trains_on_the_prompt_that_is_sampled_and_on_the_response_with_its_end(host, tiny_model):
    """The data set of its train_sft, with the flags of the game, token by token."""
    from datasets import Dataset
    from openrlhf.datasets import SFTDataset
    from transformers import AutoTokenizer

    dialogues = [
        [Message("user", "What is 1 + 1?"), Message("assistant", "It is 2.")],
        [
            Message("system", "Be short."),
            Message("user", "Hello\n"),
            Message("assistant", "Hi"),
            Message("user", " And?"),
            Message("assistant", "So what?\n\nNothing"),
        ],
    ]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    flags = SimpleNamespace(input_key="messages", output_key=None, apply_chat_template=True)
    rows = Dataset.from_list([{"messages": [turn._asdict() for turn in turns]} for turns in dialogues])
    strategy = SimpleNamespace(args=SimpleNamespace(data=flags))
    found = SFTDataset(rows, tokenizer, 512, strategy, input_template="User: {}\nAssistant: ", num_processors=1)
    for turns, (ids, _, loss_mask) in zip(dialogues, found, strict=True):
        prompt = prompt_ids(tokenizer, turns[:-1])
        response = tokenizer(turns[-1].content, add_special_tokens=False)["input_ids"]
        assert ids[0].tolist() == [*prompt, *response, tokenizer.eos_token_id]
        trained = torch.cat((torch.zeros(len(prompt) - 1), torch.ones(len(response) + 1), torch.zeros(1)))
        assert torch.equal(loss_mask[0], trained), "shifted by one: a token's loss is where it is predicted"
