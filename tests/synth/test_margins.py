"""Margins of several models, against a slow float64 computation of each response, and intervals by hand."""

from __future__ import annotations

import json

import pytest
import torch
from finepref.cli import app
from finepref.formats.jsonl import write_jsonl
from finepref.synth.intervals import bootstrap, shown
from finepref.synth.margins import Model, compared, margins, measure, model_at
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

PAIRS = [
    {"id": "a", "prompt": "1+1?", "chosen": "It is 2.", "rejected": "It is 33."},
    {"id": "b", "prompt": "2+3?", "chosen": "5", "rejected": "7, I guess"},
]
SPANS = [
    PAIRS[0] | {"rejected_spans": [{"start": 6, "end": 8}]},
    PAIRS[1] | {"chosen_spans": [{"start": 0, "end": 1, "weight": 2.0}], "rejected_spans": [{"start": 0, "end": 1}]},
]


@pytest.fixture(scope="module")
def other_model(tiny_model, tmp_path_factory):
    """The tiny model with noise on its weights."""
    folder = tmp_path_factory.mktemp("other") / "noisy"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    generator = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def logps(folder, prompt: str, text: str) -> list[float]:
    """log softmax(logits) of each byte of the answer and its end token, all in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder).double()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = tokenizer(f"<user>{prompt}</s><assistant>")["input_ids"]
    ids = before + tokenizer(f"{text}</s>")["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    return [logits[i - 1].log_softmax(-1)[ids[i]].item() for i in range(len(before), len(ids))]


def run(*words, code=0):
    result = CliRunner().invoke(app, ["margins", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def test_margins_of_pairs_are_those_of_each_response_read_alone_and_a_reference_is_taken_off(
    tiny_model, other_model, tmp_path
):
    data, output = tmp_path / "pairs.jsonl", tmp_path / "margins.json"
    write_jsonl(data, PAIRS)
    run(data, "--model", f"b={other_model}", "--reference", tiny_model, "--output", output)
    found = json.loads(output.read_text())["records"]["b"]
    for row in PAIRS:
        expected = {"sum": 0.0, "mean": 0.0}
        for sign, folder in ((1, other_model), (-1, tiny_model)):
            good, bad = (logps(folder, row["prompt"], row[side]) for side in ("chosen", "rejected"))
            expected["sum"] += sign * (sum(good) - sum(bad))
            expected["mean"] += sign * (sum(good) / len(good) - sum(bad) / len(bad))
        assert found[row["id"]]["rejected"] == pytest.approx(expected, abs=2e-4)


def test_span_measures_weigh_the_tokens_of_spans_and_a_response_without_spans_counts_as_a_whole(tiny_model, tmp_path):
    """A byte is a token: characters 6 and 7 of "It is 33." are tokens 6 and 7; "5" has weight 2, its end token 0."""
    data = tmp_path / "spans.jsonl"
    write_jsonl(data, SPANS)
    values = measure(data, [Model("m", str(tiny_model))], work_dir=tmp_path / "work")["m"]
    good, bad = (logps(tiny_model, "1+1?", PAIRS[0][side]) for side in ("chosen", "rejected"))
    found = margins(values)["a"]["rejected"]
    assert found["span_sum"] == pytest.approx(sum(good) - (bad[6] + bad[7]), abs=1e-4)
    assert found["span_mean"] == pytest.approx(sum(good) / len(good) - (bad[6] + bad[7]) / 2, abs=1e-4)
    good, bad = (logps(tiny_model, "2+3?", PAIRS[1][side]) for side in ("chosen", "rejected"))
    found = margins(values)["b"]["rejected"]
    assert found["span_sum"] == pytest.approx(2 * good[0] - bad[0], abs=1e-4)
    assert found["span_mean"] == pytest.approx(good[0] - bad[0], abs=1e-4)


def one(value):
    return {"mean": value, "sum": 2 * value}


def test_two_models_are_compared_record_by_record():
    """Margins of a: 1, 2, 0; of b: each .5 more. The difference is .5 in every resample, so its interval is a point."""
    values = {
        name: {f"r{i}": {"": one(good + more), "logic": one(0.0)} for i, good in enumerate((1.0, 2.0, 0.0))}
        for name, more in (("a", 0.0), ("b", 0.5))
    }
    found = compared([Model("a", "a"), Model("b", "b")], values)
    assert found["summary"]["a"]["mean"]["logic"]["mean"] == pytest.approx(1.0)
    assert found["summary"]["a"]["sum"]["overall"]["share_above_zero"] == pytest.approx(2 / 3)
    means = [each for each in found["differences"] if (each["measure"], each["type"]) == ("mean", "logic")]
    assert [(each["model"], each["against"], each["n"], each["verdict"]) for each in means] == [
        ("b", "a", 3, "higher")
    ]
    assert (means[0]["difference"], means[0]["interval"]) == (pytest.approx(0.5), pytest.approx([0.5, 0.5]))
    assert means[0]["share_above_zero"]["difference"] == pytest.approx(1 / 3)
    assert means[0]["share_above_zero"]["verdict"] == "not shown"


def test_a_bootstrap_interval_is_that_of_the_mean_and_holds_copies_together():
    """100 values of 0 and 1 in equal parts: standard error .05, so about .5 -+ .098."""
    values = [0.0, 1.0] * 50
    mean, low, high = bootstrap(values)
    assert (mean, low, high) == (0.5, pytest.approx(0.402, abs=0.02), pytest.approx(0.598, abs=0.02))
    copied = bootstrap(values * 4, groups=[*range(100)] * 4)
    assert copied[1:] == pytest.approx((low, high))
    assert bootstrap([3.0]) == (
        3.0,
        pytest.approx(float("nan"), nan_ok=True),
        pytest.approx(float("nan"), nan_ok=True),
    )
    assert [shown(*each) for each in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (float("nan"),) * 2)] == [
        "higher",
        "lower",
        "not shown",
        "not shown",
    ]


def test_a_stopped_job_resumes_and_a_further_model_reads_only_what_is_new(
    tiny_model, other_model, tmp_path, monkeypatch
):
    data, output = tmp_path / "pairs.jsonl", tmp_path / "margins.json"
    write_jsonl(data, PAIRS)
    words = (data, "--output", output, "--batch-tokens", "1", "--model", tiny_model)
    from finepref.synth.scorers import hf

    read, whole = [], hf.Reader.read

    def counted(self, batch):
        if len(read) == 1 and self.network.name_or_path == str(tiny_model):
            raise KeyboardInterrupt
        read.append(batch.items[0].id)
        return whole(self, batch)

    monkeypatch.setattr(hf.Reader, "read", counted)
    assert CliRunner().invoke(app, ["margins", *map(str, words)]).exit_code == 130
    monkeypatch.setattr(hf.Reader, "read", lambda self, batch: read.append(batch.items[0].id) or whole(self, batch))
    run(*words)
    assert sorted(read) == ["a", "b"]
    told = run(*words, "--model", other_model)
    assert len(read) == 4
    assert "noisy against" in told


def test_the_receipt_tells_command_data_and_models_and_a_name_is_given_once(tiny_model, tmp_path):
    data, output = tmp_path / "pairs.jsonl", tmp_path / "margins.json"
    write_jsonl(data, PAIRS)
    told = run(data, "--model", tiny_model, "--output", output, "--measure", "span_sum", code=1)
    assert "no record has the measure span_sum: it needs spans" in told
    receipt = json.loads(output.with_suffix(".receipt.json").read_text())
    assert receipt["data"].keys() == {str(data)}
    assert receipt["models"][tiny_model.name]["weights_sha256"]
    assert receipt["records"] == {tiny_model.name: 2}
    told = run(data, "--model", tiny_model, "--model", tiny_model, "--output", output, code=1)
    assert f"two models have the name {tiny_model.name}: give NAME=PATH" in told
    told = run(data, "--model", "/nowhere", "--output", output, code=1)
    assert "there is no model folder '/nowhere'" in told


def test_an_adapter_is_named_by_its_own_folder_and_brings_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base/model"}))
    assert model_at(f"x={tmp_path}") == Model("x", "base/model", str(tmp_path))
    assert model_at(str(tmp_path)) == Model(tmp_path.name, "base/model", str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no base model"):
        model_at(str(tmp_path))
