"""What a reward model is worth: accuracy, margins, calibration. N records, R responses, P pairs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from finepref.losses.calibration import calibration_error, reliability

KINDS = ("human", "apo")
MOST_GAPS = 8  # up to that many different score gaps have an accuracy each, more of them one per quarter


class Pairs(NamedTuple):
    """All pairs of differently scored responses of one record, each [P]."""

    better: Tensor  # reward of the response with the higher score
    worse: Tensor  # reward of the other one
    gap: Tensor  # difference of the scores, above 0
    record: Tensor  # index of the record

    @property
    def margin(self) -> Tensor:
        """The difference of the rewards, above 0 where the model is right: [P]."""
        return self.better - self.worse


def pairs_of(rewards: Tensor, scores: Tensor, present: Tensor) -> Pairs:
    """Every pair once: rewards, scores, present [N, R].

    Raises:
        ValueError: the shapes differ; nothing is broadcast.
    """
    if rewards.dim() != 2 or not rewards.shape == scores.shape == present.shape:
        shapes = [[*tensor.shape] for tensor in (rewards, scores, present)]
        raise ValueError(f"rewards, scores and present must be [N, R], got {shapes}")
    present = present.bool()
    gap = scores.unsqueeze(2) - scores.unsqueeze(1)  # [N, R, R]
    record, better, worse = ((gap > 0) & present.unsqueeze(2) & present.unsqueeze(1)).nonzero(as_tuple=True)
    return Pairs(rewards[record, better], rewards[record, worse], gap[record, better, worse], record)


NAMES = (
    *(f"rewards/{name}" for name in ("accuracies", "chosen", "rejected", "margins")),
    *(f"rewards/accuracies/{kind}" for kind in KINDS),
    "rewards/mean",
)
"""What `totals` counts: accuracy (also by kind), rewards of better and worse responses, margin, mean reward."""


def totals(rewards: Tensor, scores: Tensor, present: Tensor, is_apo: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """(sum, count) of each of `NAMES`, float64 scalars, so that batches and ranks add up; is_apo [N]."""
    pairs = pairs_of(rewards, scores, present)
    better, worse = pairs.better.double(), pairs.worse.double()
    right = (better > worse).double()
    count = right.new_tensor(len(right))
    values = (right, better, worse, better - worse)
    found = {name: (value.sum(), count) for name, value in zip(NAMES, values, strict=False)}
    for kind, members in zip(KINDS, (~is_apo.bool(), is_apo.bool()), strict=True):
        own = members[pairs.record]  # [P]
        found[f"rewards/accuracies/{kind}"] = right[own].sum(), own.sum().double()
    given = rewards[present.bool()].double()
    return found | {"rewards/mean": (given.sum(), given.new_tensor(len(given)))}


def metrics(rewards: Tensor, scores: Tensor, present: Tensor, is_apo: Tensor) -> dict[str, float]:
    """The means of `totals` over a whole set, accuracy by score gap, ECE, ACE and MCE; is_apo [N]."""
    summed = totals(rewards, scores, present, is_apo).items()
    found = {name: (total / count).item() for name, (total, count) in summed if count}
    pairs = pairs_of(rewards, scores, present)
    for name, members in by_gap(pairs.gap):
        found[f"rewards/accuracies/gap_{name}"] = (pairs.margin[members] > 0).double().mean().item()
    errors = calibration_error(*preferences(pairs.margin))
    return found | {f"calibration/{name}": value for name, value in zip(("ece", "ace", "mce"), errors, strict=True)}


def padded(
    rewards: Sequence[Sequence[float]], scores: Sequence[Sequence[float]], kinds: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lists of any length as what `metrics` takes: rewards, scores, present [N, R] and is_apo [N].

    Raises:
        ValueError: a record's rewards and scores differ in number.
    """
    width = max(map(len, rewards), default=0)
    rows = zip(rewards, scores, strict=True)
    for own, told in rows:
        if len(own) != len(told):
            raise ValueError(f"{len(own)} rewards and {len(told)} scores")
    tables = [
        torch.tensor([[*row, *[0.0] * (width - len(row))] for row in table], dtype=torch.float64)
        for table in (rewards, scores)
    ]
    present = torch.tensor([[i < len(row) for i in range(width)] for row in rewards])
    return tables[0], tables[1], present, torch.tensor([kind == "apo" for kind in kinds])


def by_gap(gap: Tensor) -> list[tuple[str, Tensor]]:
    """(name, members [P]): one group per score gap, or four of about equal size where there are too many gaps."""
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


def preferences(margin: Tensor) -> tuple[Tensor, Tensor]:
    """(probability that i is preferred, whether it is) for both orders of each pair, as the authors count: [2P]."""
    both = torch.cat((margin, -margin)).double()
    return both.sigmoid(), torch.cat((torch.ones_like(margin), torch.zeros_like(margin)))


def draw_reliability(pairs: Pairs, file: Path) -> None:
    """The reliability diagram of the pairs as a PNG."""
    from matplotlib.figure import Figure

    probabilities, labels = preferences(pairs.margin)
    count, confidence, accuracy = (part.tolist() for part in reliability(probabilities, labels))
    errors = calibration_error(probabilities, labels)
    filled = [i for i, size in enumerate(count) if size]
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle="--")
    axis.bar([(i + 0.5) / len(count) for i in filled], [accuracy[i] for i in filled], width=0.09, alpha=0.5)
    axis.plot([confidence[i] for i in filled], [accuracy[i] for i in filled], marker="o")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_xlabel("probability that a response is preferred")
    axis.set_ylabel("share of cases in which it is")
    axis.set_title(
        f"{len(pairs.gap)} pairs: ECE {errors.expected:.3f}, ACE {errors.average:.3f}, MCE {errors.maximum:.3f}"
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
