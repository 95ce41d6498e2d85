"""Micro-batches by a budget of tokens: rows of similar length together, the same number of batches in every epoch.

A row's companions and the order of the batches are drawn anew in each epoch, by (seed, epoch) alone. The host plans
its steps by the number of batches, which must not depend on a draw. So rows are sorted once into bins of similar
length, and the sorted rows are cut once into batches as if each row were as long as the longest of its bin. An epoch
shuffles the rows of each bin, and then the batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

PAD = 8
"""Our collators pad to a multiple of this many tokens."""
WINDOW = 50
"""Slices of rows that are sorted together, as by transformers' own grouping."""
NARROW, LEAST = 1 / 16, 2
"""By how much the lengths of a bin may differ, and how many batches of tokens it has at least. A bin with fewer is
merged with the next one: else the same rows would meet in every epoch."""


def padded(lengths: np.ndarray) -> np.ndarray:
    """Lengths as a collator pads them, if they are the longest of a batch."""
    return -(-lengths // PAD) * PAD


class RowTokens(NamedTuple):
    """How long the rows of a data set are.

    Attributes:
        widths: int64 [N, P], the padded tokens that a row brings into each of the P forward passes of a batch. A batch
            of B rows has B times the largest width of each pass.
        real: int64 [N], tokens without padding.
    """

    widths: np.ndarray
    real: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Padded tokens of each row as a batch of its own, [N]."""
        return self.widths.sum(1)


class Units(NamedTuple):
    """Rows that stay together: `first` row and `size` of each unit, int64 [U]; together all rows in their order."""

    first: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, starts: np.ndarray) -> Units:
        """Units by bool [N]: whether a row begins one."""
        first = np.flatnonzero(starts)
        return cls(first, np.diff(first, append=len(starts)))

    def rows(self, order: np.ndarray) -> np.ndarray:
        """The rows of these units, in order."""
        size = self.size[order]
        ends = size.cumsum()
        return np.arange(size.sum()) + np.repeat(self.first[order] - ends + size, size)


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers below `count` in an order drawn by seed and epoch."""
    return np.random.default_rng([seed, epoch]).random(count).argsort(kind="stable")


@dataclass
class TokenBatches:
    """Micro-batches of at most `budget` padded tokens each; a row that is longer is a batch of its own.

    Attributes:
        tokens: of the rows.
        units: rows that are in one batch, unless they are longer than the budget together.
        budget: tokens of a micro-batch.
        processes: the number of batches is a multiple of it. Where batches cannot be split for that, the first ones of
            an epoch are repeated at its end, as accelerate does.
        seed: of the order of rows and batches.
        in_order: whether rows keep the order of the data, so that nothing is sorted or shuffled.
    """

    tokens: RowTokens
    units: Units
    budget: int
    processes: int = 1
    seed: int = 0
    in_order: bool = False

    def __post_init__(self) -> None:
        widths = np.maximum.reduceat(self.tokens.widths, self.units.first)
        large = (self.units.size * widths.sum(1) > self.budget) & (self.units.size > 1)
        if large.any():
            starts = np.repeat(large, self.units.size)
            starts[self.units.first] = True
            self.units = Units.of(starts)
            widths = np.maximum.reduceat(self.tokens.widths, self.units.first)
        if self.in_order:
            self._bins = np.arange(len(widths))
        else:
            self._bins, widths = self._binned(widths)
        order = self._bins.argsort(kind="stable")
        size = self.units.size[order]
        self._cuts = self._multiple(_cuts(widths[order], size, self.budget))  # in units
        self._row_cuts = np.concatenate([[0], size.cumsum()])[self._cuts]
        batches = len(self._row_cuts) + 1
        self._repeated = -batches % self.processes

    def __len__(self) -> int:
        return len(self._row_cuts) + 1 + self._repeated

    @property
    def sizes(self) -> np.ndarray:
        """Rows of each batch; the same ones in every epoch, in another order."""
        return np.diff(self._row_cuts, prepend=0, append=len(self.tokens.real))

    @property
    def repeated(self) -> int:
        """How many batches are trained on twice in an epoch."""
        return self._repeated

    def of_epoch(self, epoch: int) -> list[list[int]]:
        """The rows of each batch. The process r of W has the batches r, r + W, r + 2 W, ..."""
        count = len(self.units.first)
        if self.in_order:
            order = np.arange(count)
        else:
            order = np.lexsort((shuffled(count, self.seed, 2 * epoch), self._bins))
        batches = np.split(self.units.rows(order), self._row_cuts)
        places = np.arange(len(batches)) if self.in_order else shuffled(len(batches), self.seed, 2 * epoch + 1)
        places = np.concatenate([places, np.resize(places, self._repeated)])
        return [batches[place].tolist() for place in places]

    def padding(self) -> float:
        """The share of padding in all tokens of an epoch."""
        return padding(self.tokens, self.of_epoch(0))

    def _binned(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The bin of each unit, from the longest, and the largest widths of its bin, [U] and [U, P]."""
        narrow = _narrow_bins(widths, self.units.size)
        count, first = narrow.max() + 1, np.unique(narrow, return_index=True)[1]
        rows = np.bincount(narrow, weights=self.units.size).astype(np.int64)
        largest = np.zeros((count, widths.shape[1]), dtype=np.int64)
        np.maximum.at(largest, narrow, widths)
        wide = _merged(rows.tolist(), largest.tolist(), self.units.size[first].tolist(), LEAST * self.budget)
        bins = np.asarray(wide)[narrow]
        top = np.zeros((wide[-1] + 1, widths.shape[1]), dtype=np.int64)
        np.maximum.at(top, wide, largest)
        return bins, top[bins]

    def _multiple(self, cuts: list[int]) -> np.ndarray:
        """These cuts and further ones, so that the number of batches is a multiple of the processes if possible."""
        sizes = np.diff([0, *cuts, len(self.units.first)])  # in units
        for _ in range(-len(sizes) % self.processes):
            place = int(sizes.argmax())
            half = int(sizes[place]) // 2
            if half:
                sizes = np.concatenate([sizes[:place], [sizes[place] - half, half], sizes[place + 1 :]])
        return sizes.cumsum()[:-1]


def _narrow_bins(widths: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Bins of units of the same number of rows, whose widths differ by `NARROW`, times the number of passes, at most.

    Neighbours are alike: where the first pass becomes shorter, the next one turns round.
    """
    steps = np.log(widths.max(0) / np.maximum(widths, 1)) / -np.log1p(-NARROW * widths.shape[1])
    steps = np.floor(steps + 1e-9).astype(np.int64)  # [U, P]
    keys = [steps[:, 0]]
    for column in steps.T[1:]:
        keys.append(np.where(keys[-1] % 2, -column, column))
    _, bins = np.unique(np.stack([-size, *keys], axis=1), axis=0, return_inverse=True)
    return bins.reshape(-1)


def _merged(rows: list[int], largest: list[list[int]], size: list[int], least: float) -> list[int]:
    """The bin into which each narrow bin is merged with its neighbours, so that it has `least` tokens if possible."""
    merged, number, total, top = [], 0, 0, [0] * len(largest[0])
    for place, (more, widths) in enumerate(zip(rows, largest, strict=True)):
        if place and (total * sum(top) >= least or size[place] != size[place - 1]):
            number, total, top = number + 1, 0, [0] * len(top)
        total, top = total + more, [*map(max, top, widths)]
        merged.append(number)
    return merged


def _cuts(widths: np.ndarray, size: np.ndarray, budget: int) -> list[int]:
    """Where batches of at most `budget` tokens end, in units. Each takes as many as fit, at least one."""
    cuts, rows, largest = [], 0, [0] * widths.shape[1]
    for place, (new, more) in enumerate(zip(widths.tolist(), size.tolist(), strict=True)):
        joined = [*map(max, largest, new)]
        if rows and (rows + more) * sum(joined) > budget:
            cuts.append(place)
            rows, largest = more, new
        else:
            rows, largest = rows + more, joined
    return cuts


def padding(tokens: RowTokens, batches: list[list[int]]) -> float:
    """The share of padding in all tokens of some batches."""
    lengths = np.fromiter(map(len, batches), dtype=np.int64, count=len(batches))
    rows = np.concatenate([*map(np.asarray, batches)])
    largest = np.maximum.reduceat(tokens.widths[rows], lengths.cumsum() - lengths)
    return 1 - tokens.real[rows].sum() / (lengths * largest.sum(1)).sum()


def random_padding(tokens: RowTokens, size: int, seed: int) -> float:
    """The share of padding in batches of `size` rows in random order."""
    rows = shuffled(len(tokens.real), seed, 0)
    return padding(tokens, [rows[i : i + size].tolist() for i in range(0, len(rows), size)])


def grouped(order: np.ndarray, lengths: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """The same rows in an order in which each slice of `size` rows has similar lengths; the slices are shuffled.

    Rows are sorted in windows of `WINDOW` slices, or of a quarter of all slices if these are fewer.

    Args:
        order: rows in random order, a multiple of `size`.
        lengths: of all rows.
        size: rows of a slice.
        seed, epoch: draw the order of the slices.
    """
    slices = len(order) // size
    window = max(1, min(WINDOW, slices // 4))
    windows = np.arange(len(order)) // (window * size)
    ordered = order[np.lexsort((-lengths[order], windows))].reshape(slices, size)
    return ordered[shuffled(slices, seed, epoch)].reshape(-1)


def side_by_side(order: np.ndarray, units: Units, size: int) -> Iterator[int]:
    """Rows in this order of their units. As far as possible, the batches of `size` rows that are cut from them do not
    part a unit: where one row is missing in a batch, a unit of one row is put before its turn.
    """
    sizes = units.size[order].tolist()
    singles = iter(place for place, count in enumerate(sizes) if count == 1)
    used, room = set(), size
    for place, count in enumerate(sizes):
        if place in used:
            used.remove(place)
            continue
        if count > room and size > 1:
            early = next((other for other in singles if other > place), None)
            if early is not None:
                used.add(early)
                yield int(units.first[order[early]])
                room = size
        first = int(units.first[order[place]])
        yield from range(first, first + count)
        room = (room - count - 1) % size + 1
