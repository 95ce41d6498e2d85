"""Micro-batches by a budget of tokens: what each has, in every epoch, and which rows stay together."""

from __future__ import annotations

import numpy as np
import pytest
from finepref.hosts.batching import (
    RowTokens,
    TokenBatches,
    Units,
    padded,
    padding,
    random_padding,
    shuffled,
    side_by_side,
)

BUDGET = 4096


def drawn(count: int, passes: int = 1, seed: int = 0) -> RowTokens:
    """Rows of 8 to 3000 tokens in each forward pass, few of them long."""
    lengths = np.random.default_rng(seed).lognormal(5, 1, (count, passes)).clip(8, 3000).astype(np.int64)
    return RowTokens(padded(lengths), lengths.sum(1))


def each_alone(count: int) -> Units:
    return Units.of(np.ones(count, dtype=bool))


def cost(tokens: RowTokens, rows: list[int]) -> int:
    """Padded tokens of a batch, counted row by row."""
    return sum(
        len(rows) * max(int(tokens.widths[row, each]) for row in rows) for each in range(tokens.widths.shape[1])
    )


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("count", [1, 7, 300])
def test_an_epoch_has_every_row_once_in_batches_that_fit_the_budget(count, passes):
    tokens = drawn(count, passes)
    batches = TokenBatches(tokens, each_alone(count), BUDGET).of_epoch(0)
    assert sorted(row for rows in batches for row in rows) == [*range(count)]
    assert all(cost(tokens, rows) <= BUDGET for rows in batches)


def test_a_row_beyond_the_budget_is_a_batch_of_its_own():
    lengths = np.array([8, 800, 8, 16])
    batches = TokenBatches(RowTokens(lengths[:, None], lengths), each_alone(4), 100).of_epoch(0)
    assert sorted(map(sorted, batches)) == [[0, 2, 3], [1]]


def test_batches_take_as_many_rows_as_fit():
    lengths = np.full(10, 24)
    batches = TokenBatches(RowTokens(lengths[:, None], lengths), each_alone(10), 100).of_epoch(3)
    assert sorted(map(len, batches)) == [2, 4, 4]


def test_epochs_have_equal_sizes_of_batches_but_other_companions_in_another_order():
    batches = TokenBatches(drawn(3000), each_alone(3000), BUDGET, seed=5)
    first, second = batches.of_epoch(0), batches.of_epoch(1)
    assert len(first) == len(second) == len(batches)
    assert sorted(map(len, first)) == sorted(map(len, second)) == sorted(batches.sizes)
    pairs = [{(a, b) for rows in epoch for a in rows for b in rows if a < b} for epoch in (first, second)]
    assert len(pairs[0] & pairs[1]) < len(pairs[0]) / 3
    assert [*map(len, first)] != sorted(map(len, first))
    assert first == TokenBatches(drawn(3000), each_alone(3000), BUDGET, seed=5).of_epoch(0)
    assert first != TokenBatches(drawn(3000), each_alone(3000), BUDGET, seed=6).of_epoch(0)


@pytest.mark.parametrize("passes", [1, 2])
def test_rows_of_similar_length_leave_a_third_of_the_padding_of_random_batches(passes):
    tokens = drawn(3000, passes)
    batches = TokenBatches(tokens, each_alone(3000), BUDGET)
    rows = round(batches.sizes.mean())
    assert batches.padding() < random_padding(tokens, rows, 0) / 3


def test_padding_is_the_share_of_what_is_not_a_token():
    tokens = RowTokens(np.array([[8, 16], [16, 8], [8, 8]]), np.array([20, 21, 10]))
    assert padding(tokens, [[0, 1], [2]]) == pytest.approx(1 - 51 / (2 * (16 + 16) + 16))


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_the_number_of_batches_is_a_multiple_of_the_processes_without_a_row_twice(processes):
    batches = TokenBatches(drawn(300), each_alone(300), BUDGET, processes=processes)
    assert len(batches) % processes == batches.repeated == 0
    assert sorted(row for rows in batches.of_epoch(2) for row in rows) == [*range(300)]
    assert len(batches) - len(TokenBatches(drawn(300), each_alone(300), BUDGET)) < processes


def test_batches_that_cannot_be_split_are_repeated_for_the_processes():
    lengths = np.full(5, 90)
    batches = TokenBatches(RowTokens(lengths[:, None], lengths), each_alone(5), 100, processes=4)
    epoch = batches.of_epoch(1)
    assert (len(batches), batches.repeated) == (8, 3)
    assert epoch[5:] == epoch[:3]
    assert sorted(row for rows in epoch[:5] for row in rows) == [*range(5)]


def test_both_rows_of_a_record_are_in_one_batch_if_they_fit_together():
    """Records of two rows, every fifth of one row; the budget is too small for a few records."""
    starts = np.array([row % 9 not in (1, 3, 5, 7) for row in range(270)])
    tokens, units = drawn(270, 2), Units.of(starts)
    assert set(units.size) == {1, 2}
    batches = TokenBatches(tokens, units, BUDGET, processes=2)
    place = {row: index for index, rows in enumerate(batches.of_epoch(1)) for row in rows}
    parted = [first for first in units.first[units.size == 2].tolist() if place[first] != place[first + 1]]
    too_long = [first for first in units.first[units.size == 2].tolist() if cost(tokens, [first, first + 1]) > BUDGET]
    assert parted == too_long != []
    assert sorted(place) == [*range(270)]
    assert all(cost(tokens, rows) <= BUDGET or len(rows) == 1 for rows in batches.of_epoch(1))


def test_in_order_the_rows_stay_as_they_are_in_every_epoch():
    lengths = np.array([8, 8, 40, 8, 8, 8])
    batches = TokenBatches(RowTokens(lengths[:, None], lengths), each_alone(6), 80, in_order=True)
    assert batches.of_epoch(0) == batches.of_epoch(1) == [[0, 1], [2, 3], [4, 5]]


def chunks(rows: list[int], size: int) -> list[list[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_batches_of_rows_part_a_record_only_where_no_single_row_is_left_to_fill_them(size):
    """16 records of two rows and 8 of one."""
    units = Units(np.arange(24) * 2 - np.maximum(np.arange(24) - 16, 0), np.array([2] * 16 + [1] * 8))
    for seed in range(5):
        order = shuffled(24, seed, 0)
        rows = [*side_by_side(order, units, size)]
        assert sorted(rows) == [*range(40)]
        batches = chunks(rows, size)
        last_single = max(index for index, batch in enumerate(batches) if any(row >= 32 for row in batch))
        for batch in batches[:last_single]:
            halves = [row for row in batch if row < 32 and row ^ 1 not in batch]
            assert halves == [], (seed, batch)


def test_without_single_rows_an_even_batch_has_whole_records_in_the_drawn_order():
    units = Units(np.arange(0, 12, 2), np.full(6, 2))
    order = shuffled(6, 1, 0)
    rows = [*side_by_side(order, units, 4)]
    assert rows == [row for record in order.tolist() for row in (2 * record, 2 * record + 1)]
