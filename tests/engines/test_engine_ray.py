"""Workers of Ray against one process: the same files, also after a kill."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from finepref.cli import app
from finepref.formats.records import Message
from finepref.synth import ray_workers
from finepref.synth.engines import vllm as engine_vllm
from finepref.synth.engines.hf import HfEngine
from finepref.synth.engines.protocol import Request
from finepref.synth.engines.ray import RayEngine
from finepref.synth.engines.vllm import VllmEngine
from finepref.synth.ray_workers import Workers
from finepref.synth.scorers import vllm as scoring_vllm
from finepref.synth.scorers.hf import HfScorer
from finepref.synth.scorers.protocol import Item
from finepref.synth.scorers.ray import RayScorer
from tiny_llama import save_perturbed
from typer.testing import CliRunner

ROWS = 24
ASK = "{error:.12} {question}"
VLLM = ["--engine", "vllm", "--vllm-options", "{enforce_eager: true, max_num_seqs: 4}"]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Questions of different lengths; one whose prompt is longer than the model's 256 positions."""
    path = tmp_path_factory.mktemp("in") / "questions.jsonl"
    rows = [{"prompt": f"Number {i}{'?' * (i % 5)}", "chosen": f"It is {i}."} for i in range(ROWS - 1)]
    rows.append({"prompt": "x" * 300, "chosen": "Long."})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def short_prompts(monkeypatch):
    """The prompt that asks for an error is longer than the tiny model can read."""
    monkeypatch.setattr("finepref.synth.seapo.prompts.ASK", ASK)


def inject(source: Path, folder: Path, model: Path, *more: str) -> list[str]:
    output = ["--output", str(folder / "out.jsonl"), "--work-dir", str(folder / "work")]
    sampling = ["--max-new-tokens", "16", "--temperature", "1", "--batch-size", "4"]
    return ["seapo", "inject", str(source), "--model", str(model), *output, *sampling, *more]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def run(*command) -> None:
    result = CliRunner().invoke(app, inject(*command))
    assert result.exit_code == 1, result.output
    assert "failed requests: 3;" in result.output


def test_two_workers_write_the_files_of_one_process(source, tiny_model, tmp_path):
    run(source, tmp_path / "one", tiny_model)
    run(source, tmp_path / "two", tiny_model, "--workers", "2")
    assert files(tmp_path / "one") == files(tmp_path / "two")
    report = json.loads(files(tmp_path / "one")["out.report.json"])
    texts = {each["text"] for each in report["rejected_texts"]}
    assert len(texts) > ROWS, "random answers"


def test_two_workers_with_vllm_write_the_files_of_one_process(source, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_vllm, "GROUP", 20)
    run(source, tmp_path / "one", tiny_model, *VLLM)
    run(source, tmp_path / "two", tiny_model, *VLLM, "--workers", "2")
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize("more", [["--workers", "2"], VLLM], ids=["ray", "vllm"])
def test_what_was_answered_before_a_kill_is_not_lost(source, tiny_model, tmp_path, more):
    """Killed once the journal has two records; the run that ends it is another time in this process."""
    program = f"from finepref.synth.seapo import prompts; prompts.ASK = {ASK!r}; from finepref.cli import main; main()"
    command = [
        sys.executable,
        "-c",
        program,
        *inject(source, tmp_path / "a", tiny_model, *more),
    ]
    journal = tmp_path / "a" / "work" / "journal.jsonl"
    with open(tmp_path / "log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 2):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    before = journal.read_bytes()
    known = [entry["id"] for line in before.splitlines() for entry in json.loads(line)]
    assert 0 < len(known) < 3 * (ROWS - 1), (tmp_path / "log").read_text()
    again = more if "vllm" in more else []
    run(source, tmp_path / "a", tiny_model, *again)
    assert journal.read_bytes().startswith(before)
    run(source, tmp_path / "b", tiny_model, *again)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_worker_that_cannot_load_its_model_is_one_line(source, tiny_model, tmp_path):
    (tmp_path / "model").mkdir()
    for path in tiny_model.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "Why?", "chosen": "So.", "rejected": "No."}\n')
    models = ["--reference", str(tmp_path / "model"), "--oracle", str(tmp_path / "model")]
    score = ["sepo", "score", str(pairs), "--output", str(tmp_path / "scores.jsonl"), *models]
    for command in (inject(source, tmp_path / "out", tmp_path / "model"), score):
        result = CliRunner().invoke(app, [*command, "--workers", "1"])
        assert result.exit_code == 1
        (line,) = [line for line in result.output.splitlines() if "a worker of Ray failed" in line]
        assert "OSError" in line


def test_groups_hold_every_request_once_and_the_name_is_the_engines(tiny_model):
    asked = [Request(f"{i}", (Message("user", "a" * i),), 4, temperature=float(i % 2)) for i in range(11)]
    for engine in (HfEngine(str(tiny_model), batch_size=3), VllmEngine(str(tiny_model))):
        found = [request for group in engine.groups(asked) for request in group]
        assert sorted(found, key=asked.index) == asked
        assert RayEngine(engine, Workers(count=2)).model == engine.model


@pytest.mark.parametrize(
    "more", [[], ["--engine", "vllm", "--vllm-options", "enforce_eager: true"]], ids=["hf", "vllm"]
)
def test_two_workers_score_the_files_of_one_process(source, tiny_model, tmp_path, monkeypatch, more):
    """In groups of at most 200 tokens or 4 pairs."""
    monkeypatch.setattr(scoring_vllm, "GROUP", 4)
    pairs, oracle = tmp_path / "pairs.jsonl", save_perturbed(tiny_model, tmp_path / "oracle")
    with source.open() as lines, pairs.open("w") as file:
        for i, line in enumerate(lines):
            file.write(json.dumps(json.loads(line) | {"id": f"{i}", "rejected": f"{2 * i}?"}) + "\n")
    for name, workers in (("one", "0"), ("two", "2")):
        command = [
            "sepo",
            "score",
            str(pairs),
            "--output",
            str(tmp_path / name / "out.jsonl"),
            "--oracle",
            str(oracle),
        ]
        command += ["--reference", str(tiny_model), "--batch-tokens", "200", "--workers", workers]
        result = CliRunner().invoke(app, [*command, *more])
        assert result.exit_code == 0, result.output
    assert files(tmp_path / "one") == files(tmp_path / "two")
    report = json.loads(files(tmp_path / "two")["out.report.json"])
    assert (report["scored"], report["dropped"]) == (ROWS - 1, {"context": 1})


def test_workers_read_only_groups_that_are_not_done_and_give_what_is_new(tiny_model):
    """Three groups of two: of one nothing is done, of one half, and the third one's 999 is no token."""
    items = [Item(f"{i}", [5, 6 + i], {"chosen": [token, 0]}) for i, token in enumerate((9, 9, 9, 9, 999, 999))]
    scorer = HfScorer(str(tiny_model), batch_tokens=6)
    assert [[item.id for item in group] for group in scorer.groups(items)] == [["0", "1"], ["2", "3"], ["4", "5"]]
    shared = RayScorer(scorer, Workers(count=2))
    found, alone = (
        {name: sides["chosen"].tolist() for together in each for name, sides in together}
        for each in (shared.logps(items, done=["3", "4", "5"]), scorer.logps(items[:4], done=["3"]))
    )
    assert found == alone
    assert sorted(found) == ["0", "1", "2"]


def test_a_worker_gets_blocks_of_many_groups_and_results_come_before_the_end_of_their_block(monkeypatch):
    """7 groups in 2 blocks, of one worker. The first group's results are here before the last group of its block
    begins, which waits for a file that is written then."""
    monkeypatch.setattr(ray_workers, "BLOCKS", 2)
    with tempfile.TemporaryDirectory() as folder:
        seen = Path(folder) / "seen"

        def start():
            calls = itertools.count()

            def work(groups):
                call = next(calls)
                for place, group in enumerate(groups):
                    deadline = time.monotonic() + 120
                    while call == 0 and place == 2 and not seen.exists() and time.monotonic() < deadline:
                        time.sleep(0.01)
                    yield [call, *group, seen.exists()]

            return work

        found = []
        for result in Workers(count=1).share([[i] for i in range(7)], start):
            found.append(result)
            seen.touch()
    assert sorted(group for _, group, _ in found) == [*range(7)]
    sizes = Counter(call for call, *_ in found)
    assert sorted(sizes.values()) == [3, 4]
    assert [early for call, _, early in found if call == 0][2] is True
