"""Every shape trains on the host's own sets with tools; what the template cannot write is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finepref.formats.problems import CODES
from sample_rows import span_rows, write_rows

TOOLS = [
    {
        "name": "add",
        "description": "Adds numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
    }
]
PAIRS = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in span_rows()]
CALL = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2, "b": 3}}'}


def talk(row: dict) -> list[dict]:
    return [{"from": "human", "value": row["prompt"]}, CALL, {"from": "observation", "value": "5"}]


def ranking(row: dict) -> dict:
    """Every other row's better response is a call."""
    sides = {side: {"from": "gpt", "value": row[side]} for side in ("chosen", "rejected")}
    if len(row["prompt"]) % 2:
        sides["chosen"] = CALL
    return {"conversations": talk(row), "tools": json.dumps(TOOLS), **sides}


def tagged(row: dict, *, good: bool) -> dict:
    turn = {"from": "gpt", "value": row["chosen" if good else "rejected"]}
    return {"conversations": [*talk(row), turn], "tools": json.dumps(TOOLS), "good": good}


@pytest.fixture
def own_sets(tmp_path) -> Path:
    """A dataset_dir with a ranking set, `own`, and a kto_tag set, `tagged`."""
    columns = {"messages": "conversations", "tools": "tools"}
    sets = {
        "own": ([*map(ranking, PAIRS)], {"ranking": True}, {"chosen": "chosen", "rejected": "rejected"}),
        "tagged": ([tagged(row, good=bool(i % 2)) for i, row in enumerate(PAIRS)], {}, {"kto_tag": "good"}),
    }
    entries = {}
    for name, (rows, keys, more) in sets.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        entries[name] = {"file_name": f"{name}.json", "formatting": "sharegpt", "columns": columns | more, **keys}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    return tmp_path


RUNS = {
    "tdpo_hh": {"tdpo_masks": "none", "template": "llama3", "finetuning_type": "lora"},
    "sepo": {"sepo_selection": "all", "template": "qwen"},
    "seapo_kto": {"dataset": "tagged", "template": "chatml"},
    "apo_rm": {"template": "mistral", "finetuning_type": "lora"},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_set_of_the_host_with_tools_trains_by_its_own_entry(run, own_sets, name):
    done = run(**{"name": name, "dataset": "own", "dataset_dir": str(own_sets), "resize_vocab": True, **RUNS[name]})
    assert done.receipt["rows"]["in_training_set"] == done.receipt["rows"]["read"] == 12
    assert done.receipt["datasets"][0]["formatting"] == ("sharegpt_kto" if name == "seapo_kto" else "sharegpt")


BARE = [{"name": "add", "parameters": {}}]  # chatml's tool format wants parameters.properties
ROWS = [row | {"tools": TOOLS if i % 4 else BARE} for i, row in enumerate(PAIRS)]


def test_rows_whose_tools_the_template_cannot_write_are_refused_with_file_line_and_field(refused):
    message = refused(ROWS, {"formatting": "pair"}, name="tdpo_hh", dataset="sums")
    for line in (1, 5, 9):
        assert f"sums.jsonl:{line} tools: the template cannot write the tools: KeyError: 'properties'" in message
    assert message.count("FP242") == 3


def test_rows_whose_tools_the_template_cannot_write_may_be_skipped_and_are_counted(run, tmp_path):
    folder = write_rows(tmp_path / "rows", ROWS, formatting="pair")
    allowed = {"finepref_bad_rows": "skip", "finepref_max_bad": "50%"}
    done = run(name="tdpo_hh", dataset="sums", dataset_dir=str(folder), finetuning_type="lora", **allowed)
    assert done.receipt["rows"]["rejected"] == {"FP242": 3}
    assert done.receipt["rows"]["in_training_set"] == 9
    assert "template" in CODES["FP242"]


def test_the_forecast_refuses_the_same_rows(tmp_path, tiny_model):
    from finepref.cli import app
    from typer.testing import CliRunner

    write_rows(tmp_path / "rows", ROWS, formatting="pair")
    asked = ["--stage", "tdpo", "--set", "tdpo_masks=none", "--cutoff-len", "512", "--template", "chatml"]
    file = str(tmp_path / "rows" / "sums.jsonl")
    result = CliRunner().invoke(app, ["validate", file, "--json", "--model", str(tiny_model), *asked])
    told = json.loads(result.stdout)["forecast"]
    assert told["rejected"] == {"FP242": 3}
    assert [each["place"].rpartition(":")[2] for each in told["rejected_records"]] == ["1", "5", "9"]
