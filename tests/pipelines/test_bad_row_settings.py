"""The settings bad_rows and max_bad of a pipeline reach every step that reads rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from finepref.pipelines import settings
from finepref.pipelines.apo import apo
from finepref.pipelines.reversegen import reversegen
from finepref.pipelines.steps import Pipeline

ROOT = Path(__file__).parents[2]
READ_ROWS = {
    *(("reversegen", name) for name in ("warmup", "propose", "validate", "answer", "pair", "improve", "eval")),
    ("dedup",),
    ("judge",),
    ("convert",),
    ("apo", "sample"),
    ("apo", "pair"),
}


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """The finepref commands of a pipeline; every step writes a row, and the run ends where it needs more."""

    def plan(pipeline, file, *overrides):
        found = []

        def run(self, step, command, *, inputs=(), outputs, environment=None, private=False):
            for path in outputs:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text('{"id": "x", "label": true}\n' if path.suffix == ".jsonl" else "")
            self.path(step).mkdir(parents=True, exist_ok=True)
            words = [str(word) for word in command]
            if words[0] == "finepref":
                found.append(words[1:])
            self.steps[step] = {"command": words, "seconds": 1.0}

        monkeypatch.setattr(Pipeline, "run", run)
        monkeypatch.chdir(ROOT)
        with Pipeline(tmp_path / "run") as started, pytest.raises((ValueError, OSError)):
            settings.call(pipeline, settings.load(file, overrides), file=file, pipeline=started)
        return found

    return plan


@pytest.fixture
def apo_file(tmp_path):
    keys = {name: f"{name}.jsonl" for name in ("queries", "human", "test_queries", "test_human", "testing_human")}
    keys |= {"model": "an/llm", "template": "default", "learning_rates": [2e-6], "merge": {"recipe": "x.yaml"}}
    keys |= {"sample": {"n": 4}, "answer": {"n": 1}, "golden": {"engine": "openai", "model": "m"}}
    keys |= {"reward": {"recipe": "examples/apo_rm.yaml"}, "policy": {"recipe": "examples/apo_sft.yaml"}}
    file = tmp_path / "apo.yaml"
    file.write_text(yaml.safe_dump(keys))
    return file


def names_of(words):
    return tuple(words[:2]) if words[0] in {"reversegen", "apo"} else (words[0],)


@pytest.mark.parametrize("name", ["reversegen_math.yaml", "apo"])
def test_bad_rows_and_max_bad_reach_every_step_that_reads_rows(commands, apo_file, name):
    file = apo_file if name == "apo" else ROOT / "examples" / "pipelines" / name
    pipeline = apo if name == "apo" else reversegen
    plain = commands(pipeline, file)
    assert not any("--bad-rows" in words for words in plain)
    skipping = commands(pipeline, file, "bad_rows=skip", "max_bad=2%")
    assert [names_of(words) for words in skipping] == [names_of(words) for words in plain]
    reading = [words for words in skipping if names_of(words) in READ_ROWS]
    assert len({names_of(words) for words in reading}) >= 3
    for words in reading:
        if words[0] != "convert":  # which leaves bad rows out if it accepts a share of them
            assert words[words.index("--bad-rows") + 1] == "skip"
        assert words[words.index("--max-bad") + 1] == "2%"


def test_a_share_that_is_none_stops_the_run_before_its_first_step(commands, apo_file):
    assert commands(apo, apo_file, "max_bad=x") == []
    assert commands(reversegen, ROOT / "examples" / "pipelines" / "reversegen_math.yaml", "max_bad=x") == []
