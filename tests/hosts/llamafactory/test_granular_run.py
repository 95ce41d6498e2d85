"""`stage: sft` with `granular: true`: which tokens have labels, and that the loss is theirs."""

from __future__ import annotations

import pytest
from conftest import losses
from plain_pairs import Plain, overlaps
from sample_rows import granular_rows, write_rows

ONE_BATCH = {"max_steps": 1, "per_device_train_batch_size": 12, "gradient_accumulation_steps": 1}


def test_the_first_loss_is_the_mean_over_the_tokens_of_the_spans_computed_without_the_host(run, tiny_model):
    done = run(name="granular_sft", **ONE_BATCH)
    plain = Plain(tiny_model)
    marked = [
        -token.policy
        for row in granular_rows()
        for token in plain.tokens(row["prompt"], row["chosen"])
        if overlaps(token, row["chosen_spans"])
    ]
    assert losses(done)[0] == pytest.approx(sum(marked) / len(marked), abs=1e-5)
    assert done.receipt["tokens"] == {"selected": len(marked)}


def test_a_response_without_spans_counts_as_a_whole_beside_one_with_spans(run, tmp_path, tiny_model):
    records = granular_rows()
    for row in records[6:]:
        del row["chosen_spans"]
    folder = write_rows(tmp_path / "mixed", records, "granular", formatting="span_pair")
    done = run(name="granular_sft", dataset_dir=str(folder), **ONE_BATCH)
    plain = Plain(tiny_model)
    expected = sum(
        "chosen_spans" not in row or overlaps(token, row["chosen_spans"])
        for row in records
        for token in plain.tokens(row["prompt"], row["chosen"])
    )
    assert done.receipt["tokens"] == {"selected": expected}


def test_spans_moved_by_one_token_change_the_first_loss(run, tmp_path):
    records = granular_rows()
    for row in records:
        for span in row["chosen_spans"]:
            span["start"], span["end"] = span["start"] - 1, span["end"] - 1
    folder = write_rows(tmp_path / "moved", records, "granular", formatting="span_pair")
    marked = run(output_dir=str(tmp_path / "a"), name="granular_sft", **ONE_BATCH)
    moved = run(output_dir=str(tmp_path / "b"), name="granular_sft", dataset_dir=str(folder), **ONE_BATCH)
    assert abs(losses(marked)[0] - losses(moved)[0]) > 1e-4


def test_gradient_accumulation_weighs_every_marked_token_alike(run, tmp_path):
    """12 records in one batch, or in 4 of 3 with unequal numbers of tokens: one and the same mean."""
    whole = run(output_dir=str(tmp_path / "a"), name="granular_sft", **ONE_BATCH)
    parts = {**ONE_BATCH, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}
    cut = run(output_dir=str(tmp_path / "b"), name="granular_sft", **parts)
    assert losses(cut)[0] == pytest.approx(losses(whole)[0], abs=1e-5)


def test_the_accuracy_is_the_share_of_the_marked_tokens_that_the_model_finds_likeliest(run):
    """Of a model that has learnt some of them: per record, then over the records, as the host does for any SFT."""
    evaluation = {"eval_dataset": "granular", "eval_strategy": "steps", "eval_steps": 4, "compute_accuracy": True}
    learning = {"finetuning_type": "full", "max_steps": 8, "learning_rate": 5e-3, "lr_scheduler_type": "constant"}
    done = run(name="granular_sft", **evaluation, **learning)
    logged = [entry["eval_accuracy"] for entry in done.log if "eval_loss" in entry]
    plain = Plain(done.folder)
    shares = []
    for row in granular_rows():
        tokens = [t for t in plain.tokens(row["prompt"], row["chosen"]) if overlaps(t, row["chosen_spans"])]
        shares.append(sum(token.likeliest for token in tokens) / len(tokens))
    expected = sum(shares) / len(shares)
    assert 0.1 < expected < 0.9
    assert len(logged) == 2
    assert logged[-1] == pytest.approx(expected, abs=1e-6)


def test_the_stage_has_a_name_of_its_own_too(run, tmp_path):
    switched = run(output_dir=str(tmp_path / "a"), name="granular_sft")
    named = run(output_dir=str(tmp_path / "b"), name="granular_sft", stage="granular_sft", granular=False)
    assert losses(named) == losses(switched)
    assert named.receipt["stage"] == switched.receipt["stage"] == "granular_sft"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"granular": "yes"}, "`granular` must be true or false, not 'yes'"),
        ({"stage": "dpo"}, "`granular` is a key of stage granular_sft, not of dpo"),
        ({"train_on_prompt": True}, "`train_on_prompt` contradicts `granular`"),
        ({"dataset": "sums"}, "stage granular_sft trains on span_pair, this dataset is negatives"),
    ],
)
def test_wrong_options_are_one_line(refused, changes, message):
    assert message in refused(name="granular_sft", **changes)


def test_data_without_any_chosen_span_are_refused(refused):
    """`spans` holds chosen spans in every third record; without those there is nothing to mask."""
    records = [{k: v for k, v in row.items() if k != "chosen_spans"} for row in granular_rows()]
    entry = {"name": "granular", "formatting": "span_pair"}
    assert "FP210 the training data chosen_spans" in refused(records, entry, name="granular_sft")


def test_a_weight_that_sft_cannot_use_is_named_with_its_line(refused):
    records = granular_rows()
    records[3]["chosen_spans"][0]["weight"] = 0.5
    entry = {"name": "granular", "formatting": "span_pair"}
    found = refused(records, entry, name="granular_sft")
    assert "FP216" in found
    assert "granular.jsonl:4 chosen_spans" in found


def test_a_record_whose_spans_are_all_beyond_the_cutoff_is_skipped_and_named(run, tmp_path):
    records = granular_rows()
    long = "so " * 200 + "2"
    records[2] |= {"chosen": long, "chosen_spans": [{"start": 600, "end": 601}]}
    folder = write_rows(tmp_path / "data", records, name="granular", formatting="span_pair")
    done = run(name="granular_sft", dataset_dir=str(folder), cutoff_len=128)
    assert done.receipt["rows"]["skipped"] == {"selected_tokens_cut": 1}
    assert 'granular.jsonl:3"' in (done.folder / "skipped.jsonl").read_text()
