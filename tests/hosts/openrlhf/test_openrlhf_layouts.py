"""Data sets in other layouts: LLaMA-Factory's own entries by name, public files recognised by their rows."""

from __future__ import annotations

import csv
import json

import pytest
from sample_rows import span_rows

PAIRS = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in span_rows()]


def test_a_ranking_set_of_llamafactory_trains_by_its_own_entry(train, tmp_path):
    rows = [{"instruction": "Add.", "input": row["prompt"], **row} for row in PAIRS]
    for row in rows:
        del row["prompt"]
    (tmp_path / "own.json").write_text(json.dumps(rows))
    columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    entry = {"file_name": "own.json", "ranking": True, "columns": columns}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"own": entry}))
    done = train("tdpo", data__dataset="own", data__dataset_dir=tmp_path, tdpo__masks="none")
    assert done.receipt["rows"]["in_training_set"] == 12
    assert done.receipt["datasets"][0]["formatting"] == "alpaca"


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (lambda row: {**row, "prompt": [{"role": "user", "content": row["prompt"]}]}, "trl_explicit"),
        (
            lambda row: {"question": row["prompt"], "system": "Add.", **{s: row[s] for s in ("chosen", "rejected")}},
            "orca",
        ),
    ],
)
def test_a_public_file_is_recognised_by_its_rows(train, tmp_path, make, layout):
    file = tmp_path / "public.jsonl"
    file.write_text("".join(json.dumps(make(row)) + "\n" for row in PAIRS))
    done = train("tdpo", data__dataset=file, tdpo__masks="none")
    assert done.receipt["rows"]["in_training_set"] == 12
    assert done.receipt["datasets"][0]["formatting"].startswith(layout.split("_")[0])


def test_a_table_in_a_folder_of_shards_is_read(train, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in (0, 1):
        with open(folder / f"{number}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
            writer.writeheader()
            writer.writerows(PAIRS[6 * number : 6 * number + 6])
    done = train("tdpo", data__dataset=folder, tdpo__masks="none")
    assert done.receipt["rows"]["in_training_set"] == 12
    assert done.receipt["datasets"][0]["files"].keys() == {"0.csv", "1.csv"}
