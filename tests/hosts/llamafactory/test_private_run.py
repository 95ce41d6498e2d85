"""A private run of ReverseGen with a canary in every instruction: it is in the run's data files and nowhere else."""

from __future__ import annotations

import json
import stat
from itertools import count
from pathlib import Path

from apo_game import steps_in
from chat_endpoint import answering
from conftest import ROOT
from finepref.formats.jsonl import write_jsonl
from finepref.pipelines.reversegen import reversegen
from finepref.pipelines.settings import call
from finepref.pipelines.steps import Pipeline

CANARY = "canary-5b1f"
DATA = {
    "warmup.jsonl",
    "proposals.jsonl",
    "kept.jsonl",
    "answer.jsonl",
    "judged.jsonl",
    "pairs.jsonl",
    "improve.jsonl",
    "journal.jsonl",
}
"""The data files of a run: rows, and the journals of questions."""


def reply(numbers):
    """What the proposer, the target and the guard say, by what they are asked; every instruction has the canary.

    Of eight instructions in a row three are duplicates. The guard calls answers to odd ones unsafe.
    """

    def answer(text: str) -> dict[str, str]:
        if text.startswith("More like these:"):
            return {"content": f"Say {CANARY} {next(numbers) * 2 // 3}"}
        if text.startswith("Please: "):
            return {"content": f"Well, {text.split()[-1]}: {CANARY}"}
        return {"content": "unsafe\nS10" if int(text.split()[1].rstrip(":")) % 2 else "safe"}

    return answer


def settings(folder: Path, model: Path, url: str) -> dict[str, object]:
    """Two steps of each training on a tiny model; an endpoint answers for all models."""
    for name, start in (("seeds", 0), ("held_out", 10)):
        rows = [{"id": f"{name}-{i}", "prompt": f"Say {CANARY} {i}"} for i in range(start, start + 6)]
        write_jsonl(folder / f"{name}.jsonl", rows)
    asked = {"engine": "openai", "base_url": url, "concurrency": 1, "max_new_tokens": 8}
    training = {"template": "chatml", "finetuning_type": "full", "max_steps": 2, "save_steps": 2, "bf16": False}
    training |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "cutoff_len": 128}
    training |= {"preprocessing_num_workers": 1, "dataloader_num_workers": 0, "plot_loss": False, "warmup_steps": 0}
    training |= {"optim": "adamw_torch", "disable_gradient_checkpointing": True}
    recipes = {"warmup_training": "warmup", "proposer_training": "dpo", "target_training": "target"}
    return {
        "proposer": str(model),
        "target": str(model),
        "rounds": 1,
        "seeds": str(folder / "seeds.jsonl"),
        "held_out": str(folder / "held_out.jsonl"),
        "private": True,
        "ask": "Please: {prompt}",
        "few_shot": {"shots": 2, "template": "More like these:\n{examples}"},
        "warmup": {"n": 4},
        "propose": asked | {"prompts": 2, "n": 4},
        "dedup": {"method": "exact"},
        "answer": asked,
        "judge": asked | {"judge": "guard", "guard": "llama-guard", "model": "guard"},
        "improve": {"template": "I would rather not."},
        "export": {"recipe": str(ROOT / "examples" / "reversegen_export.yaml")},
        **{
            name: training | {"recipe": str(ROOT / "examples" / f"reversegen_{recipe}.yaml")}
            for name, recipe in recipes.items()
        },
    }


def holding(folder: Path) -> list[Path]:
    """The files under a folder that hold the canary."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if CANARY.encode() in path.read_bytes()]


def test_a_canary_is_in_the_data_files_and_in_no_log_report_process_cache_or_terminal(
    tiny_model, warm, tmp_path, monkeypatch, capfd
):
    folders = {name: tmp_path / name for name in ("cache", "temporary", "given")}
    for name, variable in (("cache", "HF_DATASETS_CACHE"), ("temporary", "TMPDIR"), ("given", "FINEPREF_TEST")):
        folders[name].mkdir()
        monkeypatch.setenv(variable, str(folders[name]))
    processes, started = steps_in(warm.address), []

    def popen(words, **options):
        started.append(json.dumps([words, options["env"]]))
        return steps_in(warm.address).Popen(words, **options)

    processes.Popen = popen
    monkeypatch.setattr("finepref.pipelines.steps.subprocess", processes)
    monkeypatch.chdir(ROOT)
    run = tmp_path / "run"
    with answering(reply(count(150))) as endpoint, Pipeline(run) as pipeline:
        given = settings(folders["given"], tiny_model, endpoint.url)
        call(reversegen, given, file=folders["given"] / "x.yaml", pipeline=pipeline)
    found = holding(run)
    assert {path.name for path in found} == DATA
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}
    assert holding(folders["cache"]) == holding(folders["temporary"]) == []
    assert len(started) > 20
    assert [each for each in started if CANARY in each] == []
    assert CANARY not in "".join(capfd.readouterr())
    assert (run / "results.json").exists()
    classes = json.loads((run / "round_1/eval/eval.json").read_text())[
        "classes"
    ]  # of 100 100 101 102, 102 103 104 104
    assert (classes["failing"], classes["solved"], classes["duplicate"]) == (2, 3, 3)
    assert len(list(run.glob("*/train/model/trainer_state.json"))) == 3, "the host has read the rows three times"
    assert (run / "rounds.png").exists()
