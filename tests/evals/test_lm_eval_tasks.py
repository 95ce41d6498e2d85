"""Tasks of lm-eval on a tiny model, offline: figures, examples, limits, adapters, what is kept, and refusals."""

from __future__ import annotations

import json
import math
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from finepref.cli import app
from finepref.evals import lm_tasks
from finepref.evals.lm_tasks import Options
from finepref.evals.suites import Wanted
from typer.testing import CliRunner


def evaluate(*words):
    """`finepref eval` in this process; its result, whose output holds both streams."""
    return CliRunner().invoke(app, ["eval", *map(str, words)])


def results(output, name="tiny"):
    return json.loads((output / name / "results.json").read_bytes())


def samples(output, task, name="tiny"):
    lines = (output / name / "samples" / f"{task}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def logp(folder, prompt, answer, adapter=None):
    """The log-probability of a text after another, with the model's own forward pass."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    before, whole = (tokenizer(text)["input_ids"] for text in (prompt, prompt + answer))
    with torch.no_grad():
        logps = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(logps[i - 1, whole[i]].item() for i in range(len(before), len(whole)))


@pytest.fixture(scope="module")
def out(tmp_path_factory, tiny_model, adapter, tasks):
    """A run of both tasks on the model and on its adapter, without examples and with 6 documents each."""
    output = tmp_path_factory.mktemp("out")
    words = ["--include-path", tasks, "--limit", 6, "--num_fewshot", 0, "--model", tiny_model, "--model", adapter]
    made = evaluate("tiny_choice", "tiny_answer", "--output", output, *words)
    assert made.exit_code == 0, made.output
    return output


@pytest.mark.parametrize("name", ["tiny", "lora"])
def test_answers_are_the_log_probabilities_of_the_model_with_its_adapter(out, tasks, tiny_model, adapter, name):
    documents = [json.loads(line) for line in (tasks / "sums.jsonl").read_text().splitlines()]
    rows = samples(out, "tiny_choice", name)
    assert len(rows) == 6
    for i in (0, 5):
        own, choices = adapter if name == "lora" else None, documents[i]["choices"]
        expected = [logp(tiny_model, f"What is {i} + {i}?", f" {choice}", own) for choice in choices]
        assert [each[0] for each in rows[i]["answers"]] == pytest.approx(expected, abs=1e-4)


def test_the_adapter_changes_the_answers(out):
    base, lora = (samples(out, "tiny_choice", name) for name in ("tiny", "lora"))
    assert base[0]["answers"] != lora[0]["answers"]


def test_accuracy_and_confidence_are_those_of_the_answers(out):
    found = results(out)["tasks"]["tiny_choice"]
    right, confidence = [], []
    for row in samples(out, "tiny_choice"):
        logps = [each[0] for each in row["answers"]]
        right.append(logps[1] == max(logps))
        confidence.append(math.exp(max(logps)) / sum(map(math.exp, logps)))
    assert found["metrics"]["acc,none"]["value"] == pytest.approx(sum(right) / 6)
    assert [row["acc,none"] for row in samples(out, "tiny_choice")] == right
    assert found["metrics"]["confidence,none"]["value"] == pytest.approx(sum(confidence) / 6)
    assert found["calibration"]["n"] == 6
    assert (found["n"], found["documents"], found["num_fewshot"]) == (6, 24, 0)


def test_the_receipt_tells_model_adapter_template_versions_and_command(out, tiny_model, adapter):
    receipt = json.loads((out / "lora" / "finepref_eval_receipt.json").read_bytes())
    assert receipt["model"]["path"] == str(tiny_model)
    assert receipt["adapter"]["path"] == str(adapter)
    for part in ("model", "adapter"):
        assert len(receipt[part]["weights_sha256"]) == 64
    assert len(receipt["chat_template_sha256"]) == 64
    assert {"lm_eval", "torch", "transformers", "finepref"} <= receipt["versions"].keys()
    assert [run["tasks"] for run in receipt["runs"]] == [["tiny_choice", "tiny_answer"]]
    settings = results(out, "lora")["tasks"]["tiny_answer"]["settings"]
    assert (settings["limit"], settings["seed"], settings["num_fewshot"]) == (6, 1234, 0)


def test_the_same_command_runs_nothing_again(out, tiny_model, adapter, tasks, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(lm_tasks, "backend", refuse)
    before = (out / "tiny" / "results.json").read_bytes()
    words = ["--include-path", tasks, "--limit", 6, "--num-fewshot", 0, "--model", tiny_model, "--model", adapter]
    made = evaluate("tiny_choice", "tiny_answer", "--output", out, *words)
    assert made.exit_code == 0, made.output
    assert "tiny: 2 of 2 tasks are finished" in made.output
    assert (out / "tiny" / "results.json").read_bytes() == before


def test_other_settings_are_refused_by_name_until_the_user_overwrites(out, tiny_model, tasks):
    words = ["tiny_choice", "--output", out, "--include-path", tasks, "--num-fewshot", 0, "--model", tiny_model]
    made = evaluate(*words, "--limit", 5)
    assert made.exit_code == 1
    (line,) = [line for line in made.output.splitlines() if "FP302" in line]
    assert "holds tiny_choice with other settings: limit 6.0 there, 5.0 now" in line
    assert results(out)["tasks"]["tiny_choice"]["n"] == 6


def test_a_folder_of_another_model_is_refused(out, adapter, tiny_model, tasks):
    words = ["tiny_choice", "--output", out, "--include-path", tasks, "--limit", 6, "--num-fewshot", 0]
    made = evaluate(*words, "--model", f"tiny={adapter}")
    assert made.exit_code == 1
    assert "holds the results of another adapter" in made.output


def test_a_group_has_its_tasks_and_the_mean_over_them(tmp_path, tiny_model, tasks):
    words = ["--model", f"a={tiny_model}", "--model", f"b={tiny_model}", "--include-path", tasks, "--limit", 4]
    made = evaluate("tiny_group", "--output", tmp_path, *words, "--log-samples")
    assert made.exit_code == 0, made.output
    found = results(tmp_path, "a")["tasks"]
    assert found["tiny_group"]["tasks"] == ["tiny_choice", "tiny_answer"]
    assert found["tiny_group"]["n"] == 8
    assert found["tiny_choice"]["num_fewshot"] == 2
    assert samples(tmp_path, "tiny_choice", "a")[0]["arguments"][0][0].count("What is") == 3
    assert results(tmp_path, "b")["tasks"] == found  # the second model finds the tasks loaded: they hold no answers


def answers_in(folder):
    (file,) = folder.rglob("answers_rank0.db")
    with sqlite3.connect(file) as store:
        return store.execute("select count(*) from unnamed").fetchone()[0]


def test_a_run_that_is_killed_resumes_with_the_answers_it_has(tmp_path, tiny_model, tasks, monkeypatch):
    """72 requests; the process is killed in the 40th, and the next one asks only what is not in the store."""
    from lm_eval.models.huggingface import HFLM

    words = ["tiny_choice", "--include-path", tasks, "--model", tiny_model]
    program = [sys.executable, Path(__file__).with_name("killed_eval.py"), "40", *words]
    killed = subprocess.run([*map(str, program), "--output", tmp_path / "killed"], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed" / "tiny" / "tasks").exists()
    kept = answers_in(tmp_path / "killed")
    assert 0 < kept < 40
    calls = []
    original = HFLM._model_call

    def count(self, *given, **named):
        calls.append(1)
        return original(self, *given, **named)

    monkeypatch.setattr(HFLM, "_model_call", count)
    made = evaluate(*words, "--output", tmp_path / "killed")
    assert made.exit_code == 0, made.output
    assert len(calls) == 72 - kept
    whole = evaluate(*words, "--output", tmp_path / "whole")
    assert whole.exit_code == 0, whole.output
    assert results(tmp_path / "killed")["tasks"] == results(tmp_path / "whole")["tasks"]
    assert samples(tmp_path / "killed", "tiny_choice") == samples(tmp_path / "whole", "tiny_choice")
    assert not (tmp_path / "killed" / "tiny" / "work").exists()


def test_the_changes_of_a_suite_reach_the_task(tmp_path, tiny_model, tasks):
    """As HumanEval pass@10: several samples of an answer, and another k of the metric."""
    wanted = Wanted(
        "tiny_best",
        changes={"repeats": 3, "generation_kwargs": {"do_sample": True, "temperature": 1.0}},
        metric_options={"best_of": {"k": [3]}},
    )
    options = Options(include_path=str(tasks), limit=2)
    (loaded,) = lm_tasks.load([wanted], options)
    from finepref.evals.model_folder import Target

    model = lm_tasks.backend(Target("tiny", str(tiny_model)), options)
    found = lm_tasks.run(loaded, model, options, tmp_path)["tiny_best"]
    assert [*found.metrics] == ["best@3,all"]
    assert [len(each["answers"][0]) for each in found.samples] == [3, 3]
    assert found.metrics["best@3,all"]["value"] > 1  # the samples differ


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["tiny_choise"],
            "FP300 tiny_choise: is no suite, no task of finepref's own and none of lm-eval, perhaps tiny_choice",
        ),
        (
            ["tiny_code"],
            "FP303 tiny_code: tiny_code runs code that the model writes: --confirm-run-unsafe-code allows it",
        ),
        (["gsm8k_cot"], "FP301 gsm8k_cot: "),
        (["margins"], "FP303 margins: needs data: --data margins=FILE"),
        (["margins", "--data", "x.jsonl"], "FP001 x.jsonl"),
    ],
)
def test_what_cannot_be_run_is_one_line_before_a_model_is_loaded(
    tmp_path, tiny_model, tasks, monkeypatch, words, told
):
    monkeypatch.setattr(lm_tasks, "backend", None)
    made = evaluate(*words, "--output", tmp_path, "--include-path", tasks, "--model", tiny_model)
    assert made.exit_code == 1
    (line,) = [line for line in made.output.splitlines() if "FP" in line]
    assert told in line
    assert "Traceback" not in made.output


def test_without_a_network_the_line_says_what_to_do(tmp_path, tiny_model, tasks):
    made = evaluate("gsm8k_cot", "--output", tmp_path, "--include-path", tasks, "--model", tiny_model)
    assert "openai/gsm8k" in made.output
    assert "run it once where there is one" in made.output


def test_without_lm_eval_the_line_names_the_extra(tmp_path, tiny_model, monkeypatch):
    import sys

    lm_tasks._manager.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    made = evaluate("mmlu", "--output", tmp_path, "--model", tiny_model)
    assert made.exit_code == 1
    assert 'pip install "finepref[eval]"' in made.output
    assert "Traceback" not in made.output
