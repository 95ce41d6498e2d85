"""`finepref sepo score --template`: the tokens of the host's template, cut as the host cuts, compared in training."""

from __future__ import annotations

import random

import pytest
from finepref.cli import app
from finepref.formats.check import read_records
from finepref.formats.jsonl import write_jsonl
from finepref.formats.records import Message
from finepref.formats.scores import prompt_digest
from finepref.methods import host_rules
from sample_rows import span_rows
from typer.testing import CliRunner

SCORES = {"name": "scores", "formatting": "scored_pair"}


def test_the_rule_without_the_host_is_the_hosts_own():
    """Every small case, and 20,000 large ones."""
    from llamafactory.data.processor.processor_utils import infer_seqlen

    small = ((p, r, n) for p in range(1, 40) for r in range(1, 40) for n in range(2, 40))
    draw = random.Random(0)
    large = (
        (draw.randint(1, 9000), draw.randint(1, 9000), draw.choice((512, 2048, draw.randint(2, 9000))))
        for _ in range(20_000)
    )
    for lengths in (*small, *large):
        assert host_rules.llamafactory(*lengths) == infer_seqlen(*lengths), lengths


@pytest.mark.parametrize(
    "name", ["chatml", "llama2", "qwen", "gemma", "mistral", "vicuna", "qwen3", "deepseek3", "alpaca"]
)
def test_each_token_of_the_text_is_at_its_characters(tiny_model, name):
    from finepref.hosts.llamafactory.template_tokens import template
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = "It is 12, not é."
    tokens = template(name).encoder(tokenizer)((Message("system", "Be brief."), Message("user", "1?")), text)
    assert tokens.start >= 0
    ids = tokens.response[tokens.start : tokens.start + len(tokens.offsets)]
    assert tokenizer.decode(ids).strip() == text
    assert {i for start, end in tokens.offsets for i in range(start, end)} == {*range(len(text))}


@pytest.fixture
def scored(tiny_model, other_model, tmp_path):
    """Score some pairs by the command; returns the rows."""

    def score(*words, rows=None):
        pairs = [{key: row[key] for key in ("id", "prompt", "chosen", "rejected")} for row in rows or span_rows()]
        write_jsonl(tmp_path / "pairs.jsonl", pairs)
        command = f"sepo score {tmp_path / 'pairs.jsonl'} --output {tmp_path / 'made.jsonl'}"
        models = f" --reference {tiny_model} --oracle {other_model}"
        outcome = CliRunner().invoke(app, [*(command + models).split(), *words])
        assert outcome.exit_code == 0, outcome.output
        return read_records(tmp_path / "made.jsonl", "scored_pair")

    return score


def rows_of(records):
    from finepref.formats.records import to_row

    return [to_row(record) for record in records]


def test_scores_are_those_after_the_templates_own_tokens(scored, tiny_model, other_model):
    """log pi of oracle minus reference, by plain forwards in float64 on the host's own encoding."""
    import torch
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments
    from transformers import AutoModelForCausalLM, AutoTokenizer

    record = scored("--template", "alpaca")[0]
    assert record.template == "alpaca"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    made = get_template_and_fix_tokenizer(tokenizer, DataArguments(template="alpaca"))
    turns = [{"role": "user", "content": record.prompt[0].content}, {"role": "assistant", "content": record.chosen}]
    before, ids = made.encode_oneturn(tokenizer, turns)
    assert record.prompt_digest == prompt_digest(before)
    logps = []
    for folder in (other_model, tiny_model):
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(folder).double()(torch.tensor([before + ids])).logits[0]
        logps.append(logits.log_softmax(-1)[range(len(before) - 1, len(before) + len(ids) - 1), ids].tolist())
    expected = [a - b for a, b in zip(*logps, strict=True)]
    assert len(record.chosen_scores) == len(tokenizer(record.chosen)["input_ids"]) + 1
    assert record.chosen_scores == pytest.approx(expected[: len(record.chosen_scores)], abs=1e-5)


def test_scores_of_another_template_are_refused_by_both_names(scored, refused):
    rows = rows_of(scored("--template", "alpaca"))
    message = refused(rows, SCORES, name="sepo", template="chatml")
    assert "FP250 " in message
    assert "scores.jsonl:1 prompt_digest: scored with template 'alpaca', trained with 'chatml'" in message


def test_scores_of_the_same_tokens_train_whatever_the_template_is_called(scored, run, tmp_path):
    """The model's own chat template writes what the host's chatml writes."""
    done = run(name="sepo", **data_set(tmp_path, rows_of(scored()), "scored"))
    assert done.receipt["loss_calls" if "loss_calls" in done.receipt else "expected_loss_calls"]


def data_set(tmp_path, rows, name):
    import json

    folder = tmp_path / name
    folder.mkdir()
    write_jsonl(folder / "scores.jsonl", rows)
    entry = {"scores": {"file_name": "scores.jsonl", "formatting": "scored_pair"}}
    (folder / "dataset_info.json").write_text(json.dumps(entry))
    return {"dataset_dir": str(folder), "dataset": "scores"}


def test_what_was_cut_before_scoring_is_what_training_cuts(scored, run, tmp_path):
    """One response is longer than the sequence; its scores end where the run's tokens end."""
    rows = span_rows()
    rows[3] |= {"chosen": "the answer is " + "12 and 13 and " * 30}
    records = scored("--template", "chatml", "--cutoff-len", "64", rows=rows)
    assert len(records) == len(rows)
    assert len(records[3].chosen_scores) < len(records[3].chosen_offsets) + 1 < 64
    assert records[3].chosen_offsets[-1][1] < len(records[3].chosen)
    done = run(name="sepo", cutoff_len=64, **data_set(tmp_path, rows_of(records), "scored"))
    assert done.receipt["optimizer_steps"] == 2
