"""Stage `tdpo` (TDPO, arXiv 2404.11999): DPO with a sequential KL, on annotated spans or on whole responses."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finepref.formats.check import BadData
from finepref.hosts.llamafactory import pairs
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
        return pairs.counted(row, "chosen"), pairs.counted(row, "rejected"), 0
    annotated = [side for side in pairs.SIDES if row[f"{side}_annotated"]]
    if not annotated:
        raise BadData([pairs.problem_of(row, "rejected_spans", "FP210", "tdpo_masks: annotated needs them")])
    if arguments.tdpo_sides == "one" and len(annotated) == 2:
        raise BadData([pairs.problem_of(row, "side", "FP215", "tdpo_sides: one needs one response without spans")])
    weights = {side: row[f"{side}_weight"] for side in pairs.SIDES}
    side = 0
    if arguments.tdpo_sides == "one":
        side = 1 if annotated == ["chosen"] else -1
        unread = "rejected" if side == 1 else "chosen"
        weights[unread] = [0.0] * len(weights[unread])
    problems = [pairs.nothing_left(row, read) for read in annotated if not any(weights[read])]
    if problems:
        raise BadData(problems)
    return weights["chosen"], weights["rejected"], side


class TdpoTrainer(pairs.PairTrainer):
    """`logps/*` and `kl/*` are sums over the weighted tokens, whatever `tdpo_normalize_spans` says."""

    names = ("logps/chosen", "logps/rejected", "kl/chosen", "kl/rejected")

    def losses(self, model: Any, batch: dict[str, Tensor]) -> tuple[ops.LossOut, dict[str, Tensor]]:
        """TDPO1, TDPO2 or DPO of each pair, by `finepref.losses.tdpo`; DPO's KL is for the log only."""
        with self.reference(model) as reference:
            reference_logits = self.logits(reference, batch)
            reference_logps = self.logps(reference_logits, batch)
        logits = self.logits(model, batch)
        logps = self.logps(logits, batch)
        with torch.no_grad() if self.finetuning_args.tdpo_variant == "dpo" else nullcontext():
            kl = self.kl(logits, reference_logits, batch)
        weight = batch["weight"][:, 1:]
        chosen, rejected = (
            tdpo.TokenLogRatio(*side)
            for side in zip(*(value.chunk(2) for value in (logps, reference_logps, kl, weight)), strict=True)
        )
        out = loss_of(self.finetuning_args)(chosen, rejected, sides=batch["side"])
        metrics = {}
        for name, response in zip(pairs.SIDES, (chosen, rejected), strict=True):
            metrics[f"logps/{name}"] = ops.weighted_sum(response.policy, response.weight)
            metrics[f"kl/{name}"] = ops.weighted_sum(response.kl, response.weight)
        return out, metrics


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


class Tdpo(pairs.PairAdapter):
    """The stage's row names this class."""

    trainer = TdpoTrainer
    weigh = staticmethod(weigh)

    def settings(self, arguments: Any) -> dict[str, Any]:
        """The options that define the run."""
        keys = ("tdpo_variant", "tdpo_masks", "tdpo_sides", "tdpo_normalize_spans", "pref_beta", "finetuning_type")
        alpha = alpha_of(arguments)
        return {key: getattr(arguments, key) for key in keys} | ({} if alpha is None else {"tdpo_alpha": alpha})
