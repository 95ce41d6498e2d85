"""DPO-PL: DPO of whole rankings, by the Plackett-Luce model (DPO, arXiv 2305.18290, appendix A.3).

Records are lists of scored responses to one prompt; with two responses it is DPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from finepref.methods.batches import Lists
from finepref.methods.options import BETA, ListOptions, host_option, option
from finepref.methods.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from finepref.losses.ops import LossOut


@dataclass
class DpoPlOptions(ListOptions):
    """DPO-PL's options. Of the hosts' own options it reads beta and those of the reference model."""

    dpo_pl_ties: Literal["apart", "breslow"] = option(
        "apart", "Equally scored responses do not compete with each other (apart), or each with all (breslow)."
    )
    pref_beta: float = host_option(0.1, BETA, llamafactory="pref_beta", openrlhf="model.beta", above=0)


def losses(lists: Lists, options: DpoPlOptions) -> tuple[LossOut, dict[str, Tensor]]:
    """DPO-PL loss [B] of each list, see `finepref.losses.plackett_luce.dpo_pl_loss`."""
    from finepref.losses.plackett_luce import dpo_pl_loss

    return dpo_pl_loss(
        lists.logps,
        lists.reference,
        lists.scores,
        lists.present,
        beta=options.pref_beta,
        ties=options.dpo_pl_ties,
    ), {}


STAGE = Stage(
    name="dpo_pl",
    title="DPO-PL: DPO of whole rankings by the Plackett-Luce model",
    paper="arXiv 2305.18290",
    shape="lists",
    formats=("ranked", "pair"),
    options=DpoPlOptions,
    losses=losses,
    reference=True,
    recipe="examples/dpo_pl.yaml",
    demo_dataset="apo_demo",
)
