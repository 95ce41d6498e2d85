"""`finepref apo score` on what the host trained: the rewards of its `do_predict` and of its API."""

from __future__ import annotations

import json

import pytest
from finepref.cli import app
from sample_rows import ranked_rows, write_rows
from typer.testing import CliRunner


def scored(source, output, *words):
    """The rewards by id that the command writes."""
    outcome = CliRunner().invoke(app, ["apo", "score", str(source), "--output", str(output), *map(str, words)])
    assert outcome.exit_code == 0, outcome.output
    rows = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["rewards"] for row in rows}


@pytest.mark.parametrize(("finetuning_type", "pooling"), [("lora", "last"), ("full", "eos")])
def test_scores_are_those_of_do_predict_and_of_the_api(run, tiny_model, tmp_path, finetuning_type, pooling):
    from fastapi.testclient import TestClient
    from llamafactory.api.app import create_app
    from llamafactory.chat import ChatModel

    records = ranked_rows()
    folder = write_rows(tmp_path / "ranked", records, name="lists", formatting="ranked")
    keys = {"dataset": "lists", "dataset_dir": str(folder), "eval_dataset": "lists", "do_predict": True}
    keys |= {"finetuning_type": finetuning_type, "apo_pooling": pooling, "learning_rate": 5e-3}
    done = run(name="apo_rm", **keys)
    lines = map(json.loads, (done.folder / "finepref_scores.jsonl").read_text().splitlines())
    predicted = {line["id"]: line["rewards"] for line in lines}

    words = ("--model", done.folder, "--pooling", pooling)
    source = folder / "lists.jsonl"
    by_template = scored(source, tmp_path / "a.jsonl", *words, "--template", "chatml")
    by_chat_template = scored(source, tmp_path / "b.jsonl", *words)  # which the host has saved with the model
    for record in records:
        assert by_template[record["id"]] == pytest.approx(predicted[record["id"]], abs=1e-4)
        assert by_chat_template[record["id"]] == pytest.approx(predicted[record["id"]], abs=1e-4)

    lora = {"model_name_or_path": str(tiny_model), "adapter_name_or_path": str(done.folder)}
    place = lora if finetuning_type == "lora" else {"model_name_or_path": str(done.folder)}
    api = TestClient(create_app(ChatModel({"stage": "rm", "template": "chatml", **place})))
    end = "<|im_end|>" if pooling == "eos" else ""
    texts = [
        f"<|im_start|>user\n{record['prompt']}<|im_end|>\n<|im_start|>assistant\n{response}{end}"
        for record in records
        for response in record["responses"]
    ]
    answer = api.post("/v1/score/evaluation", json={"model": "reward", "messages": texts})
    told = [value for record in records for value in by_template[record["id"]]]
    assert answer.json()["scores"] == pytest.approx(told, abs=1e-4)
