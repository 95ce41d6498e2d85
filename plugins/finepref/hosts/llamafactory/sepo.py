"""Stage `sepo` (SePO, arXiv 2408.13518): reference-free preference loss on the tokens that matter most."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from finepref.hosts.llamafactory import pairs
from finepref.hosts.sepo import constants, losses, weigh
from finepref.losses import ops


class SepoTrainer(pairs.PairTrainer):
    """`logps/*` are means over the selected tokens."""

    def losses(self, model: Any, batch: dict[str, Tensor]) -> tuple[ops.LossOut, dict[str, Tensor]]:
        """SePO of each pair, by `finepref.losses.sepo`."""
        logps = self.logps(self.logits(model, batch), batch)
        return losses(logps, batch["weight"][:, 1:], self.finetuning_args)


class Sepo(pairs.PairAdapter):
    """The stage's row names this class."""

    trainer = SepoTrainer
    weigh = staticmethod(weigh)

    def needs_reference(self, arguments: Any) -> bool:
        return False

    def settings(self, arguments: Any) -> dict[str, Any]:
        """The options that define the run."""
        keys = ("preset", "selection", "ratio_chosen", "ratio_rejected", "map_scores")
        chosen = {f"sepo_{key}": getattr(arguments, f"sepo_{key}") for key in keys}
        used = {f"sepo_{name}": value for name, value in constants(arguments).items()}
        return chosen | used | {"finetuning_type": arguments.finetuning_type}
