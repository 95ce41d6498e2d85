"""`finepref apo score`: rewards from the files of both hosts, against plain forwards of one text each."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from finepref.cli import app
from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.formats.problems import BadData
from finepref.synth.apo.reward_model import RewardModel
from finepref.synth.apo.score import read_scorable, score
from finepref.synth.journal import JournalChanged
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

SAMPLES = [
    {"query_id": 1, "query": "Why?", "sample_0": "Because.", "sample_1": "", "sample_2": "No.\n\nHuman: And?"},
    {
        "query_id": "two",
        "query": "\n\nHuman: How many?\n\nAssistant: Of what?\n\nHuman: Of these.\n\nAssistant:",
        "sample_0": " Twelve of them, as far as anyone can tell.",
        "sample_1": " 12",
    },
]


@pytest.fixture(scope="module")
def llamafactory(tiny_model, tmp_path_factory):
    """What LLaMA-Factory saves of a full run: the decoder with its output head, and the value head beside it."""
    folder = tmp_path_factory.mktemp("llamafactory") / "model"
    shutil.copytree(tiny_model, folder)
    torch.manual_seed(3)
    head = {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.tensor([0.75])}
    save_file(head, folder / "value_head.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def openrlhf(llamafactory, tmp_path_factory):
    """What OpenRLHF saves: decoder and head in one file, no output head, the head's name in config.json."""
    folder = tmp_path_factory.mktemp("openrlhf") / "model"
    shutil.copytree(llamafactory, folder)
    head = load_file(folder / "value_head.safetensors")
    (folder / "value_head.safetensors").unlink()
    tensors = load_file(folder / "model.safetensors")
    tensors["value.weight"] = head["v_head.summary.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"value_head_prefix": "value"}))
    return folder


@pytest.fixture
def samples(tmp_path):
    write_jsonl(tmp_path / "samples.jsonl", SAMPLES)
    return tmp_path / "samples.jsonl"


def rows_of(path):
    return [row for _, row in read_jsonl(path, problems=None)]


def scored(source, output, folder, **options):
    score(source, output, model=RewardModel(folder, **options))
    return rows_of(output)


def alone(folder, text, bias=0.75, pooling="last"):
    """The reward at the end of a text, by a plain forward in float64."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).double(), AutoTokenizer.from_pretrained(folder)
    weight = load_file(folder / "value_head.safetensors")["v_head.summary.weight"][0].double()
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states[-1][0]
    pooled = {"last": hidden[-1], "mean": hidden.mean(0), "max": hidden.amax(0)}[pooling]
    return (pooled @ weight).item() + bias


TEXTS = {
    "1": ["<user>Why?</s><assistant>Because.", None, "<user>Why?</s><assistant>No.\n"],
    "two": [
        f"<user>How many?</s><assistant>Of what?</s><user>Of these.</s><assistant>{text}"
        for text in ("Twelve of them, as far as anyone can tell.", "12")
    ],
}


def test_rewards_are_those_of_each_text_alone_an_empty_sample_has_none(samples, llamafactory, tmp_path):
    """The chat template has no word for the assistant but <assistant>; HH's layout gives the turns."""
    rows = scored(samples, tmp_path / "scored.jsonl", llamafactory, batch_tokens=100)
    assert [row["id"] for row in rows] == ["1", "two"]
    assert rows[0]["responses"] == ["Because.", "", "No.\n"]
    for row in rows:
        for value, text in zip(row["rewards"], TEXTS[row["id"]], strict=True):
            assert value == (None if text is None else pytest.approx(alone(llamafactory, text), abs=1e-5))


def test_the_files_of_openrlhf_give_the_same_rewards_without_a_bias(samples, llamafactory, openrlhf, tmp_path):
    one = scored(samples, tmp_path / "one.jsonl", llamafactory)
    other = scored(samples, tmp_path / "other.jsonl", openrlhf)
    for row, again in zip(one, other, strict=True):
        for value, repeated in zip(row["rewards"], again["rewards"], strict=True):
            assert value == repeated is None or value - 0.75 == pytest.approx(repeated, abs=1e-5)


@pytest.mark.parametrize("pooling", ["eos", "mean", "max"])
def test_the_reward_is_read_where_the_model_was_trained_to(samples, llamafactory, tmp_path, pooling):
    row = scored(samples, tmp_path / "scored.jsonl", llamafactory, pooling=pooling)[1]
    how = "last" if pooling == "eos" else pooling
    for value, text in zip(row["rewards"], TEXTS["two"], strict=True):
        assert value == pytest.approx(alone(llamafactory, f"{text}</s>", pooling=how), abs=1e-5)


def test_a_long_text_loses_its_beginning_and_all_responses_keep_the_same_prompt(samples, llamafactory, tmp_path):
    """Of 60 tokens the longer response has 43 with its end token; 17 are left for the prompt, before both."""
    outcome = score(samples, tmp_path / "scored.jsonl", model=RewardModel(llamafactory, cutoff_len=60))
    assert outcome[:4] == (2, 5, 1, 2)
    assert outcome.cut_rows == {"two": "prompt"}
    tokenizer = AutoTokenizer.from_pretrained(llamafactory)
    for value, text in zip(rows_of(tmp_path / "scored.jsonl")[1]["rewards"], TEXTS["two"], strict=True):
        ids = tokenizer(text)["input_ids"]
        response = text.rpartition("<assistant>")[2]
        kept = tokenizer.decode(ids[-len(response) - 17 :])
        assert value == pytest.approx(alone(llamafactory, kept), abs=1e-5)


def test_a_response_that_is_longer_than_the_sequence_is_cut_and_counted(samples, llamafactory, tmp_path):
    """Of 40 tokens one is the prompt's last, and 39 are the response's first."""
    outcome = score(samples, tmp_path / "s.jsonl", model=RewardModel(llamafactory, cutoff_len=40))
    assert outcome.cut_rows == {"two": "prompt,response"}
    assert outcome.cut_counts == {"prompt": 1, "response": 1}
    values = rows_of(tmp_path / "s.jsonl")[1]["rewards"]
    text = "Twelve of them, as far as anyone can tell."
    assert values[0] == pytest.approx(alone(llamafactory, f">{text[:39]}"), abs=1e-5)
    assert values[1] == pytest.approx(alone(llamafactory, ">12"), abs=1e-5)


def test_a_model_of_openrlhf_reads_the_end_token_of_a_response_that_is_cut(samples, llamafactory, openrlhf, tmp_path):
    """As in its training: of 39 tokens of the response 38 are its first, and the last is its end token."""
    outcome = score(samples, tmp_path / "s.jsonl", model=RewardModel(openrlhf, cutoff_len=40, pooling="eos"))
    assert outcome.cut_rows == {"two": "prompt,response"}
    assert not outcome.left_out
    text = "Twelve of them, as far as anyone can tell."
    value = rows_of(tmp_path / "s.jsonl")[1]["rewards"][0]
    assert value == pytest.approx(alone(llamafactory, f">{text[:38]}</s>", bias=0), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"overlong": "skip"}, "overlong"),
        ({"overlong": "keep_prompt"}, "no_room_for_response"),
        ({"pooling": "eos"}, "end_token_cut"),
    ],
)
def test_a_row_that_is_not_scored_is_named_in_a_file_and_the_others_are_scored(
    samples, llamafactory, tmp_path, options, reason
):
    model = RewardModel(llamafactory, cutoff_len=40, **options)
    outcome = score(samples, tmp_path / "s.jsonl", model=model)
    assert (outcome.rows, outcome.left_out.counts) == (1, {reason: 1})
    assert [row["id"] for row in rows_of(tmp_path / "s.jsonl")] == ["1"]
    (row,) = rows_of(tmp_path / "s.left_out.jsonl")
    assert (row["id"], row["left_out"]["reason"]) == ("two", reason)


def test_a_row_that_is_too_long_can_be_an_error_or_a_bad_row(samples, llamafactory, tmp_path):
    words = ["apo", "score", str(samples), "--model", str(llamafactory), "--output", str(tmp_path / "s.jsonl")]
    words += ["--cutoff-len", "40", "--overlong", "error"]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 1
    assert f"FP203 {samples}:2 prompt: " in outcome.output
    outcome = CliRunner().invoke(app, [*words, "--bad-rows", "skip", "--max-bad", "50%"])
    assert outcome.exit_code == 0, outcome.output
    assert [row["line"] for row in rows_of(tmp_path / "s.jsonl.rejected.jsonl")] == [2]


def test_the_command_names_what_it_cuts_and_ends_well(llamafactory, tmp_path):
    """The case apo_score_long: one long response of one row."""
    rows = [
        {"query_id": 1, "query": "\n\nHuman: Say a word.\n\nAssistant: ", "sample_0": "Yes."},
        {"query_id": 2, "query": "\n\nHuman: Say many.\n\nAssistant: ", "sample_0": "one " * 16, "sample_1": "No."},
    ]
    write_jsonl(tmp_path / "long.jsonl", rows)
    words = ["apo", "score", str(tmp_path / "long.jsonl"), "--model", str(llamafactory), "--cutoff-len", "50"]
    outcome = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "s.jsonl")])
    assert outcome.exit_code == 0, outcome.output
    assert "1 rows have a response that is cut, such as 2" in outcome.output
    assert "2 rows with 3 responses (0 empty, 2 longer than 50 tokens)" in outcome.output


def receipt(folder, **content):
    (folder / "finepref_receipt.json").write_text(json.dumps(content))


def test_pooling_and_cutoff_come_from_the_receipt_and_a_difference_is_told(samples, llamafactory, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(llamafactory, folder)
    run = {"template": None, "cutoff_len": 300}
    receipt(folder, settings={"apo_pooling": "mean"}, run=run)
    words = ["apo", "score", str(samples), "--model", str(folder), "--output", str(tmp_path / "s.jsonl")]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 0, outcome.output
    assert "longer than 300 tokens" in outcome.output
    row = rows_of(tmp_path / "s.jsonl")[1]
    expected = [alone(llamafactory, f"{text}</s>", pooling="mean") for text in TEXTS["two"]]
    assert row["rewards"] == pytest.approx(expected, abs=1e-5)
    other = [*words[:-1], str(tmp_path / "other.jsonl"), "--pooling", "last", "--template", "tokenizer"]
    outcome = CliRunner().invoke(app, other)
    assert outcome.exit_code == 0, outcome.output
    assert f"--pooling last: by its receipt, {folder} was trained with mean" in outcome.output
    assert "--template" not in outcome.output
    assert rows_of(tmp_path / "other.jsonl")[1]["rewards"] == pytest.approx(
        [alone(llamafactory, text) for text in TEXTS["two"]], abs=1e-5
    )


def test_a_template_of_the_host_that_the_receipt_names_is_not_replaced_in_silence(
    samples, llamafactory, tmp_path, monkeypatch
):
    folder = tmp_path / "model"
    shutil.copytree(llamafactory, folder)
    receipt(folder, settings={"apo_pooling": "last"}, run={"template": "chatml", "cutoff_len": 300})
    monkeypatch.setitem(sys.modules, "finepref.hosts.llamafactory.template_tokens", None)
    monkeypatch.setitem(sys.modules, "llamafactory", None)
    words = ["apo", "score", str(samples), "--model", str(folder), "--output", str(tmp_path / "s.jsonl")]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 1
    assert "the template chatml is LLaMA-Factory's; --template tokenizer is the tokenizer's chat template" in (
        outcome.output
    )
    outcome = CliRunner().invoke(app, [*words, "--template", "tokenizer"])
    assert outcome.exit_code == 0, outcome.output
    assert "--template tokenizer: by its receipt" in outcome.output


def test_a_system_turn_that_the_template_refuses_is_named_or_left_out(llamafactory, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(llamafactory, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer.chat_template = refuse + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    rows = [
        {"id": "a", "prompt": "Why?", "responses": ["Because."]},
        {"id": "b", "prompt": "Why?", "system": "Be brief.", "responses": ["Because.", "No."]},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    source = tmp_path / "rows.jsonl"
    words = ["apo", "score", str(source), "--model", str(folder), "--output", str(tmp_path / "s.jsonl")]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 1
    assert f"FP240 {source}:2 system: " in outcome.output
    outcome = CliRunner().invoke(app, [*words, "--bad-rows", "skip", "--max-bad", "50%"])
    assert outcome.exit_code == 0, outcome.output
    assert [row["id"] for row in rows_of(tmp_path / "s.jsonl")] == ["a"]


def test_a_second_row_of_an_id_never_takes_the_place_of_the_first(llamafactory, tmp_path):
    rows = [{"id": "a", "prompt": "Why?", "responses": [text]} for text in ("Because.", "No.")]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    words = ["apo", "score", str(tmp_path / "rows.jsonl"), "--model", str(llamafactory)]
    words += ["--output", str(tmp_path / "s.jsonl"), "--bad-rows", "skip", "--max-bad", "50%"]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 0, outcome.output
    (row,) = rows_of(tmp_path / "s.jsonl")
    assert row["rewards"] == [pytest.approx(alone(llamafactory, TEXTS["1"][0]), abs=1e-5)]


def test_scores_of_records_are_kept_and_lists_of_any_length_are_read(llamafactory, tmp_path):
    rows = [
        {"id": "r", "prompt": "Why?", "responses": ["a", "b", "c"], "scores": [-1, 0.5, -1], "kind": "apo"},
        {"id": "p", "prompt": "Why?", "chosen": "a", "rejected": "b", "margin": 0.25},
        {"id": "q", "prompt": "Why?", "chosen": "a", "rejected": "b"},
        {"id": "one", "prompt": "Why?", "responses": ["Because."]},
        {"id": "none", "prompt": "Why?", "responses": []},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    found = {row["id"]: row for row in scored(tmp_path / "rows.jsonl", tmp_path / "scored.jsonl", llamafactory)}
    assert found["r"]["scores"] == [-1, 0.5, -1]
    assert found["r"]["kind"] == "apo"
    assert [(found[name]["responses"], found[name]["scores"]) for name in "pq"] == [
        (["a", "b"], [0.25, 0.0]),
        (["a", "b"], [1.0, 0.0]),
    ]
    assert found["r"]["rewards"][:2] == pytest.approx(found["p"]["rewards"], abs=1e-5)
    assert found["one"]["rewards"] == [pytest.approx(alone(llamafactory, TEXTS["1"][0]), abs=1e-5)]
    assert "scores" not in found["one"]
    assert found["none"]["rewards"] == []


@pytest.mark.parametrize(
    ("row", "code", "field"),
    [
        ({"id": "x", "prompt": "q", "chosen": "a", "rejected": "b", "margin": -0.5}, "FP220", "margin"),
        ({"id": "x", "prompt": "q", "chosen": "a", "rejected": "b", "margin": 0}, "FP220", "margin"),
        ({"id": "x", "prompt": "q", "responses": ["a", "b"], "scores": [1, 1]}, "FP052", "scores"),
        ({"id": "x", "prompt": "q", "responses": ["a", "b"], "scores": [1]}, "FP051", "scores"),
        ({"id": "x", "prompt": "q", "responses": "a"}, "FP011", "responses"),
        ({"id": "good", "prompt": "q", "responses": ["a"]}, "FP060", "id"),
        ({"id": "x", "prompt": "q"}, "FP010", "responses"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(tmp_path, row, code, field):
    write_jsonl(tmp_path / "rows.jsonl", [{"id": "good", "prompt": "q", "responses": ["a"]}, row])
    with pytest.raises(BadData) as caught:
        read_scorable(tmp_path / "rows.jsonl")
    assert (code, 2, field) in [(p.code, p.line, p.field) for p in caught.value.problems]


def test_an_interrupted_run_resumes_with_the_batches_it_lacks(samples, llamafactory, tmp_path, monkeypatch):
    output, options = tmp_path / "scored.jsonl", {"batch_tokens": 30}
    whole = scored(samples, tmp_path / "whole.jsonl", llamafactory, **options)
    plain, calls = RewardModel._pooled, []

    def dies(self, network, rows):
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, network, rows)

    monkeypatch.setattr(RewardModel, "_pooled", dies)
    with pytest.raises(KeyboardInterrupt):
        scored(samples, output, llamafactory, **options)
    assert not output.exists()
    assert scored(samples, output, llamafactory, **options) == whole
    assert sum(calls) == 5, "4 responses, one of them twice: that of the batch which was cut off"
    monkeypatch.setattr(
        "finepref.synth.apo.reward_model.load_network", lambda *args, **kwargs: pytest.fail("nothing is left to do")
    )
    assert scored(samples, output, llamafactory, **options) == whole
    with pytest.raises(JournalChanged, match="pooling"):
        scored(samples, output, llamafactory, pooling="mean", **options)


def test_a_folder_without_a_value_head_is_refused_in_one_line(samples, tiny_model, tmp_path):
    words = ["apo", "score", str(samples), "--model", str(tiny_model), "--output", str(tmp_path / "s.jsonl")]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 1
    assert "has no value head" in outcome.output
    assert len(outcome.output.splitlines()) == 1


def test_the_command_writes_what_the_function_does(samples, llamafactory, tmp_path):
    output = tmp_path / "scored.jsonl"
    words = ["apo", "score", str(samples), "--model", str(llamafactory), "--output", str(output)]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 0, outcome.output
    assert "2 rows with 5 responses (1 empty, 0 longer than 2048 tokens)" in outcome.output
    assert rows_of(output) == scored(samples, tmp_path / "again.jsonl", llamafactory)


def test_several_files_are_scored_by_one_load_into_a_folder(samples, llamafactory, tmp_path):
    other = tmp_path / "other.jsonl"
    write_jsonl(other, [{"id": "one", "prompt": "Why?", "responses": ["Because."]}])
    output = tmp_path / "scored"
    words = ["apo", "score", str(samples), str(other), "--model", str(llamafactory), "--output", str(output)]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert rows_of(output / "samples.jsonl") == scored(samples, tmp_path / "again.jsonl", llamafactory)
    assert rows_of(output / "other.jsonl")[0]["rewards"] == pytest.approx(
        rows_of(output / "samples.jsonl")[0]["rewards"][:1], abs=1e-5
    )
    outcome = CliRunner().invoke(app, [*words[:3], str(samples), *words[4:]])
    assert outcome.exit_code == 1
    assert "two inputs have the same name" in outcome.output
