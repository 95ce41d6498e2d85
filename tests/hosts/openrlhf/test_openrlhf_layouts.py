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


def test_a_set_of_a_hub_is_trained_on_and_one_line_says_that_it_cannot_be_read(train, attempt, tmp_path, monkeypatch):
    import datasets

    entry = {"hf_hub_url": "them/set", "split": "test", "formatting": "pair"}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"theirs": entry}))

    def load(name, subset, *, data_dir, split):
        rows = PAIRS if (name, subset, data_dir, split) == ("them/set", None, None, "test") else []
        return datasets.Dataset.from_list([{**row, "system": None} for row in rows])

    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load)
    done = train("tdpo", data__dataset="theirs", data__dataset_dir=tmp_path, tdpo__masks="none")
    assert done.receipt["rows"]["in_training_set"] == 12
    assert done.receipt["datasets"][0]["files"].keys() == {"them--set.parquet"}

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    done = attempt("tdpo", data__dataset="theirs", data__dataset_dir=tmp_path, tdpo__masks="none")
    assert done.code == 1
    assert "FP111 them/set: them/set cannot be read: no network; download the data elsewhere" in done.output
