"""One seed of a page of docs/reproduction by its real commands, at reduced size: a model of random weights.

The real model's seed takes minutes, too long here; `make reproduce` runs it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from finepref.pipelines.steps import Pipeline
from tiny_llama import save_chatml_llama

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "reproduce"))

from arms import Runs, every  # noqa: E402
from experiment import PAGES, load  # noqa: E402


def test_a_seed_of_the_page_on_tdpo_falls_into_the_intervals_that_are_stated(tmp_path, warm, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    popen = SimpleNamespace(**vars(subprocess) | {"Popen": warm.popen})
    monkeypatch.setattr("finepref.pipelines.steps.subprocess", popen)
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
