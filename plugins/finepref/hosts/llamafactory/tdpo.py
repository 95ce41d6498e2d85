"""Stage `tdpo` (TDPO, arXiv 2404.11999): DPO with a sequential KL, on annotated spans or on whole responses."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from finepref.hosts.llamafactory import pairs
from finepref.hosts.tdpo import alpha_of, losses, weigh
from finepref.losses import ops


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
        return losses(logps, reference_logps, kl, weight, batch["side"], self.finetuning_args)


class Tdpo(pairs.PairAdapter):
    """The stage's row names this class."""

    trainer = TdpoTrainer
    weigh = staticmethod(weigh)

    def settings(self, arguments: Any) -> dict[str, Any]:
        """The options that define the run."""
        keys = ("tdpo_variant", "tdpo_masks", "tdpo_sides", "tdpo_normalize_spans", "pref_beta", "finetuning_type")
        alpha = alpha_of(arguments)
        return {key: getattr(arguments, key) for key in keys} | ({} if alpha is None else {"tdpo_alpha": alpha})
