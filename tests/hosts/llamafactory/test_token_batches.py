"""Micro-batches of our stages: a budget of tokens, length groups, and a record's rows side by side."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import RECIPES, losses, weights
from finepref.hosts.batching import Units
from finepref.hosts.llamafactory import batches
from sample_rows import granular_rows, ranked_rows, rows, scored_rows, span_rows, write_rows
from test_single_rows import MIXED

STAGES = ("seapo_kto", "sepo", "tdpo", "apo_rm", "dpo_pl", "granular_sft")
BUDGET = {"seapo_kto": 700, "sepo": 400, "tdpo": 400, "apo_rm": 600, "dpo_pl": 600, "granular_sft": 250}


def lengthened(records: list[dict]) -> list[dict]:
    """Prompts of very different lengths, so that a budget makes batches of one row and of several."""
    for index, record in enumerate(records):
        record["prompt"] += " Please." * (index % 4 * 3)
    return records


@pytest.fixture(scope="module")
def long_and_short(tiny_model, tmp_path_factory):
    """The data sets of `sums` with such prompts."""
    folder = write_rows(tmp_path_factory.mktemp("lengths"), lengthened(rows()))
    for name, made, formatting in (
        ("spans", span_rows(), "span_pair"),
        ("granular", granular_rows(), "span_pair"),
        ("scores", scored_rows(tiny_model), "scored_pair"),
        ("lists", ranked_rows(), "ranked"),
    ):
        write_rows(folder, lengthened(made), name, formatting=formatting)
    return folder


@pytest.fixture
def spied(monkeypatch) -> list:
    """(trainer, rows of each micro-batch that the collator was called for), of each training in this process."""
    found = []
    original = batches.Batched.get_train_dataloader

    def get_train_dataloader(self):
        collator, places = self.data_collator, []
        found.append((self, places))

        def noting(features):
            places.append(features)
            return collator(features)

        self.data_collator = noting
        try:
            return original(self)
        finally:
            self.data_collator = collator

    monkeypatch.setattr(batches.Batched, "get_train_dataloader", get_train_dataloader)
    return found


def of_ids(places: list) -> list[list[str]]:
    return [[row["example_id"] for row in features] for features in places]


def model_tokens(batch: dict) -> int:
    """Padded tokens that the model reads of a batch."""
    if "present" in batch:
        return int(batch["present"].sum()) * batch["input_ids"].shape[-1]
    return sum(batch[name].numel() for name in ("input_ids", "kl_input_ids") if name in batch)


@pytest.mark.parametrize("stage", STAGES)
def test_an_epoch_has_each_row_once_in_batches_within_the_budget_and_the_log_tells_them(
    run, long_and_short, spied, caplog, stage
):
    budget = BUDGET[stage]
    common = {"max_steps": -1, "num_train_epochs": 1, "dataloader_num_workers": 0}
    done = run(name=RECIPES[stage], dataset_dir=str(long_and_short), finepref_batch_tokens=budget, **common)
    (trainer, places), count = spied[0], 24 if stage == "seapo_kto" else 12
    assert sum(map(len, places)) == count == done.receipt["rows"]["seen"]
    assert len({(row["example_id"], row.get("kto_tags")) for features in places for row in features}) == count
    read = [model_tokens(trainer.data_collator(features)) for features in places]
    assert all(tokens <= budget or len(features) == 1 for tokens, features in zip(read, places, strict=True))
    sizes = [*map(len, places)]
    assert min(sizes) < max(sizes)
    told = f"{len(places)} micro-batches in an epoch with {min(sizes)} to {max(sizes)} rows, "
    assert f"`finepref_batch_tokens: {budget}`: {told}" in caplog.text
    assert "`per_device_train_batch_size: 2` would give " in caplog.text
    tokens = trainer.adapter.row_tokens(trainer.train_dataset)
    alone = [model_tokens(trainer.data_collator([row])) for row in trainer.train_dataset]
    longest = stage == "seapo_kto"  # another alternative may be longer than the drawn one
    assert all(mine >= real if longest else mine == real for mine, real in zip(tokens.total, alone, strict=True))


STEP = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 1e9}
CASES = {
    "sepo": {"name": "sepo"},
    "tdpo": {"name": "tdpo_spans"},
    "seapo_kto": {"pref_ftx": 0.5, "kto_chosen_weight": 1.5},
    "apo_rm": {"name": "apo_rm"},
    "dpo_pl": {"name": "dpo_pl"},
    "granular_sft": {"name": "granular_sft"},
}


@pytest.fixture(scope="module")
def in_one() -> dict:
    """The steps with all rows in one micro-batch, by case."""
    return {}


@pytest.fixture
def whole_step(run, in_one, long_and_short, tmp_path):
    """Train one step on all rows in one micro-batch, once per case."""

    def call(case: str):
        if case not in in_one:
            common = {"per_device_train_batch_size": 24, "gradient_accumulation_steps": 1, **STEP}
            done = run(**CASES[case], **common, dataset_dir=str(long_and_short), output_dir=str(tmp_path / "one"))
            in_one[case] = losses(done)[0], weights(done.folder)
        return in_one[case]

    return call


@pytest.mark.parametrize("case", CASES)
def test_a_row_counts_the_same_in_a_micro_batch_of_one_and_of_many(run, whole_step, long_and_short, tmp_path, case):
    """One step over the whole epoch, in micro-batches of 1 to 6 rows and in one of all rows."""
    loss, expected = whole_step(case)
    budget = BUDGET[case]
    done = run(
        **CASES[case],
        **STEP,
        gradient_accumulation_steps=50,
        finepref_batch_tokens=budget,
        dataset_dir=str(long_and_short),
    )
    assert losses(done)[0] == pytest.approx(loss, abs=2e-6)
    for name, tensor in weights(done.folder).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", ["sepo", "seapo_kto"])
def test_two_ranks_take_the_step_of_one_process(forked, whole_step, long_and_short, case):
    loss, expected = whole_step(case)
    done = forked(
        processes=2,
        **CASES[case],
        **STEP,
        gradient_accumulation_steps=50,
        finepref_batch_tokens=BUDGET[case],
        dataset_dir=str(long_and_short),
    )
    assert done.code == 0, done.output[-3000:]
    log = json.loads((done.folder / "trainer_state.json").read_text())["log_history"]
    assert log[0]["loss"] == pytest.approx(loss, abs=2e-6)
    for name, tensor in weights(done.folder).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-6)
    calls = {rank["loss_calls"] for rank in done.receipt["ranks"]}
    assert calls == {done.receipt["expected_loss_calls"]}
    assert done.receipt["rows"]["seen"] == (24 if case == "seapo_kto" else 12)


@pytest.mark.parametrize("given", [{"finepref_batch_tokens": 500}, {"train_sampling_strategy": "group_by_length"}])
def test_a_resume_in_the_second_epoch_continues_with_the_same_rows(run, long_and_short, spied, tmp_path, given):
    common = {"max_steps": -1, "num_train_epochs": 3, "save_steps": 1, "dataset_dir": str(long_and_short), **given}
    whole = run(output_dir=str(tmp_path / "whole"), **common)
    steps = json.loads((whole.folder / "trainer_state.json").read_text())["max_steps"]
    assert steps % 3 == 0
    assert steps // 3 >= 3
    middle = steps // 3 + 2
    again = run(
        output_dir=str(tmp_path / "again"),
        resume_from_checkpoint=str(whole.folder / f"checkpoint-{middle}"),
        **common,
    )
    (_, before), (_, after) = spied
    rest = of_ids(before)[-len(after) :]
    assert of_ids(after) == rest
    epochs = np.array_split(np.array(of_ids(before), dtype=object), 3)
    assert len({str([*epoch]) for epoch in epochs}) == 3
    for name, tensor in weights(whole.folder).items():
        torch.testing.assert_close(tensor, weights(again.folder)[name], rtol=0, atol=1e-6)


def test_a_resume_on_two_ranks_in_the_second_epoch_continues_with_the_same_rows(forked, long_and_short, tmp_path):
    common = {"max_steps": -1, "num_train_epochs": 2, "save_steps": 1, "dataset_dir": str(long_and_short)}
    common |= {"processes": 2, "gradient_accumulation_steps": 1, "finepref_batch_tokens": 500, "save_only_model": True}
    common |= STEP | {"max_steps": -1, "finetuning_type": "full"}
    whole = forked(output_dir=str(tmp_path / "whole"), **common)
    assert whole.code == 0, whole.output[-3000:]
    steps = json.loads((whole.folder / "trainer_state.json").read_text())["max_steps"]
    middle = whole.folder / f"checkpoint-{steps // 2 + 1}"
    again = forked(output_dir=str(tmp_path / "again"), resume_from_checkpoint=str(middle), **common)
    assert again.code == 0, again.output[-3000:]
    for name, tensor in weights(whole.folder).items():
        torch.testing.assert_close(tensor, weights(again.folder)[name], rtol=0, atol=1e-6)


def test_workers_of_the_data_loader_change_nothing(run, long_and_short, tmp_path):
    common = {"name": "sepo", "finepref_batch_tokens": 400, "max_steps": 6, "dataset_dir": str(long_and_short)}
    plain = run(output_dir=str(tmp_path / "plain"), **common)
    workers = run(output_dir=str(tmp_path / "two"), dataloader_num_workers=2, **common)
    assert losses(workers) == losses(plain)


def test_in_the_order_of_the_data_the_budget_cuts_it_into_batches(run, long_and_short, spied):
    common = {"max_steps": -1, "num_train_epochs": 2, "dataset_dir": str(long_and_short)}
    run(name="tdpo_spans", finepref_batch_tokens=600, disable_shuffling=True, **common)
    seen = [name for ids in of_ids(spied[0][1]) for name in ids]
    assert seen == [f"span-{i}" for i in range(12)] * 2


@pytest.mark.parametrize("stage", STAGES)
def test_the_hosts_group_by_length_trains_and_evaluates_with_the_lengths_of_our_rows(
    run, long_and_short, spied, monkeypatch, stage
):
    grouped = []
    original = batches.get_length_grouped_indices

    def get_length_grouped_indices(lengths, batch_size, **rest):
        grouped.append((lengths, batch_size, original(lengths, batch_size, **rest)))
        return grouped[-1][-1]

    monkeypatch.setattr(batches, "get_length_grouped_indices", get_length_grouped_indices)
    evaluated = {"val_size": 4, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4}
    given = {"max_steps": 1, "gradient_accumulation_steps": 4, "dataset_dir": str(long_and_short), **evaluated}
    if stage == "seapo_kto":  # else both rows of a record are one unit, see below
        given["finepref_prefix_sharing"] = "off"
    done = run(name=RECIPES[stage], train_sampling_strategy="group_by_length", **given)
    ((trainer, places),) = spied
    ((lengths, size, order),) = grouped
    assert lengths == trainer.adapter.row_tokens(trainer.train_dataset).total.tolist()
    assert size == 2 * 4
    names = trainer.train_dataset["example_id"]
    assert [name for ids in of_ids(places) for name in ids][:8] == [names[row] for row in order[:8]]
    assert any("eval_loss" in entry for entry in done.log)


def test_rows_grouped_by_length_keep_the_two_of_a_record_together_and_differ_little():
    units = Units(np.arange(0, 800, 2), np.full(400, 2))
    lengths = (np.arange(400) * 37 % 400).tolist()
    order = batches.RowOrder(units, size=4, seed=1, epoch=torch.zeros(1), lengths=lengths, window=8)
    rows = [*order]
    assert sorted(rows) == [*range(800)]
    found = [[lengths[row // 2] for row in rows[i : i + 4]] for i in range(0, 800, 4)]
    assert all(a == b and c == d for a, b, c, d in found)
    assert np.mean([max(each) - min(each) for each in found]) < 20


@pytest.mark.parametrize("given", [{"per_device_train_batch_size": 4}, {"finepref_batch_tokens": 700}], ids=str)
@pytest.mark.parametrize("records", ["records", "records and single rows"])
def test_both_rows_of_a_record_are_in_one_micro_batch_and_nothing_else_changes(run, spied, tmp_path, records, given):
    data = {}
    if records != "records":
        data["dataset_dir"] = str(write_rows(tmp_path / "mixed", MIXED, "sums", formatting="feedback"))
    common = {"max_steps": -1, "num_train_epochs": 2, **data, **given}
    found = {}
    for value in ("off", "auto"):
        found[value] = run(output_dir=str(tmp_path / value), finepref_prefix_sharing=value, **common).receipt
    parted = []
    for trainer, places in spied:
        pairs = [[row["example_id"] for row in features if not row["single"]] for features in places]
        parted.append(sum(ids.count(name) == 1 for ids in pairs for name in ids))
        assert trainer.run.options is not None
    assert parted[0] > 0
    assert parted[1] == 0
    for key in ("draws", "rows", "single_rows"):
        assert found["auto"].get(key) == found["off"].get(key), key
    assert [rank["drawn"] for rank in found["auto"]["ranks"]] == [rank["drawn"] for rank in found["off"]["ranks"]]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"streaming": True, "dataloader_num_workers": 1},
            "`streaming`: the lengths of a stream's rows are not known",
        ),
        ({"auto_find_batch_size": True}, "`auto_find_batch_size`: it changes a number of rows"),
        ({"accelerator_config": {"split_batches": True}}, "`accelerator_config.split_batches`: "),
        ({"accelerator_config": {"dispatch_batches": True}}, "`accelerator_config.dispatch_batches`: "),
        ({"finepref_batch_tokens": 0}, "`finepref_batch_tokens` must be at least 1, not 0"),
        ({"finepref_batch_tokens": 4096.0}, "`finepref_batch_tokens` must be a whole number, not 4096.0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_contradicts_a_budget_is_refused_in_one_line(refused, given, text):
    message = refused(**{"name": "sepo", "finepref_batch_tokens": 4096, **given})
    assert text in message
    assert message.count("\n") == 0
