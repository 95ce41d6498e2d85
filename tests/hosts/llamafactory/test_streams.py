"""`streaming: true` on two processes: each trains on rows of its own, and no row is lost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import world_sizes
from conftest import HOST, OF_A_BATCH, RECIPES
from finepref.hosts.llamafactory.streams import shares
from sample_rows import granular_rows, ranked_rows, rows, scored_rows, span_rows, write_rows
from warm import Warm

RECORDS = 13
STEPS = {"seapo_kto": 7}
"""Steps of a pass: 26 rows of seapo_kto in batches of four, the last two dealt; else 13, whose last batch has five."""


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (8, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (10, [[0, 1], [2, 3], [4, 5], [6, 7], [8], [9]]),
        (11, [[0, 1], [2, 3], [4, 5], [6, 7], [8], [9, 10]]),
        (9, [[0, 1], [2, 3], [4, 5], [6, 7, 8]]),
        (2, [[0], [1]]),
        (0, []),
    ],
)
def test_every_row_of_a_stream_is_dealt_once_and_every_process_gets_as_many_batches(count, expected):
    assert list(shares(range(count), 2, 2)) == expected


def test_batches_are_dealt_before_the_stream_ends():
    assert next(shares(iter(range(100)), 2, 2)) == [0, 1]
    endless = shares(iter(int, 1), 3, 4)
    assert [next(endless) for _ in range(9)] == [[0] * 3] * 9


def test_fewer_rows_than_processes_are_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match=r"2 rows .* of each of 3 processes: use fewer `dataloader_num_workers`"):
        list(shares(range(2), 4, 3))


@pytest.fixture(scope="module")
def streamed(tiny_model, tmp_path_factory):
    """Two passes of each stage on two processes: the output folders, and what each process has trained on."""
    folder = tmp_path_factory.mktemp("streams")
    data = write_rows(folder / "data", rows(RECORDS))
    write_rows(data, span_rows(RECORDS), "spans", formatting="span_pair")
    write_rows(data, granular_rows(RECORDS), "granular", formatting="span_pair")
    write_rows(data, scored_rows(tiny_model, RECORDS), "scores", formatting="scored_pair")
    write_rows(data, ranked_rows(RECORDS), "lists", formatting="ranked")
    stream = {
        "cache_dir": str(folder / "cache"),
        "streaming": True,
        "dataloader_num_workers": 1,
        "preprocessing_batch_size": 5,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
    }
    recipes = {}
    for stage, dataset in OF_A_BATCH.items():
        settings = world_sizes.settings_of(stage, RECIPES[stage], tiny_model, tiny_model, data, dataset)
        recipes[stage] = settings | stream | {"max_steps": 2 * STEPS.get(stage, 3)}
    notes = folder / "trained"
    notes.mkdir()
    with Warm(HOST) as process:
        variables = {"NOTE_TRAINED": str(notes)}
        outputs = world_sizes.train(process, folder / "runs", recipes, way="ddp", processes=2, environment=variables)
    return outputs, notes


def trained(notes: Path, stage: str) -> list[list[list[str]]]:
    """For each process and batch the numbers of the records, one for each sequence."""
    return [[line.split() for line in (notes / f"{stage}.{rank}").read_text().splitlines()] for rank in range(2)]


@pytest.mark.parametrize("stage", OF_A_BATCH)
def test_two_processes_train_on_every_row_once_in_each_pass(streamed, stage):
    """The sequences have many lengths, with which accelerate's own way of sharing a stream fails."""
    outputs, notes = streamed
    steps = STEPS.get(stage, 3)
    lists = [len(row["responses"]) for row in ranked_rows(RECORDS)]
    sequences = {"granular_sft": [1] * RECORDS, "apo_rm": lists, "dpo_pl": lists}
    once = dict(enumerate(sequences.get(stage, [2] * RECORDS)))
    ranks = trained(notes, stage)
    assert [len(batches) for batches in ranks] == [2 * steps, 2 * steps]
    for first in (0, steps):
        of_pass = [[int(number) for batch in batches[first : first + steps] for number in batch] for batches in ranks]
        assert Counter(of_pass[0] + of_pass[1]) == once
        assert abs(len(of_pass[0]) - len(of_pass[1])) < 12  # no process has all
    receipt = json.loads((outputs[stage] / "finepref_receipt.json").read_text())
    assert [rank["loss_calls"] for rank in receipt["ranks"]] == [receipt["expected_loss_calls"]] * 2
    assert receipt["rows"]["seen"] == 2 * RECORDS * (2 if stage == "seapo_kto" else 1)


def test_every_pass_of_a_stream_draws_anew(streamed):
    from finepref.methods.draws import digest_text, draw_digest, draw_index, sum_digests

    outputs, _ = streamed
    digests = []
    for epoch in range(2):
        for row in rows(RECORDS):
            names = sorted(row["negatives"])
            drawn = names[draw_index(names, row["id"], seed=42, epoch=epoch)]
            digests += [draw_digest(epoch, row["id"], name) for name in ("chosen", drawn)]
    receipt = json.loads((outputs["seapo_kto"] / "finepref_receipt.json").read_text())
    assert receipt["draws"]["digest"] == digest_text(sum_digests(digests))


def test_a_user_who_chose_how_batches_are_shared_keeps_that():
    from types import SimpleNamespace

    from finepref.hosts.llamafactory.streams import read_everywhere

    def chosen(**given):
        config = SimpleNamespace(split_batches=False, dispatch_batches=None)
        vars(config).update(given)
        return read_everywhere(SimpleNamespace(accelerator_config=config)), config.dispatch_batches

    assert chosen() == (True, False)
    assert chosen(dispatch_batches=True) == (False, True)
    assert chosen(split_batches=True) == (False, None)
