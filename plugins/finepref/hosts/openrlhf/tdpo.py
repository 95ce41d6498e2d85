"""TDPO and masked DPO (arXiv 2404.11999) with the host's DPO trainer and its reference model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finepref.hosts import tdpo
from finepref.hosts.openrlhf import pairs, training
from finepref.hosts.openrlhf.command_line import Asked
from finepref.losses import ops


class TdpoTrainer(pairs.PairTrainer):
    """`logps/*` and `kl/*` are sums over the weighted tokens, whatever --tdpo.normalize_spans says."""

    def losses(self, policy: Any, reference: Any, batch: pairs.Batch) -> tuple[ops.LossOut, dict[str, Tensor]]:
        """TDPO1, TDPO2 or DPO of each pair, by `finepref.losses.tdpo`; DPO's KL is for the log only."""
        options = self.run.options
        with torch.no_grad():
            reference_logps = reference.logps()
        with torch.no_grad() if options.tdpo_variant == "dpo" else nullcontext():
            kl = policy.kl(reference)
        return tdpo.losses(policy.logps(), reference_logps, kl, batch.weight, batch.side, options)


def prepare(asked: Asked) -> Callable[[], None]:
    """Check data and options; the result trains. Raises as `training.prepare`."""
    weigh = partial(tdpo.weigh, arguments=asked.options, seed=asked.host.train.seed)
    run, splits = training.prepare(asked, padding_side="right", tokenise=partial(pairs.tokenise, weigh=weigh))
    run.record.settings |= {"tdpo_alpha": tdpo.alpha_of(asked.options), "beta": asked.host.model.beta}
    trainer = partial(TdpoTrainer, run=run)
    return partial(
        training.host_train("openrlhf.cli.train_dpo", splits, pairs.PairDataset, DPOTrainer=trainer), asked.host
    )
