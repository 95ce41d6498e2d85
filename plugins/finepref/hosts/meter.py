"""Metrics between two log entries and counts of a whole run: summed on the device, read only when they are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from finepref.losses.ranks import sum_over_ranks


class Meter:
    """Means of named values, by split ("train", "eval").

    Args:
        names: all metrics that may be added. The same on every rank, also on a rank that gets no batch of a split.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.totals: dict[str, Tensor] = {}  # split -> [2, names] float64: sums, counts

    def add(self, split: str, totals: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add (sum, count), a pair of scalars, of some of the metrics. Does not wait for the device.

        Raises:
            ValueError: a metric is not among `names`, which would lose it.
        """
        if unknown := sorted(totals.keys() - {*self.names}):
            raise ValueError(f"the loss returned {', '.join(unknown)}: add the names to `metrics` of the stage row")
        if not totals:  # of a stage without metrics
            return
        device = next(iter(totals.values()))[0].device
        zero = torch.zeros((), dtype=torch.float64, device=device)
        flat = [part.detach().double() for name in self.names for part in totals.get(name, (zero, zero))]
        mine = torch.stack(flat).unflatten(0, (-1, 2)).T
        self.totals[split] = self.totals[split] + mine if split in self.totals else mine

    def add_values(self, split: str, values: Mapping[str, Tensor], valid: Tensor) -> None:
        """Add values [B], of which only those with `valid` [B] count."""
        count = valid.sum()
        self.add(split, {n: (torch.where(valid, v.detach(), 0.0).sum(), count) for n, v in values.items()})

    def sums(self, split: str, device: torch.device | str) -> dict[str, tuple[float, float]]:
        """(sum, count) over all ranks since the last call, of metrics with a count. Every rank must call this."""
        nothing = torch.zeros(2, len(self.names), dtype=torch.float64, device=device)
        totals, counts = sum_over_ranks(self.totals.pop(split, nothing)).tolist()
        named = zip(self.names, totals, counts, strict=True)
        return {name: (total, count) for name, total, count in named if count}

    def means(self, split: str, device: torch.device | str) -> dict[str, float]:
        """Mean of each metric over all ranks since the last call. Every rank must call this."""
        return {name: total / count for name, (total, count) in self.sums(split, device).items()}


class Tally:
    """Counts by name since the start of the run. An accelerator is waited for only when they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, int | Tensor] = {}

    def add(self, /, **numbers: int | Tensor) -> None:
        """Add numbers, or tensors with one integer."""
        for name, number in numbers.items():
            self.sums[name] = self.sums.get(name, 0) + (number.detach() if isinstance(number, Tensor) else number)

    def read(self) -> dict[str, int]:
        """The counts, sorted by name."""
        return {name: int(number) for name, number in sorted(self.sums.items())}
