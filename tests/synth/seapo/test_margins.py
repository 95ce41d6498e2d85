"""Margins against a slow float64 computation of every answer from the start."""

from __future__ import annotations

import json

import pytest
import torch
from finepref.cli import app
from finepref.formats.bad_rows import BadRows
from finepref.formats.jsonl import write_jsonl
from finepref.formats.problems import BadData
from finepref.formats.records import Message, Negatives, to_row
from finepref.synth.seapo.margins import margins, summarise
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

RECORDS = [
    Negatives(
        "one",
        (Message("system", "Be brief."), Message("user", "How many?")),
        "There are 12 of them.",
        {"correctness": "There are 13 of them.", "logic": "There are 12 of them", "hallucination": "No, 7."},
    ),
    Negatives("two", (Message("user", "Why?"),), "Because it is so.", {"logic": "Because it is so. It is not."}),
]


def reference(folder, prompt: tuple[Message, ...], text: str) -> float:
    """Mean over the answer's bytes and its end token of log softmax(logits) at the position before, all in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder).double()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dialogue = "".join(f"<{turn.role}>{turn.content}</s>" for turn in prompt) + "<assistant>"
    before = tokenizer(dialogue)["input_ids"]
    ids = before + tokenizer(f"{text}</s>")["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    return sum(logits[i - 1].log_softmax(-1)[ids[i]].item() for i in range(len(before), len(ids))) / (
        len(ids) - len(before)
    )


def test_margins_equal_those_of_each_answer_read_from_the_start(tiny_model, tmp_path):
    data, output = tmp_path / "data.jsonl", tmp_path / "out" / "margins.json"
    write_jsonl(data, map(to_row, RECORDS))
    result = margins(data, output, model=str(tiny_model))
    for record in RECORDS:
        good = reference(tiny_model, record.prompt, record.chosen)
        for name, text in record.negatives.items():
            expected = good - reference(tiny_model, record.prompt, text)
            assert result["records"][record.id][name] == pytest.approx(expected, abs=1e-5)
    assert json.loads(output.read_text()) == result
    assert {name: summary["n"] for name, summary in result["types"].items()} == {
        "correctness": 1,
        "hallucination": 1,
        "logic": 2,
    }


def test_the_summary_counts_means_and_shares():
    """Margins: a 1, b -1 and 3. Means: a 1, b (-1 + 3) / 2 = 1, overall (1 - 1 + 3) / 3 = 1; above 0: 1, 1/2, 2/3."""
    found = summarise({"x": (-1.0, {"a": -2.0, "b": 0.0}), "y": (-2.0, {"b": -5.0})})
    assert found["records"] == {"x": {"a": 1.0, "b": -1.0}, "y": {"b": 3.0}}
    assert found["types"]["a"] == {
        "n": 1,
        "mean": 1.0,
        "share_above_zero": 1.0,
        "chosen_logp": -1.0,
        "negative_logp": -2.0,
    }
    assert found["types"]["b"] == {
        "n": 2,
        "mean": 1.0,
        "share_above_zero": 0.5,
        "chosen_logp": -1.5,
        "negative_logp": -2.5,
    }
    assert (found["overall"]["mean"], found["overall"]["share_above_zero"]) == (1.0, 2 / 3)


def test_a_record_longer_than_the_context_is_named_and_can_be_left_out(tiny_model, tmp_path):
    """`<user>?</s><assistant>` is 6 + 1 + 1 + 11 tokens, the answer 250 and its end token 1: 270."""
    data, output = tmp_path / "data.jsonl", tmp_path / "out.json"
    long = Negatives("long", (Message("user", "?"),), "a" * 250, {"logic": "b"})
    write_jsonl(data, map(to_row, [long, *RECORDS]))
    told = r"FP241 .*data\.jsonl:1: prompt and longest answer have 270 tokens, and the model has room for 256"
    with pytest.raises(BadData, match=told):
        margins(data, output, model=str(tiny_model))
    bad = BadRows(skip=True, max_bad=0.5)
    assert [*margins(data, output, model=str(tiny_model), bad_rows=bad)["records"]] == ["one", "two"]
    assert bad.codes == {"FP241": 1}


def test_bad_data_is_told_before_a_model_is_loaded(tmp_path):
    data = tmp_path / "data.jsonl"
    write_jsonl(data, [{"prompt": "?", "chosen": "a"}])
    with pytest.raises(BadData, match="FP010"):
        margins(data, tmp_path / "out.json", model="/nowhere")


def test_the_command_prints_a_line_per_error_type(tiny_model, tmp_path):
    data, output = tmp_path / "data.jsonl", tmp_path / "margins.json"
    write_jsonl(data, map(to_row, RECORDS))
    arguments = ["seapo", "margins", "--model", str(tiny_model), "--data", str(data), "--output", str(output)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    lines = [line for line in result.stdout.splitlines() if "margin" in line]
    assert [line.split()[0] for line in lines] == ["correctness", "hallucination", "logic", "overall"]
