"""Quality metrics of a reward model: accuracy, margins, calibration. N records, R responses, P pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finepref.synth.calibration import calibration, calibration_error, draw, of_margins

KINDS = ("human", "apo")
MOST_GAPS = 8  # up to this many score gaps get an accuracy each; if there are more, each quarter of the pairs gets one


class Pairs(NamedTuple):
    """All pairs of differently scored responses of one record, each [P]."""

    better: Tensor  # reward of the response with the higher score
    worse: Tensor  # reward of the other one
    gap: Tensor  # difference of the scores, above 0
    record: Tensor  # index of the record

    @property
    def margin(self) -> Tensor:
        """Difference of the rewards [P], above 0 if the model ranks the pair correctly."""
        return self.better - self.worse


def pairs_of(rewards: Tensor, scores: Tensor, present: Tensor) -> Pairs:
    """All pairs of differently scored responses of a record, each pair once.

    Args:
        rewards, scores: [N, R].
        present: [N, R], False or 0 for padding.

    Raises:
        ValueError: the shapes differ; nothing is broadcast.
    """
    record, better, worse = _ordered(rewards, scores, present).nonzero(as_tuple=True)
    gap = scores[record, better] - scores[record, worse]
    return Pairs(rewards[record, better], rewards[record, worse], gap, record)


def _ordered(rewards: Tensor, scores: Tensor, present: Tensor) -> Tensor:
    """Whether response i of a record has a higher score than j: bool [N, R, R]. Raises as `pairs_of`."""
    if rewards.dim() != 2 or not rewards.shape == scores.shape == present.shape:
        shapes = [[*tensor.shape] for tensor in (rewards, scores, present)]
        raise ValueError(f"rewards, scores and present must be [N, R], got {shapes}")
    present = present.bool()
    return (scores.unsqueeze(2) > scores.unsqueeze(1)) & present.unsqueeze(2) & present.unsqueeze(1)


NAMES = (
    *(f"rewards/{name}" for name in ("accuracies", "chosen", "rejected", "margins")),
    *(f"rewards/accuracies/{kind}" for kind in KINDS),
    "rewards/mean",
)
"""Names of the metrics of `totals`; "chosen" is the response with the higher score of a pair."""


def totals(rewards: Tensor, scores: Tensor, present: Tensor, is_apo: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """(sum, count) of each metric in `NAMES`: float64 scalars, which can be added over batches and ranks.

    They are computed on the device, without waiting for it.

    Args:
        rewards, scores, present: [N, R], see `pairs_of`.
        is_apo: [N], whether a record is of kind "apo".
    """
    ordered = _ordered(rewards, scores, present)  # [N, R, R]
    high, low = rewards.double().unsqueeze(2), rewards.double().unsqueeze(1)
    right = (high > low).double()
    found = {
        name: (torch.where(ordered, value, 0.0).sum(), ordered.sum().double())
        for name, value in zip(NAMES, (right, high, low, high - low), strict=False)
    }
    for kind, members in zip(KINDS, (~is_apo.bool(), is_apo.bool()), strict=True):
        own = ordered & members[:, None, None]
        found[f"rewards/accuracies/{kind}"] = torch.where(own, right, 0.0).sum(), own.sum().double()
    there = present.bool()
    return found | {"rewards/mean": (torch.where(there, rewards, 0.0).double().sum(), there.sum().double())}


def metrics(rewards: Tensor, scores: Tensor, present: Tensor, is_apo: Tensor) -> dict[str, float]:
    """All metrics of a whole data set: the means of `totals`, accuracy by score gap, and ECE, ACE and MCE.

    Args:
        rewards, scores, present: [N, R], see `pairs_of`.
        is_apo: [N], whether a record is of kind "apo".
    """
    summed = totals(rewards, scores, present, is_apo).items()
    found = {name: (total / count).item() for name, (total, count) in summed if count}
    pairs = pairs_of(rewards, scores, present)
    for name, members in by_gap(pairs.gap):
        found[f"rewards/accuracies/gap_{name}"] = (pairs.margin[members] > 0).double().mean().item()
    errors = calibration_error(*of_margins(pairs.margin.double()))
    return found | {f"calibration/{name}": value for name, value in zip(("ece", "ace", "mce"), errors, strict=True)}


def padded(
    rewards: Sequence[Sequence[float]], scores: Sequence[Sequence[float]], kinds: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pad lists of any length to the arguments of `metrics`: rewards, scores, present [N, R] and is_apo [N].

    Raises:
        ValueError: a record's rewards and scores differ in number.
    """
    width = max(map(len, rewards), default=0)
    rows = zip(rewards, scores, strict=True)
    for own, given in rows:
        if len(own) != len(given):
            raise ValueError(f"{len(own)} rewards and {len(given)} scores")
    tables = [
        torch.tensor([[*row, *[0.0] * (width - len(row))] for row in table], dtype=torch.float64)
        for table in (rewards, scores)
    ]
    present = torch.tensor([[i < len(row) for i in range(width)] for row in rewards])
    return tables[0], tables[1], present, torch.tensor([kind == "apo" for kind in kinds])


def by_gap(gap: Tensor) -> list[tuple[str, Tensor]]:
    """(name, bool members [P]) of each score gap, or of four groups of about equal size if there are too many."""
    named: dict[str, list[float]] = {}
    for value in gap.unique().tolist():
        named.setdefault(f"{value:g}", []).append(value)  # 0.3 - 0.2 and 0.2 - 0.1 are one gap
    if len(named) <= MOST_GAPS:
        return [(name, torch.isin(gap, torch.tensor(values, dtype=gap.dtype))) for name, values in named.items()]
    edges = gap.quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=gap.dtype)).unique().tolist()
    groups = []
    for number, (low, high) in enumerate(pairwise(edges), start=1):
        members = (gap <= high) & ((gap > low) | (number == 1))
        groups.append((f"q{number}_to_{high:.3g}", members))
    return groups


def calibration_of(pairs: Pairs) -> dict[str, Any]:
    """All figures of the calibration of the pairs, see `calibration`; pairs of one record are drawn together."""
    return calibration(*of_margins(pairs.margin.double()), groups=pairs.record)


def draw_reliability(found: Mapping[str, Any], file: Path, *, title: str) -> None:
    """Write the reliability diagram of what `calibration_of` found as a PNG file."""
    draw(found, file, title=title, lowest=0.5, unit="pairs")
