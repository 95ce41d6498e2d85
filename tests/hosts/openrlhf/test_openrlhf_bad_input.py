"""Whatever is wrong with data, options or environment is one message, and no model has been loaded then."""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

import pytest
from sample_rows import ranked_rows, rows, scored_rows, span_rows, write_rows


@pytest.fixture
def refused(attempt, tmp_path):
    """Run with changed records and flags; the message. Loading a model prints what this looks for."""

    def call(name: str, records: list[dict] | None = None, formatting: str = "", **given: object) -> str:
        if records is not None:
            given["data__dataset"] = "bad"
            given["data__dataset_dir"] = write_rows(tmp_path / "bad", records, "bad", formatting=formatting)
        done = attempt(name, **given)
        assert done.code == 1
        assert "Traceback" not in done.output
        assert "LlamaForCausalLM" not in done.output
        assert not done.folder.exists()
        return next(line for line in done.output.splitlines() if f"train_{name}: " in line)

    return call


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("selective", {"selective__gamma": -1.0}, "--selective.gamma must be above 0, not -1.0"),
        ("selective", {"selective__ratio_chosen": 1.5}, "--selective.ratio_chosen must be above 0 and at most 1"),
        ("selective", {"model__beta": 0.3}, "--model.beta does nothing here, so leave it out"),
        ("selective", {"model__ipo_enable": True}, "--model.ipo_enable does nothing here"),
        ("selective", {"ref__offload": True}, "--ref.offload does nothing here"),
        ("selective", {"data__dataset_probs": "1.0"}, "--data.dataset_probs does nothing here"),
        ("tdpo", {"tdpo__variant": "dpo", "tdpo__alpha": 0.1}, "--tdpo.alpha belongs to tdpo2"),
        ("tdpo", {"tdpo__masks": "none", "tdpo__sides": "one"}, "--tdpo.sides one needs spans"),
        ("tdpo", {"model__beta": 0.0}, "--model.beta must be above 0, not 0.0"),
        ("kto", {"kto__error_types": "logic,"}, "--kto.error_types has an empty name"),
        ("kto", {"kto__rejected_weight": 0.0}, "--kto.rejected_weight must be above 0"),
        ("apo_rm", {"apo__coeff": -0.1}, "--apo.coeff must not be negative"),
        ("apo_rm", {"model__loss_type": "logexp"}, "--model.loss_type does nothing here"),
        ("tdpo", {"train__batch_size": 5}, "--train.batch_size 5 is not a multiple of --train.micro_batch_size 2"),
        ("tdpo", {"train__batch_size": 16}, "12 records make no batch of --train.batch_size 16"),
        ("tdpo", {"data__dataset": None}, "--data.dataset is missing"),
        ("tdpo", {"model__model_name_or_path": "./nowhere"}, "there is no model folder './nowhere'"),
        ("tdpo", {"data__apply_chat_template": False, "data__dataset": "hard"}, "FP071 "),
        ("tdpo", {"data__dataset": "./none.jsonl"}, "FP075 ./none.jsonl: there is no such file"),
        ("tdpo", {"data__dataset": "sums"}, "FP201 "),
    ],
)
def test_a_flag_that_does_not_fit_is_refused_by_its_own_name(refused, name, given, expected):
    assert expected in refused(name, **given)


def test_an_evaluation_set_of_one_prompt_is_named(refused, sums, tmp_path):
    folder = write_rows(tmp_path / "one", rows()[:1], "one", formatting="negatives")
    message = refused("kto", rows(), "negatives", eval__dataset=folder / "one.jsonl", data__formatting="negatives")
    assert f"FP205 {folder / 'one.jsonl'} prompt: KTO needs two different prompts for its KL term" in message


def without(records: list[dict], index: int, field: str) -> list[dict]:
    del records[index][field]
    return records


def test_a_record_without_spans_is_named_when_masks_are_asked_for(refused):
    message = refused("tdpo", without(span_rows(), 4, "rejected_spans"), "span_pair")
    assert "FP210 " in message
    assert "bad.jsonl:5 rejected_spans: --tdpo.masks annotated needs spans" in message


def test_scores_of_another_tokenizer_are_refused(refused, tiny_model):
    records = scored_rows(tiny_model)
    records[4]["tokenizer"] = "0" * 16
    message = refused("selective", records, "scored_pair")
    assert "FP212 " in message
    assert "bad.jsonl:5 tokenizer: set --selective.map_scores" in message


def test_a_row_that_is_no_record_is_named_with_line_and_field(refused):
    records = span_rows()
    records[2]["chosen"] = 7
    assert "bad.jsonl:3 chosen: expected a string" in refused("tdpo", records, "span_pair")


def test_several_turns_need_a_chat_template(refused):
    records = rows()
    turns = [("user", "1 + 1?"), ("assistant", "2."), ("user", "And 2 + 2?")]
    del records[3]["prompt"]
    records[3]["messages"] = [{"role": role, "content": text} for role, text in turns]
    message = refused("kto", records, "negatives", data__apply_chat_template=False)
    assert "FP230 " in message
    assert "bad.jsonl:4 prompt: give --data.apply_chat_template" in message


def test_a_template_that_rewrites_earlier_turns_is_refused(refused):
    """It writes the prompt differently when a response follows."""
    template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    message = refused("tdpo", data__tokenizer_chat_template=template)
    assert "FP231 " in message
    assert "spans.jsonl:1 chosen: " in message


def test_kto_needs_a_negative_of_the_asked_types_in_every_record(refused):
    records = rows()
    del records[1]["negatives"]["logic"]
    message = refused("kto", records, "negatives", kto__error_types="logic")
    assert "FP204 " in message
    assert "bad.jsonl:2 negatives: has correctness, hallucination, but --kto.error_types is logic" in message


def test_a_misspelled_error_type_is_refused_with_the_types_of_the_data(refused):
    message = refused("kto", kto__error_types="logic,speling")
    assert "FP204 " in message
    assert "no record has an error of type speling, which --kto.error_types names; the data has " in message
    assert "logic" in message.partition("the data has ")[2]


def advised(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("finepref: warning: --kto.")]


ADVICE = (
    "finepref: warning: --kto.chosen_weight / --kto.rejected_weight is outside [1, 4/3]; "
    "the KTO paper advises {} for the first (--kto.auto_weights sets it)"
)


def test_kto_weights_outside_the_papers_range_are_warned_about_and_used(train):
    """1 / 0.5 is above the range, whose upper bound times 0.5 is 2/3."""
    done = train("kto", kto__rejected_weight=0.5)
    assert advised(done.output) == [ADVICE.format("0.6667")]
    assert done.receipt["settings"]["kto_chosen_weight"] == 1.0
    assert done.receipt["settings"]["kto_rejected_weight"] == 0.5


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, []),
        ({"kto__rejected_weight": 0.8}, []),
        ({"kto__rejected_weight": 2.0}, [ADVICE.format("2")]),
        ({"kto__rejected_weight": 2.0, "kto__auto_weights": True}, []),
    ],
)
def test_kto_weights_are_warned_about_only_outside_the_papers_range(attempt, given, expected):
    """The run is one that is refused after the warning, so that nothing is trained."""
    done = attempt("kto", kto__error_types="speling", **given)
    assert "FP204 " in done.output
    assert advised(done.output) == expected


def test_a_path_that_holds_the_name_of_an_option_is_printed_as_it_is(refused, tmp_path):
    """No part of a path is rewritten to a flag, whatever it holds: --tdpo.alpha is `tdpo_alpha` on LLaMA-Factory."""
    records = without(span_rows(), 4, "rejected_spans")
    folder = write_rows(tmp_path / "tdpo_alpha", records, "bad", formatting="span_pair")
    message = refused("tdpo", data__dataset="bad", data__dataset_dir=folder)
    assert f"{folder}/bad.jsonl:5 rejected_spans: --tdpo.masks annotated needs spans" in message
    assert "/tdpo_alpha/bad.jsonl:5" in message


def test_lists_of_one_kind_with_coefficient_0_have_no_loss(refused):
    records = [row for row in ranked_rows(18) if row.get("kind") != "apo"]
    assert "FP223 " in refused("apo_rm", records, "ranked", apo__kl_coeff=0.0)
    assert "FP224 " in refused("apo_rm", records, "ranked", apo__loss="wgan")


def test_data_can_be_a_file_with_the_hosts_keys_for_its_columns(train, tmp_path):
    """The host's --data.prompt_key, --data.chosen_key and --data.rejected_key name the columns."""
    names = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    file = tmp_path / "mine.jsonl"
    records = [{names.get(key, key): value for key, value in row.items()} for row in span_rows()]
    file.write_text("".join(json.dumps(row) + "\n" for row in records))
    keys = {"data__prompt_key": "question", "data__chosen_key": "good", "data__rejected_key": "bad"}
    done = train("tdpo", data__dataset=file, data__max_samples=9, data__apply_chat_template=False, **keys)
    assert done.receipt["datasets"][0]["name"] == "mine.jsonl"
    assert done.receipt["rows"] == {
        "read": 12,
        "in_training_set": 9,
        "in_evaluation_set": 0,
        "repeated": 0,
        "skipped": {"max_samples": 3},
        "rejected": {},
        "cut": {},
        "responses_skipped": {},
        "seen": 8,
    }
    assert done.receipt["records_left_out_per_epoch"] == 1


def test_the_wandb_key_goes_to_the_environment_and_out_of_the_arguments(monkeypatch):
    from finepref.hosts.openrlhf.environment import hide_key

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr("sys.argv", ["train", "--logger.wandb.key", "secret", "--other=secret"])
    wandb = SimpleNamespace(key="secret")
    hide_key(wandb)
    assert sys.argv == ["train", "--logger.wandb.key", "hidden", "--other=hidden"]
    assert wandb.key == "hidden"
    assert os.environ.pop("WANDB_API_KEY") == "secret"


def test_a_run_logged_to_wandb_leaves_no_key_in_its_files(train, tmp_path, monkeypatch):
    """The real wandb, offline."""
    key = "k3y" * 14
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "wandb"))
    (tmp_path / "wandb").mkdir()
    done = train("tdpo", logger__wandb__key=key)
    files = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file() and not path.is_symlink()]
    content = b"".join(path.read_bytes() for path in files)
    assert b"hidden" in content
    assert key.encode() not in content
    assert key not in done.output


def test_an_old_deepspeed_is_refused_for_zero_3_on_several_processes(host, monkeypatch):
    import deepspeed
    from finepref.hosts.openrlhf import compat

    compat.require_sound_deepspeed(3, 2)
    monkeypatch.setattr(deepspeed, "__version__", "0.19.6")
    compat.require_sound_deepspeed(2, 2)
    compat.require_sound_deepspeed(3, 1)
    with pytest.raises(ValueError, match=r"DeepSpeed 0\.19\.6 corrupts ZeRO-3 weights"):
        compat.require_sound_deepspeed(3, 2)


@pytest.mark.parametrize(
    ("records", "code", "way"),
    [
        (
            [{"prompt": f"{i}?", "response": "yes", "label": i > 5} for i in range(12)],
            "FP062",
            "--kto.bad_rows skip leaves such rows out",
        ),
        (
            [
                {"prompt": f"{i}?", "response": text, "label": text == "yes"}
                for i in range(6)
                for text in ("yes", "no")
            ],
            "FP066",
            "`finepref convert --to negatives --error-type TYPE` names one",
        ),
    ],
)
def test_single_rows_are_refused_by_a_line_that_says_where_they_are_trained(refused, records, code, way):
    """The host's trainer takes pairs."""
    message = refused("kto", records, "feedback")
    assert f"train_kto: {code} " in message
    assert f"; OpenRLHF trains good and bad in pairs, LLaMA-Factory single rows too; {way}" in message
