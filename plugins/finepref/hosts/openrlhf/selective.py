"""SePO (arXiv 2408.13518) with the host's DPO trainer, and nothing in place of its second model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from openrlhf.models import Actor
from torch import Tensor

from finepref.hosts import sepo
from finepref.hosts.openrlhf import pairs, training
from finepref.hosts.openrlhf.command_line import Asked
from finepref.losses import ops


class SelectiveTrainer(pairs.PairTrainer):
    """`logps/*` are means over the selected tokens."""

    def losses(self, policy: Any, reference: Any, batch: pairs.Batch) -> tuple[ops.LossOut, dict[str, Tensor]]:
        """SePO of each pair, by `finepref.losses.sepo`."""
        return sepo.losses(policy.logps(), batch.weight, self.run.options)


def prepare(asked: Asked) -> Callable[[], None]:
    """Check data and options; the result trains. Raises as `training.prepare`."""
    weigh = partial(sepo.weigh, arguments=asked.options, seed=asked.host.train.seed)
    run, splits = training.prepare(asked, padding_side="right", tokenise=partial(pairs.tokenise, weigh=weigh))
    run.record.settings |= {f"sepo_{name}": value for name, value in sepo.constants(asked.options).items()}
    models = iter((Actor, lambda *arguments, **options: pairs.NoReference()))  # the host makes the policy first
    train = training.host_train(
        "openrlhf.cli.train_dpo",
        splits,
        pairs.PairDataset,
        Actor=lambda *arguments, **options: next(models)(*arguments, **options),
        DPOTrainer=partial(SelectiveTrainer, run=run),
    )
    return partial(train, asked.host)
