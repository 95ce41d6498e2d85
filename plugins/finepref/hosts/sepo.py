"""SePO (arXiv 2408.13518) on any host: which tokens it trains on, and its loss from their log-probabilities.

The tokens are chosen at train time from one score per token, or the data brings spans. `arguments` has the keys of
`SepoOptions`.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from finepref.formats.problems import BadData
from finepref.hosts.pair_tokens import SIDES, counted, nothing_left, problem_of
from finepref.losses import ops, sepo


def weigh(row: dict[str, Any], arguments: Any, seed: int) -> tuple[list[float], list[float], int]:
    """Token weights of a tokenised row under the selection asked for.

    Scores select the asked share of the tokens that have one. Spans are a selection already; a response without spans
    beside one with them counts as a whole. `random` takes as large a share of the response's tokens, the same ones in
    every epoch and on every rank; `all` takes all of them.

    Raises:
        BadData: there is nothing to select by, or nothing left that is selected.
    """
    annotated = row["chosen_annotated"] or row["rejected_annotated"]
    weights, problems = [], []
    if arguments.sepo_selection == "oracle":
        if not annotated and not row["chosen_scored"]:
            problems.append(problem_of(row, "chosen_scores", "FP210", "sepo_selection: oracle needs them"))
        elif row["mapped"] and not arguments.sepo_map_scores:
            text = "set sepo_map_scores to carry them over by their character offsets"
            problems.append(problem_of(row, "tokenizer", "FP212", text))
        if problems:
            raise BadData(problems)
    for side in SIDES:
        weight = counted(row, side)
        if arguments.sepo_selection == "random":
            weight = _share(_chance(row, side, seed), weight, arguments, side)
        elif arguments.sepo_selection == "oracle" and annotated:
            weight = row[f"{side}_weight"]
        elif arguments.sepo_selection == "oracle":
            scored = [float(not math.isnan(score)) for score in row[f"{side}_score"]]
            weight = _share(row[f"{side}_score"], scored, arguments, side)
        if not any(weight):
            problems.append(nothing_left(row, side))
        weights.append(weight)
    if problems:
        raise BadData(problems)
    return (*weights, 0)


def _share(reward: list[float], among: list[float], arguments: Any, side: str) -> list[float]:
    """Weight 1 for the share of one response's tokens with the highest (chosen) or lowest (rejected) rewards."""
    ratio = arguments.sepo_ratio_chosen if side == "chosen" else arguments.sepo_ratio_rejected
    mask = torch.tensor(among) > 0
    reward = torch.tensor(reward, dtype=torch.float64)
    return sepo.select_tokens(reward, ratio, highest=side == "chosen", mask=mask).float().tolist()


def _chance(row: dict[str, Any], side: str, seed: int) -> list[float]:
    """A number per token that depends on seed, record, side and place only."""
    digest = blake2b(f"{seed}:{row['example_id']}:{side}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.rand(len(row[f"{side}_labels"]), generator=generator, dtype=torch.float64).tolist()


def constants(arguments: Any) -> dict[str, float]:
    """gamma and margin: the preset's, unless given."""
    values = dict(sepo.PRESETS[arguments.sepo_preset])
    given = {"gamma": arguments.sepo_gamma, "margin": arguments.sepo_margin}
    return values | {name: value for name, value in given.items() if value is not None}


def losses(logps: Tensor, weight: Tensor, arguments: Any) -> tuple[ops.LossOut, dict[str, Tensor]]:
    """The loss and the mean log-probabilities of each pair: logps, weight [2B, T], the chosen half first."""
    chosen, rejected = (ops.TokenLogps(*side) for side in zip(logps.chunk(2), weight.chunk(2), strict=True))
    out = sepo.sepo_loss(chosen, rejected, **constants(arguments))
    return out, {"logps/chosen": ops.weighted_mean(*chosen), "logps/rejected": ops.weighted_mean(*rejected)}
