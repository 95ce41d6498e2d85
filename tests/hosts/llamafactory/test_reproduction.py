"""One seed of a page of docs/reproduction by its real commands, at reduced size: a model of random weights.

The real model's seed takes minutes, too long here; `make reproduce` runs it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from finepref.pipelines.steps import Pipeline
from tiny_llama import save_chatml_llama

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "reproduce"))

from arms import Runs, every  # noqa: E402
from experiment import PAGES, Experiment, Tuning, load  # noqa: E402

FAST = {
    "template": "chatml",
    "cutoff_len": 256,
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "logging_steps": 1,
    "save_only_model": True,
    "plot_loss": False,
    "preprocessing_num_workers": 1,
    "dataloader_num_workers": 0,
    "bf16": False,
}
WRITE = """
import json, sys
from pathlib import Path
model, output = map(Path, sys.argv[1:])
steps = json.loads((model / "trainer_state.json").read_text())["max_steps"]
named = model.parent.name == "more"
metrics = dict(steps=dict(value=steps), named=dict(value=float(named)))
(output / "results.json").write_text(json.dumps(dict(tasks=dict(last=dict(metrics=metrics)))))
"""


@pytest.fixture
def in_warm_processes(warm, monkeypatch):
    """Steps of a pipeline run in processes that have loaded the host."""
    monkeypatch.chdir(ROOT)
    popen = SimpleNamespace(**vars(subprocess) | {"Popen": warm.popen})
    monkeypatch.setattr("finepref.pipelines.steps.subprocess", popen)


def test_an_arm_has_its_best_learning_rate_and_trains_again_on_rows_that_its_run_made(
    tmp_path, in_warm_processes, capsys
):
    (tmp_path / "measure.py").write_text(WRITE)
    rows = "python reproduce/tasks.py reviews --part {part} --n 4 --output {{output}}"
    experiment = Experiment(
        page=tmp_path,
        paper="P",
        seeds=1,
        datasets={"pairs": {"formatting": "pair"}},
        steps={"pairs": rows.format(part="pairs")},
        train={"recipe": "examples/tdpo_hh.yaml", "dataset": "pairs", "model_name_or_path": "", **FAST},
        tune=Tuning(
            arms=["a"],
            key="learning_rate",
            values=[1.0e-9, 1.0e-2],
            figure="train loss",
            expected="lower",
            measures={},
        ),
        arms={"a": {"tdpo_variant": "dpo", "tdpo_alpha": None, "warmup_steps": 0}},
        own={"rows": {"columns": {"prompt": "instruction", "response": "output"}}},
        then={
            "rows": rows.format(part="sft"),
            "more": {"recipe": "examples/sepo_ref_sft.yaml", "dataset": "rows", "model_name_or_path": "", **FAST},
        },
        measures={"last": f"python {tmp_path / 'measure.py'} {{last}} {{output}}"},
        figures={"last steps": "steps"},
        claims=[],
    )
    model = save_chatml_llama(tmp_path / "model")
    for again in (False, True):
        with Pipeline(tmp_path / "runs") as pipeline:
            runs = Runs(experiment, pipeline, model=model)
            (found,) = every(runs, 1)
        assert runs.tuning["best"] == {"a": 1.0e-2}
        slow, fast = runs.tuning["values"]["a"].values()
        assert fast < slow
        assert found.receipt["run"]["optimizer"]["learning_rate"] == 1.0e-2
        assert (found.figures["last named"].value, found.figures["last steps"].value) == (1.0, 2.0)
        done = capsys.readouterr().out.count("already done")
        assert done == (11 if again else 0)  # the pairs, and thrice a training, rows and another training; one measure


def test_a_seed_of_the_page_on_tdpo_falls_into_the_intervals_that_are_stated(tmp_path, in_warm_processes, capsys):
    experiment, model = load(PAGES / "tdpo", small=True), save_chatml_llama(tmp_path / "model")
    stated = json.loads((PAGES / "tdpo" / "small.json").read_text())
    with Pipeline(tmp_path / "runs") as pipeline:
        found = every(Runs(experiment, pipeline, model=model), 1)
    assert stated.keys() == {"eval_kl/chosen", "eval_kl/rejected", "eval_margin"}
    for name, arms in stated.items():
        assert arms.keys() == {run.label for run in found} == {"dpo", "tdpo1"}
        for run in found:
            low, high = arms[run.label]["interval"]
            assert low <= run.figures[name].value <= high, (run.label, name)
    first, second = (run.figures["eval_kl/chosen"].value for run in found)
    assert first != second
    capsys.readouterr()
    with Pipeline(tmp_path / "runs") as pipeline:
        every(Runs(experiment, pipeline, model=model), 1)
    assert capsys.readouterr().out.count("already done") == 4  # two files of rows, two trainings
