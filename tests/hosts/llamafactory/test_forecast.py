"""`finepref validate --stage` says beforehand what the receipt says afterwards, for every shape and policy."""

from __future__ import annotations

import json
import random

import pytest
from finepref.cli import app
from finepref.formats.jsonl import read_jsonl
from sample_rows import write_rows
from typer.testing import CliRunner

FORMATS = {
    "sepo": "pair",
    "tdpo": "span_pair",
    "granular_sft": "span_pair",
    "apo_rm": "ranked",
    "dpo_pl": "ranked",
    "seapo_kto": "negatives",
}
RECIPES = {"tdpo": "tdpo_spans"}
OPTIONS = {
    "sepo": {"sepo_selection": "all"},
    "tdpo": {"tdpo_sides": "two", "tdpo_end_token": True},
    "apo_rm": {"apo_pooling": "eos"},
}
COUNTS = ("read", "in_training_set", "skipped", "rejected", "cut")


def text(draw):
    """A few words, or many; every fourth text begins as many others do."""
    words = [str(draw.randint(100, 999)) for _ in range(draw.randint(1, draw.choice((4, 30))))]
    return " ".join([*(["the answer is"] * draw.choice((0, 0, 0, 12))), *words])


def rows_of(stage, draw, count=60):
    for i in range(count):
        row = {"id": f"{stage}-{i}", "prompt": text(draw)}
        if FORMATS[stage] == "ranked":
            row |= {"responses": [text(draw) for _ in range(3)], "scores": [2, 1, 0]}
        elif stage == "seapo_kto":
            row |= {"chosen": text(draw), "negatives": {name: text(draw) for name in ("logic", "fact")}}
        else:
            row |= {"chosen": text(draw), "rejected": text(draw)}
        if FORMATS[stage] == "span_pair":
            for side in ("chosen", "rejected"):
                end = len(row[side])
                start = draw.randrange(end)
                row[f"{side}_spans"] = [[start, min(end, start + 4)]]
        yield row


@pytest.mark.parametrize("policy", ["host", "keep_prompt", "truncate_left", "skip"])
@pytest.mark.parametrize("stage", FORMATS)
def test_the_forecast_is_what_the_receipt_says(run, tiny_model, tmp_path, stage, policy):
    folder = write_rows(
        tmp_path / "data", list(rows_of(stage, random.Random(stage))), "rows", formatting=FORMATS[stage]
    )
    given = OPTIONS.get(stage, {}) | {"finepref_overlong": policy}
    words = ["validate", "rows", "--dataset-dir", str(folder), "--stage", stage, "--model", str(tiny_model)]
    words += ["--template", "chatml", "--cutoff-len", "64", "--json"]
    words += [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 0, outcome.output
    told = json.loads(outcome.stdout.splitlines()[-1])["forecast"]
    done = run(
        name=RECIPES.get(stage, stage), dataset_dir=str(folder), dataset="rows", cutoff_len=64, max_steps=1, **given
    )
    receipt = done.receipt["rows"]
    receipt["cut"] = {part: count for part, count in receipt["cut"].items() if count}
    assert {name: told[name] for name in COUNTS} == {name: receipt[name] for name in COUNTS}
    assert told["skipped"] or told["cut"]
    file = done.folder / "skipped.jsonl"
    written = [row for _, row in read_jsonl(file, problems=None)] if file.exists() else []
    names = [row["id"] for row in written if "response" not in row]
    assert sorted(row["id"] for row in told["skipped_records"]) == sorted(names)
