"""SimPER (arXiv 2502.00883): preference optimization by perplexities. No reference model and no constant."""

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
class SimperOptions(PairOptions):
    """SimPER's options. It reads none of the hosts' own preference options."""

    simper_masks: Literal["none", "annotated"] = option(
        "none", "Train on every token of both responses, or on the tokens of the data's spans."
    )


def weigh(row: PairRow, options: SimperOptions, seed: int) -> Weights:
    """The tokens whose mean is taken. Raises as `pair_rows.weigh_by_masks`."""
    return weigh_by_masks(row, options, "simper_masks")


def losses(pairs: Pairs, options: SimperOptions) -> tuple[LossOut, dict[str, Tensor]]:
    """SimPER loss [B] of each pair, see `finepref.losses.simper`; the metrics are mean log-probabilities."""
    from finepref.losses.ops import TokenLogps, weighted_mean
    from finepref.losses.simper import simper_loss

    chosen, rejected = (TokenLogps(side.logps, side.weight) for side in (pairs.chosen, pairs.rejected))
    metrics = {"logps/chosen": weighted_mean(*chosen), "logps/rejected": weighted_mean(*rejected)}
    return simper_loss(chosen, rejected), metrics


STAGE = Stage(
    name="simper",
    title="SimPER: preference optimization by inverse perplexities",
    paper="arXiv 2502.00883",
    shape="pair",
    formats=("pair", "span_pair"),
    options=SimperOptions,
    weigh=weigh,
    losses=losses,
    metrics=("logps/chosen", "logps/rejected"),
    recipe="examples/simper.yaml",
    demo_dataset="tdpo_demo",
)
