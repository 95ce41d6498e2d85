"""ConfPO (arXiv 2506.08712): a preference loss on the tokens of which the policy is least sure. No reference model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from finepref.methods.batches import Pairs, Weights
from finepref.methods.options import PairOptions, option
from finepref.methods.pair_rows import PairRow, weigh_by_masks
from finepref.methods.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from finepref.losses.ops import LossOut


@dataclass
class ConfpoOptions(PairOptions):
    """ConfPO's options. It reads none of the hosts' own preference options."""

    confpo_beta: float = option(1.5, "Scale of the mean log-probability of the selected tokens.", above=0)
    confpo_gamma: float = option(1.6, "Margin by which chosen must lead rejected.", at_least=0)
    confpo_masks: Literal["none", "annotated"] = option(
        "none", "Select among every token of both responses, or among the tokens of the data's spans."
    )
    confpo_rule: Literal["released", "paper"] = option(
        "released", "Select tokens whose probability is below the response's mean (released), or at most that (paper)."
    )


def weigh(row: PairRow, options: ConfpoOptions, seed: int) -> Weights:
    """The tokens among which the policy selects. Raises as `pair_rows.weigh_by_masks`."""
    return weigh_by_masks(row, options, "confpo_masks")


def losses(pairs: Pairs, options: ConfpoOptions) -> tuple[LossOut, dict[str, Tensor]]:
    """ConfPO loss [B] of each pair, see `finepref.losses.confpo`.

    The metrics are mean log-probabilities of the tokens that could be selected, and the shares of those that are.
    """
    from finepref.losses.confpo import confpo_loss, select
    from finepref.losses.ops import TokenLogps, weighted_mean

    rule = options.confpo_rule
    chosen, rejected = (TokenLogps(side.logps, side.weight) for side in (pairs.chosen, pairs.rejected))
    out = confpo_loss(chosen, rejected, beta=options.confpo_beta, gamma=options.confpo_gamma, rule=rule)
    metrics = {}
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        metrics[f"logps/{name}"] = weighted_mean(*side)
        metrics[f"selected/{name}"] = weighted_mean(select(side, rule=rule).to(side.weight.dtype), side.weight)
    return out, metrics


STAGE = Stage(
    name="confpo",
    title="ConfPO: preference optimization of the tokens that the policy is least sure of",
    paper="arXiv 2506.08712",
    shape="pair",
    formats=("pair", "span_pair"),
    options=ConfpoOptions,
    weigh=weigh,
    losses=losses,
    metrics=("logps/chosen", "logps/rejected", "selected/chosen", "selected/rejected"),
    recipe="examples/confpo.yaml",
    demo_dataset="tdpo_demo",
)
