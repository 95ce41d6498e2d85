"""`seapo_kto` on feedback rows that have no counterpart: each is trained on by its own label, as by `kto`."""

from __future__ import annotations

import json
import math
from hashlib import blake2b
from pathlib import Path

import pytest
import torch
from conftest import losses
from finepref.formats.records import Message, content_id
from sample_rows import rows, write_rows


def single(i: int, label: bool, **more: object) -> dict:
    """A row whose prompt has no other row."""
    text = f"{i} times 2 is {2 * i}." if label else f"I will not double {i}."
    return {"id": f"single-{i}", "prompt": f"What is 2 x {i}?", "response": text, "label": label} | more


SINGLE = [single(i, i % 3 == 0) for i in range(12)]  # 4 desirable, 8 undesirable rows


def of_record(record: dict) -> list[dict]:
    """A record of format negatives as rows of format feedback."""
    own = [{"prompt": record["prompt"], "response": record["chosen"], "label": True}]
    for name, text in record["negatives"].items():
        own.append({"prompt": record["prompt"], "response": text, "label": False, "error_type": name})
    return own


MIXED = [*of_record(rows()[0]), *SINGLE[:6], *of_record(rows()[1]), *SINGLE[6:]]  # 8 rows of 2 records, 12 single


@pytest.fixture
def train(run, tmp_path):
    """Train on rows of format feedback."""

    def call(records, **overrides):
        folder = write_rows(tmp_path / "feedback", records, "sums", formatting="feedback")
        return run(dataset_dir=str(folder), max_steps=-1, num_train_epochs=1, **overrides)

    return call


def test_single_rows_are_all_trained_on_and_counted_by_label(train):
    done = train(SINGLE)
    assert done.receipt["single_rows"] == {"desirable": 4, "undesirable": 8}
    assert done.receipt["draws"]["counts"] == {}
    rows = done.receipt["rows"]
    assert (rows["read"], rows["in_training_set"], rows["seen"]) == (12, 12, 12)
    assert rows["skipped"] == rows["rejected"] == {}


def test_a_mixed_file_draws_for_whole_prompts_and_trains_every_other_row(train, caplog):
    done = train(MIXED)
    assert "12 single rows are trained on by their own label: 4 desirable, 8 undesirable" in caplog.text
    rows = done.receipt["rows"]
    assert (rows["read"], rows["in_training_set"], rows["seen"]) == (20, 20, 12 + 2 * 2)
    assert done.receipt["single_rows"] == {"desirable": 4, "undesirable": 8}
    assert sum(done.receipt["draws"]["counts"].values()) == 2
    total = {name: sum(entry.get(f"count/{name}", 0) for entry in done.log) for name in ("single/chosen", "logic")}
    assert total == {"single/chosen": 4, "logic": done.receipt["draws"]["counts"].get("logic", 0)}
    assert sum(entry.get("count/single/rejected", 0) for entry in done.log) == 8
    assert any("rewards/single/margins" in entry for entry in done.log)


def test_an_undesirable_row_without_an_error_type_makes_single_rows_of_its_prompt(train):
    """The prompt has a desirable row and an undesirable one with a type too; all three are trained on."""
    lone = {"prompt": rows()[0]["prompt"], "response": "I do not know.", "label": False}
    done = train([*of_record(rows()[0])[:2], lone, *of_record(rows()[1])])
    assert done.receipt["single_rows"] == {"desirable": 1, "undesirable": 2}
    assert sum(done.receipt["draws"]["counts"].values()) == 1


def test_a_run_of_records_alone_has_no_counts_or_metrics_of_single_rows(train):
    done = train([row for record in rows()[:4] for row in of_record(record)])
    assert "single_rows" not in done.receipt
    assert not [key for entry in done.log for key in entry if "single" in key]


def test_rows_of_one_label_are_trained_on_with_a_warning_as_by_kto(train, caplog):
    done = train([row for row in SINGLE if not row["label"]])
    assert done.receipt["single_rows"] == {"desirable": 0, "undesirable": 8}
    assert "all 8 responses are undesirable (FP061)" in caplog.text


def test_a_response_with_both_labels_is_refused(refused):
    good = SINGLE[0]
    records = [good, {**good, "id": "other", "label": False}, *SINGLE[1:]]
    message = refused(records, {"formatting": "feedback"})
    assert "FP032" in message
    assert "sums.jsonl:2" in message


def test_error_types_restrict_draws_and_typed_single_rows_only(refused, train):
    typed = [*SINGLE, single(20, False, error_type="logic")]
    done = train([*typed, *of_record(rows()[0])], seapo_error_types="logic")
    assert done.receipt["single_rows"] == {"desirable": 4, "undesirable": 9}
    assert done.receipt["draws"]["counts"] == {"logic": 1}
    message = refused([*typed, *of_record(rows()[0])], {"formatting": "feedback"}, seapo_error_types="correctness")
    assert "FP204" in message
    assert "sums.jsonl:13 error_type" in message


def test_rows_that_max_samples_parts_from_their_prompt_are_skipped_and_true_single_rows_are_not(train):
    """Nine rows are kept: six single ones, and the first three of a record of four, of which the first two lack it."""
    records = [*SINGLE[:6], *of_record(rows()[0])[1:], of_record(rows()[0])[0]]
    done = train(records, max_samples=9)
    skipped = {"max_samples": 1, "prompt_split_by_max_samples": 3}
    assert done.receipt["rows"]["skipped"] == skipped
    assert done.receipt["single_rows"] == {"desirable": 2, "undesirable": 4}


def test_automatic_weights_count_the_responses_that_there_are(train, tmp_path, caplog):
    """4 desirable and 8 undesirable rows: w_D 4 / (w_U 8) is 1 with w_D = 2. With theta = ref a loss is w / 2."""
    plain = train(SINGLE, output_dir=str(tmp_path / "plain"), learning_rate=0.0)
    assert plain.receipt["settings"]["kto_chosen_weight"] == 1.0
    assert "`kto_chosen_weight` x 1 desirable / (`kto_rejected_weight` x 2 undesirable)" in caplog.text
    ruled = train(SINGLE, output_dir=str(tmp_path / "ruled"), learning_rate=0.0, seapo_auto_weights=True)
    assert ruled.receipt["settings"]["kto_chosen_weight"] == 2.0
    assert sum(losses(plain)) / len(losses(plain)) == pytest.approx(0.5)
    assert sum(losses(ruled)) / len(losses(ruled)) == pytest.approx((4 * 2 + 8) / 12 / 2)


def test_two_ranks_count_their_single_rows_together(forked, tmp_path):
    folder = write_rows(tmp_path / "feedback", MIXED, "sums", formatting="feedback")
    done = forked(processes=2, dataset_dir=str(folder), max_steps=-1, num_train_epochs=1)
    assert done.code == 0, done.output
    assert done.receipt["single_rows"] == {"desirable": 4, "undesirable": 8}
    assert len(done.receipt["ranks"]) == 2
    assert sum(done.receipt["draws"]["counts"].values()) == 2


def test_single_rows_are_split_between_training_and_evaluation_and_both_have_their_metrics(train):
    done = train(SINGLE, val_size=4, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=4)
    rows = done.receipt["rows"]
    assert (rows["in_training_set"], rows["in_evaluation_set"]) == (8, 4)
    evaluated = next(entry for entry in done.log if "eval_loss" in entry)
    assert evaluated["eval_count/single/chosen"] + evaluated["eval_count/single/rejected"] == 4


def test_all_decisions_about_single_rows_are_those_of_the_forecast(train, tiny_model, tmp_path):
    from finepref.cli import app
    from typer.testing import CliRunner

    records = [*MIXED, single(30, True, response="six " * 40), single(31, False, prompt="What is 31 x 2? " * 9)]
    options = {"cutoff_len": 60, "finepref_overlong": "skip"}
    done = train(records, **options)
    command = ["validate", str(tmp_path / "feedback" / "sums.jsonl"), "--stage", "seapo_kto", "--json"]
    command += ["--model", str(tiny_model), "--template", "chatml", "--cutoff-len", "60"]
    told = CliRunner().invoke(app, [*command, "--set", "finepref_overlong=skip"])
    assert told.exit_code == 0, told.output
    forecast = json.loads(told.stdout)["forecast"]
    rows = done.receipt["rows"]
    assert {name: forecast[name] for name in ("read", "in_training_set", "skipped")} == {
        name: rows[name] for name in ("read", "in_training_set", "skipped")
    }
    assert rows["skipped"]["overlong"] >= 2


def test_a_run_with_weights_of_its_data_resumes(run, tmp_path):
    folder = write_rows(tmp_path / "feedback", SINGLE, "sums", formatting="feedback")
    common = {"dataset_dir": str(folder), "save_steps": 2, "max_steps": 4, "seapo_auto_weights": True}
    whole = run(output_dir=str(tmp_path / "whole"), **common)
    again = run(
        output_dir=str(tmp_path / "again"),
        resume_from_checkpoint=str(whole.folder / "checkpoint-2"),
        **common,
    )
    assert losses(again)[-2:] == losses(whole)[-2:]
    assert again.receipt["settings"]["kto_chosen_weight"] == 2.0


def key_of(row: dict) -> str:
    """What the ring of prompts is sorted by, written down again."""
    text = json.dumps([["user", row["prompt"]]], ensure_ascii=False)
    return blake2b(text.encode(), digest_size=16).hexdigest()


WHOLE = {  # one batch, so that the losses do not depend on the order
    "finetuning_type": "full",
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "max_steps": 3,
    "lr_scheduler_type": "constant",
}


def test_losses_are_those_of_the_hosts_own_kto_on_the_same_rows_and_mismatched_pairs(
    run, recipe, other_model, tmp_path
):
    """The host's mismatched response of a row is that of the row before, so in the ring's order turned round."""
    from llamafactory.train.tuner import run_exp

    common = {**WHOLE, "ref_model": str(other_model), "kto_chosen_weight": 1.5}
    ring = sorted(SINGLE, key=key_of, reverse=True)
    folder = write_rows(tmp_path / "ours", SINGLE, "sums", formatting="feedback")
    ours = run(dataset_dir=str(folder), output_dir=str(tmp_path / "by ours"), **common)
    of_host = [
        {"instruction": row["prompt"], "input": "", "output": row["response"], "kto_tag": row["label"]} for row in ring
    ]
    columns = {"prompt": "instruction", "query": "input", "response": "output", "kto_tag": "kto_tag"}
    folder = write_rows(tmp_path / "host", of_host, "sums", formatting="alpaca", columns=columns)
    settings = recipe(dataset_dir=str(folder), output_dir=str(tmp_path / "by host"), **common) | {"stage": "kto"}
    run_exp({name: value for name, value in settings.items() if not name.startswith(("seapo_", "finepref_"))})
    log = json.loads((tmp_path / "by host" / "trainer_state.json").read_text())["log_history"]
    theirs = [entry for entry in log if "loss" in entry]
    assert len(theirs) == 3
    for mine, their in zip([entry for entry in ours.log if "loss" in entry], theirs, strict=True):
        for name in ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "kl"):
            if name in their:
                assert mine[name] == pytest.approx(their[name], rel=1e-4, abs=2e-5), name
    assert losses(ours)[0] != pytest.approx(losses(ours)[-1], abs=1e-3)


def slow_loss(records: list[dict], policy: Path, reference: Path, *, seed: int, beta: float, weight: float):
    """(loss, z0) of one batch of all rows, in plain loops and float64. A record has one prompt, `good` and `bad`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    models = [AutoModelForCausalLM.from_pretrained(each).double() for each in (policy, reference)]

    def log_ratio(prompt: str, response: str) -> float:
        before = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        start = len(tokenizer(before, add_special_tokens=False)["input_ids"])
        ids = tokenizer(before, add_special_tokens=False)["input_ids"]
        ids = ids + tokenizer(f"{response}<|im_end|>\n", add_special_tokens=False)["input_ids"]
        sums = []
        for model in models:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0]
            total = 0.0
            for place in range(start, len(ids)):
                values = logits[place - 1].tolist()
                most = max(values)
                total += values[ids[place]] - most - math.log(sum(math.exp(v - most) for v in values))
            sums.append(total)
        return sums[0] - sums[1]

    def drawn(texts: dict[str, str], record_id: str) -> str:
        names = sorted(texts)
        digest = blake2b(f"{seed}:0:{record_id}".encode(), digest_size=8).digest()
        return texts[names[int.from_bytes(digest, "big") % len(names)]]

    ring = sorted(records, key=key_of)
    trained, mismatched = [], []
    for place, record in enumerate(ring):
        other = ring[(place + 1) % len(ring)]
        for label in ("good", "bad"):
            if not record[label]:
                continue
            theirs = other[label] or other["bad" if label == "good" else "good"]
            trained.append((label, log_ratio(record["prompt"], drawn(record[label], record["id"]))))
            mismatched.append(log_ratio(record["prompt"], drawn(theirs, record["id"])))
    z0 = max(0.0, sum(mismatched) / len(mismatched))
    total = 0.0
    for label, ratio in trained:
        sign = 1 if label == "good" else -1
        total += (weight if label == "good" else 1.0) * (1 - 1 / (1 + math.exp(-sign * beta * (ratio - z0))))
    return total / len(trained), z0


def test_the_loss_of_a_mixed_file_is_that_of_plain_loops_in_float64(run, tiny_model, other_model, tmp_path):
    whole = [
        {
            "id": content_id((Message("user", each["prompt"]),)),
            "prompt": each["prompt"],
            "good": {"chosen": each["chosen"]},
            "bad": each["negatives"],
        }
        for each in rows()[:2]
    ]
    lone = [
        row
        | {"good": {"chosen": row["response"]} if row["label"] else {}}
        | {"bad": {} if row["label"] else {"undesirable": row["response"]}}
        for row in SINGLE
    ]
    folder = write_rows(tmp_path / "mixed", MIXED, "sums", formatting="feedback")
    for name, models in {"above": (tiny_model, other_model), "clamped": (other_model, tiny_model)}.items():
        expected, z0 = slow_loss([*whole, *lone], *models, seed=42, beta=0.7, weight=1.5)
        assert (z0 == 0) == (name == "clamped")
        done = run(
            **{**WHOLE, "max_steps": 1},
            dataset_dir=str(folder),
            output_dir=str(tmp_path / name),
            model_name_or_path=str(models[0]),
            ref_model=str(models[1]),
            pref_beta=0.7,
            kto_chosen_weight=1.5,
            seed=42,
        )
        assert done.log[0]["loss"] == pytest.approx(expected, rel=1e-5)
        assert done.log[0]["kl"] == pytest.approx(z0, rel=1e-4, abs=1e-6)
