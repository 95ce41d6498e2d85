"""TDPO (arXiv 2404.11999) on any host: which tokens it trains on, and its loss from their log-probabilities and KL.

`arguments` has the keys of `TdpoOptions` and pref_beta.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from finepref.formats.problems import BadData
from finepref.hosts.pair_tokens import SIDES, counted, nothing_left, problem_of
from finepref.losses import ops, tdpo

ALPHA = 0.5  # the paper's


def weigh(row: dict[str, Any], arguments: Any, seed: int) -> tuple[list[float], list[float], int]:
    """Token weights of a tokenised row, and which side the loss reads (0 both, 1 chosen, -1 rejected).

    With masks, a response with spans counts by them; one without counts as a whole (`tdpo_sides: two`) or not at all
    (`one`). Without masks, every response token counts, the end token included.

    Raises:
        BadData: masks are asked for and there are no spans, on two responses where one is asked for, or none is left.
    """
    if arguments.tdpo_masks == "none":
        return counted(row, "chosen"), counted(row, "rejected"), 0
    annotated = [side for side in SIDES if row[f"{side}_annotated"]]
    if not annotated:
        raise BadData([problem_of(row, "rejected_spans", "FP210", "tdpo_masks: annotated needs them")])
    if arguments.tdpo_sides == "one" and len(annotated) == 2:
        raise BadData([problem_of(row, "side", "FP215", "tdpo_sides: one needs one response without spans")])
    weights = {side: row[f"{side}_weight"] for side in SIDES}
    side = 0
    if arguments.tdpo_sides == "one":
        side = 1 if annotated == ["chosen"] else -1
        unread = "rejected" if side == 1 else "chosen"
        weights[unread] = [0.0] * len(weights[unread])
    problems = [nothing_left(row, read) for read in annotated if not any(weights[read])]
    if problems:
        raise BadData(problems)
    return weights["chosen"], weights["rejected"], side


def alpha_of(arguments: Any) -> float | None:
    """The weight of the KL: the paper's unless given, None where the variant has none."""
    if arguments.tdpo_variant != "tdpo2":
        return None
    return ALPHA if arguments.tdpo_alpha is None else arguments.tdpo_alpha


def loss_of(arguments: Any) -> Any:
    """The loss function of the run, all but its data bound."""
    common = {"beta": arguments.pref_beta, "length_normalized": arguments.tdpo_normalize_spans}
    if arguments.tdpo_variant == "tdpo1":
        return partial(tdpo.tdpo1_loss, **common)
    if arguments.tdpo_variant == "tdpo2":
        return partial(tdpo.tdpo2_loss, alpha=alpha_of(arguments), **common)
    return partial(tdpo.masked_dpo_loss, **common)


def losses(
    logps: Tensor, reference_logps: Tensor, kl: Tensor, weight: Tensor, side: Tensor, arguments: Any
) -> tuple[ops.LossOut, dict[str, Tensor]]:
    """Loss of each pair, and sums over its weighted tokens; side [B], all others [2B, T], the chosen half first."""
    chosen, rejected = (
        tdpo.TokenLogRatio(*half)
        for half in zip(*(value.chunk(2) for value in (logps, reference_logps, kl, weight)), strict=True)
    )
    out = loss_of(arguments)(chosen, rejected, sides=side)
    metrics = {}
    for name, response in zip(SIDES, (chosen, rejected), strict=True):
        metrics[f"logps/{name}"] = ops.weighted_sum(response.policy, response.weight)
        metrics[f"kl/{name}"] = ops.weighted_sum(response.kl, response.weight)
    return out, metrics
