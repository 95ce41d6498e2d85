"""`finepref reversegen run` on a tiny model: the whole loop, killed at each kind of step and started again."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from apo_game import steps_in
from conftest import ROOT, host_keys
from finepref.formats.records import Message
from finepref.pipelines.reversegen import reversegen
from finepref.pipelines.settings import call, load
from finepref.pipelines.steps import Pipeline, StepFailed
from finepref.synth.reversegen.instructions import read_dicts
from warm import Child, Warm

PIPELINES = ROOT / "examples" / "pipelines"
TEMPLATE = "More like these:\n{examples}"
GYM = ['operators=["+"]', "max_terms=2", "max_digits=1", "allow_parentheses=false", "allow_negation=false"]


@pytest.fixture(scope="module")
def sum_writer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, trained here to go on from a few-shot prompt with a sum, and to answer sums a little."""
    import random

    import torch
    from finepref.synth.engines.checkpoint import load_model, prompt_ids
    from finepref.synth.reversegen.few_shots import listed

    network, tokenizer = load_model(str(tiny_model), dtype="float32")
    network.train()
    chance, optimizer = random.Random(0), torch.optim.AdamW(network.parameters(), lr=1e-2)

    def dialogue() -> tuple[str, str]:
        a, b, *_ = numbers = [chance.randint(1, 4) for _ in range(6)]
        if chance.random() < 0.5:
            return f"What is {a} + {b}?", f"{a + b}"
        shown = [f"What is {x} + {y}?" for x, y in zip(numbers[2::2], numbers[3::2], strict=True)]
        return TEMPLATE.format(examples=listed(shown)), f"What is {a} + {b}?"

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
    for stage, recipe in (("warmup", "warmup"), ("proposer", "dpo"), ("target", "target")):
        small |= {f"{stage}_training.{key}": value for key, value in trained.items()}
        small[f"{stage}_training.recipe"] = ROOT / "examples" / f"reversegen_{recipe}.yaml"
    small |= {"warmup_training.finetuning_type": "full", "target_training.finetuning_type": "full"}
    small["export.recipe"] = ROOT / "examples" / "reversegen_export.yaml"
    return [f"{key}={value}" for key, value in small.items()]


def loop(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """The command's own work in this process, in `folder`; the steps are processes of their own."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    settings = load(PIPELINES / "reversegen_math_demo.yaml", [*overrides(model), *more])
    with Pipeline("run") as pipeline:
        call(reversegen, settings, file=PIPELINES / "reversegen_math_demo.yaml", pipeline=pipeline)


class Killer:
    """Starts the steps' commands in forks of a warm process, and kills the first of each kind when it has begun."""

    def __init__(self, warm: Warm) -> None:
        self.warm = warm
        self.killed: list[str] = []

    def __call__(self, words: list[str], **more: object) -> Child:
        process = self.warm.popen(words, **more)
        kind = next(word for word in words[1:] if word not in {"reversegen", "data"})
        if kind not in self.killed:
            self.killed.append(kind)
            threading.Thread(target=self.kill, args=(process, kind, words), daemon=True).start()
        return process

    @staticmethod
    def kill(process: Child, kind: str, words: list[str]) -> None:
        """Steps that last are killed between two of their records, the others when they have hardly begun."""
        saved = next((Path(word.removeprefix("output_dir=")) for word in words if "output_dir=" in word), Path("none"))
        marks = {
            "train": saved / "checkpoint-2",  # the host is about to write it; the first is whole
            "propose": Path(words[-1]).with_suffix(".work") / "journal.jsonl",
            "answer": Path(words[-1]).with_suffix(".work") / "journal.jsonl",
        }
        mark = marks.get(kind)
        while (
            process.poll() is None
            and mark is not None
            and not (mark.exists() and (mark.is_dir() or mark.stat().st_size))
        ):
            time.sleep(0.002)
        process.kill()


@pytest.mark.slow
def test_a_run_killed_in_each_kind_of_step_ends_with_the_same_files(sum_writer, warm, tmp_path, monkeypatch, capfd):
    """The killed run is a private one too: what it found is in its data and nowhere else."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    processes = steps_in(warm.address)
    monkeypatch.setattr("finepref.pipelines.steps.subprocess", processes)
    loop(whole, sum_writer, monkeypatch)
    capfd.readouterr()
    killer = processes.Popen = Killer(warm)
    failures: list[str] = []
    while True:
        try:
            loop(cut, sum_writer, monkeypatch, "private=true")
            break
        except StepFailed as error:
            failures.append(str(error))
    kinds = {
        "gym",
        "warmup",
        "train",
        "propose",
        "dedup",
        "validate",
        "answer",
        "judge",
        "eval",
        "pair",
        "export",
        "improve",
    }
    assert {*killer.killed} == kinds
    assert len(failures) == len(kinds)
    assert all("ended with code -9" in failure for failure in failures)
    first, second = results(whole / "run"), results(cut / "run")
    assert first.keys() == second.keys()
    assert [name for name, content in first.items() if second[name] != content] == []

    found = json.loads((cut / "run" / "results.json").read_text())
    assert found["rounds"]["round_1"]["rows"] == found["rounds"]["final"]["rows"] == 36
    assert found["pairs"]["round_1"]["pairs"] > 0
    assert found["before"]["rows"] == found["after"]["rows"] == 8
    told = "".join(capfd.readouterr())
    told += "".join(path.read_text() for path in (cut / "run").rglob("*") if path.name in {"log.txt", "report.md"})
    proposals = (cut / "run").glob("*/propose/proposals.jsonl")
    texts = {row["prompt"] for path in proposals for row in read_dicts(path)}
    assert len(texts) > 8
    assert [text for text in texts if text in told] == []
    open_logs = "".join(path.read_text() for path in (whole / "run").rglob("log.txt"))
    assert any(text in open_logs for text in texts), "the host prints rows, if it is not kept from it"
    assert "## Examples" in (whole / "run" / "report.md").read_text()


def results(folder: Path) -> dict[str, bytes]:
    """What a run made: its data, measures and weights.

    Not what tells times, nor the journals' names for a model (digests of its folder, which tells times), nor peft's
    adapter_config.json, whose list of modules is in any order.
    """
    timed = {"step.json", "trainer_state.json", "trainer_log.jsonl", "train_results.json", "all_results.json"}
    timed |= {"manifest.json", "adapter_config.json"}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in {".json", ".jsonl", ".safetensors"} and path.name not in timed
    }


OF_THIS_HOST = [path.name for path in sorted(PIPELINES.glob("reversegen_*.yaml")) if "openrlhf" not in path.name]


@pytest.mark.parametrize("name", OF_THIS_HOST)
def test_the_keys_of_each_shipped_pipeline_are_those_of_the_loop(name, tmp_path, monkeypatch):
    """The user's own models and files are filled in; each command is then the right one for its options."""
    seen: list[list[str]] = []

    def execute(self, step, words, *rest):
        seen.append(words)
        made = rest[2]
        for path in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"id": "x"}\n' if path.suffix == ".jsonl" else "")
        raise_if_bad(words)
        return {"outputs": {}, "seconds": 0.0}

    monkeypatch.setattr(Pipeline, "_execute", execute)
    monkeypatch.setattr("finepref.pipelines.reversegen_report.write", lambda *args, **kwargs: None)
    monkeypatch.chdir(ROOT)
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text('{"prompt": "Q"}\n')
    own = [f"{key}={seeds}" for key in ("seeds", "held_out")] if "math_demo" not in name else []
    own += [f"{key}=m" for key in ("proposer", "target")]
    own += [f"{key}=m" for key in ("judge.model", "teacher.model") if name == "reversegen_safety.yaml"]
    with Pipeline(tmp_path / "run") as pipeline:
        call(reversegen, load(PIPELINES / name, own), file=PIPELINES / name, pipeline=pipeline)
    assert {words[0] for words in seen} == {"finepref", "llamafactory-cli"}


def raise_if_bad(words: list[str]) -> None:
    """Have our command line parse the words of a step, without running it, and know all keys of the host's."""
    from finepref.cli import app
    from typer.main import get_command

    if words[0] == "finepref":
        context = get_command(app)
        rest = words[1:]
        while hasattr(context, "commands"):
            context, rest = context.commands[rest[0]], rest[1:]
        context.make_context(words[1], rest)
    else:
        keys = {word.partition("=")[0] for word in words[3:]}
        assert words[1] in {"train", "export"}
        assert {"model_name_or_path"} <= keys
        assert {*load(Path(words[2])), *keys} <= host_keys()


def test_settings_that_do_not_go_together_are_refused(tmp_path):
    file = PIPELINES / "reversegen_safety.yaml"
    with Pipeline(tmp_path) as pipeline, pytest.raises(ValueError, match="proposer: Input should be a valid string"):
        call(reversegen, load(file), file=file, pipeline=pipeline)
    given = load(file, ["proposer=m", "target=m", "judge.model=m", "teacher.model=m"])
    with Pipeline(tmp_path) as pipeline, pytest.raises(ValueError, match="give seeds and held_out, or gym"):
        call(reversegen, given, file=file, pipeline=pipeline)
