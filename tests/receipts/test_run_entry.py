"""The receipt's entries of a run: its command line without secrets, its parts, its rows on the model card."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from finepref.hosts import card, receipt
from finepref.hosts.resume import changes, message
from finepref.hosts.run import Run
from finepref.hosts.run_setup import Setup, command
from finepref.methods import tdpo

SETUP = {
    "host": "llamafactory",
    "purposes": ("train",),
    "model": {"path": "m", "config_sha256": "1", "weights_sha256": "2"},
    "adapters": [],
    "reference": {"kind": "base", "model": {"path": "m"}, "adapters": []},
    "tokenizer": "0" * 16,
    "template": "qwen",
    "input_template": None,
    "chat_template_sha256": "0",
    "cutoff_len": 512,
    "datasets": (),
    "eval_datasets": (),
    "finetuning": {"type": "lora", "rank": 8},
    "optimizer": {"name": "adamw", "learning_rate": 1e-4},
    "batch": {"per_device": 2},
    "epochs": 1.0,
    "max_steps": None,
    "precision": "bf16",
    "command": {"argv": ["x"], "settings": {}},
}


@pytest.fixture
def run() -> Run:
    """A run of TDPO."""
    made = Run(tdpo.STAGE, tdpo.STAGE.options.read("llamafactory", {}, lambda name, value="": name), ())
    made.setup = Setup(**SETUP)
    return made


def content(run: Run, last_step: int, seen: int = 0) -> dict:
    run.loss_calls, run.seen = last_step - run.first_step, seen
    ranks = [run.rank_part(0, {})]
    made = run.content(
        seed=1, last_step=last_step, accumulation=1, expected_loss_calls=run.loss_calls, ranks=ranks, more={}
    )
    return json.loads(json.dumps(made))  # as it is read again


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (
            ["cli", "--hub_token", "abc", "--add_tokens", "<a>"],
            ["cli", "--hub_token", "hidden", "--add_tokens", "<a>"],
        ),
        (["cli", "hf_hub_token=abc", "x=1"], ["cli", "hf_hub_token=hidden", "x=1"]),
        (["cli", "--swanlab_api_key=abc"], ["cli", "--swanlab_api_key=hidden"]),
        (["cli", "--logger.wandb.key", "abc"], ["cli", "--logger.wandb.key", "hidden"]),
        (["cli", "--data.prompt_key", "question"], ["cli", "--data.prompt_key", "question"]),
    ],
)
def test_secrets_of_the_command_line_are_hidden(argv, shown):
    assert command(argv, None) == {"argv": shown, "settings": None}


def test_secrets_of_the_settings_are_hidden_where_they_are_given():
    settings = {"hub_token": "abc", "hf_hub_token": None, "max_new_tokens": 3, "deep": {"password": "abc"}}
    shown = {"hub_token": "hidden", "hf_hub_token": None, "max_new_tokens": 3, "deep": {"password": "hidden"}}
    assert command([], settings)["settings"] == shown


def test_a_receipt_has_one_part_and_a_resumed_one_two(run):
    run.rows.training = 8
    first = content(run, 2, seen=8)
    assert [part["last_step"] for part in first["parts"]] == [2]
    assert first["rows"]["seen"] == 8

    again = Run(run.stage, run.options, ())
    again.parts, again.seen_before, again.first_step = first["parts"], first["rows"]["seen"], 2
    second = content(again, 5, seen=4)
    assert [(part["first_step"], part["last_step"], part["seen"]) for part in second["parts"]] == [
        (0, 2, 8),
        (2, 5, 4),
    ]
    assert second["rows"]["seen"] == 12


def test_several_ranks_that_train_on_one_record_count_it_once(run):
    run.count(6)
    ranks = [run.rank_part(rank, {}) for rank in range(4)]
    made = run.content(seed=1, last_step=1, accumulation=1, expected_loss_calls=1, ranks=ranks, more={}, copies=2)
    assert made["rows"]["seen"] == 12


def test_equal_runs_do_not_differ_and_a_file_may_be_renamed(run):
    run.datasets = [receipt.DatasetEntry("spans", "span_pair", {"a.jsonl": "12" * 32}, 8)]
    before = content(run, 2)
    assert changes(before, run.facts(1)) == []
    run.datasets = [receipt.DatasetEntry("renamed", "span_pair", {"b.jsonl": "12" * 32}, 8)]
    assert changes(before, run.facts(1)) == []
    run.datasets = [receipt.DatasetEntry("spans", "span_pair", {"a.jsonl": "34" * 32}, 8)]
    (change,) = changes(before, run.facts(1))
    assert change == ("dataset", "spans (sha256 12121212)", "spans (sha256 34343434)", True)


def test_a_data_set_of_the_hub_is_told_by_its_name(run):
    run.datasets = [receipt.DatasetEntry("one", "span_pair", {}, None)]
    before = content(run, 2)
    run.datasets = [receipt.DatasetEntry("two", "span_pair", {}, None)]
    assert [change.name for change in changes(before, run.facts(1))] == ["dataset"]


def test_options_that_do_not_change_what_is_trained_are_not_compared(run):
    before = content(run, 2)
    run.settings |= {"finepref_resume_changed": True, "finepref_full_logits": True, "finepref_max_bad": "9%"}
    run.settings |= {"finepref_prefix_sharing": "off"}
    assert changes(before, run.facts(1)) == []
    run.settings |= {"finepref_overlong": "skip"}
    assert [change.name for change in changes(before, run.facts(1))] == ["finepref_overlong"]


@pytest.mark.parametrize(
    ("changed", "name", "refused"),
    [
        ({"template": "llama3"}, "template", True),
        ({"cutoff_len": 256}, "cutoff_len", True),
        ({"tokenizer": "1" * 16}, "tokenizer", True),
        ({"chat_template_sha256": "1"}, "chat_template_sha256", True),
        ({"input_template": "Q: {}"}, "input_template", True),
        ({"model": {"path": "m", "config_sha256": "1", "weights_sha256": "3"}}, "model", True),
        ({"model": {"path": "other", "config_sha256": None, "weights_sha256": None}}, "model", True),
        ({"adapters": [{"path": "a"}]}, "adapters", True),
        ({"reference": {"kind": "adapter", "model": {"path": "m"}, "adapters": [{"path": "a"}]}}, "reference", True),
        ({"reference": {"kind": "model", "model": {"path": "m"}, "adapters": []}}, "", False),
        ({"reference": {"kind": "base", "model": {"path": "n"}, "adapters": []}}, "reference", True),
        ({"finetuning": {"type": "lora", "rank": 4}}, "finetuning rank", True),
        ({"optimizer": {"name": "adamw", "learning_rate": 1e-5}}, "optimizer learning_rate", False),
        ({"batch": {"per_device": 4}}, "batch per_device", False),
        ({"epochs": 3.0}, "epochs", False),
        ({"max_steps": 3}, "max_steps", False),
        ({"precision": "fp32"}, "precision", False),
        ({"model": {"path": "moved", "config_sha256": "1", "weights_sha256": "2"}}, "", False),
        ({"eval_datasets": ("more",), "command": {"argv": [], "settings": None}, "purposes": ()}, "", False),
    ],
)
def test_what_makes_it_another_run_is_refused_and_what_does_not_is_noted(run, changed, name, refused):
    before = content(run, 2)
    run.setup = Setup(**SETUP | changed)
    found = changes(before, run.facts(1))
    assert [(change.name, change.refused) for change in found] == ([(name, refused)] if name else [])
    assert "\n" not in message(Path("checkpoint-2"), found)


def test_a_card_counts_rows_by_reason_and_is_written_once(run, tmp_path):
    run.rows.read, run.rows.training, run.rows.evaluation = 12, 7, 2
    run.rows.skipped, run.rows.rejected = Counter(max_samples=1), Counter(FP010=2)
    run.rows.cut = Counter(response=3)
    (tmp_path / "README.md").write_text("---\nlicense: other\n---\n\n# model\n")
    for _ in range(2):
        card.append(tmp_path, run)
    text = (tmp_path / "README.md").read_text()
    assert text.count("## Stage `tdpo`") == 1
    assert text.startswith("---\nlicense: other\n---\n\n# model\n\n## Stage `tdpo`\n")
    assert text.endswith(
        "| rows | |\n|---|---:|\n| in the files | 12 |\n| in the training set | 7 |\n| in the evaluation sets | 2 |\n"
        "| skipped: max_samples | 1 |\n| rejected: FP010 | 2 |\n| cut: response | 3 |\n"
    )
    assert card.section_of(tmp_path / "README.md") == card.section(run)
    assert card.section_of(tmp_path / "none.md") == ""


def test_a_file_that_is_no_receipt_is_named(tmp_path):
    assert receipt.read(tmp_path) is None
    for text in ("{", "[]", '{"stage": "tdpo"}'):
        (tmp_path / receipt.FILE_NAME).write_text(text)
        with pytest.raises(ValueError, match="is not a receipt of finepref"):
            receipt.read(tmp_path)


def test_a_device_is_named(monkeypatch, run):
    cuda = SimpleNamespace(is_available=lambda: True, get_device_name=lambda: "NVIDIA H100")
    monkeypatch.setattr("torch.cuda", cuda)
    assert content(run, 1)["run"]["devices"] == {"NVIDIA H100": 1}
