"""cDPO, critical tokens (arXiv 2411.19943): DPO that pushes down the critical tokens of a rejected response.

Not conservative DPO, which smooths labels.
"""

from __future__ import annotations

from dataclasses import dataclass

from finepref.methods.batches import Weights
from finepref.methods.options import option
from finepref.methods.pair_rows import PairRow
from finepref.methods.scored import (
    MAP_SCORES,
    ScoredDpoOptions,
    check_scores,
    dpo_losses,
    known_scores,
    on_responses,
)
from finepref.methods.stage import Stage


@dataclass
class CdpoOptions(ScoredDpoOptions):
    """cDPO's options. Of the hosts' own options it reads beta (the paper's is 1) and those of the reference model."""

    cdpo_map_scores: bool = option(False, MAP_SCORES)


def weigh(row: PairRow, options: CdpoOptions, seed: int) -> Weights:
    """1 (chosen) and 1 - s_t (rejected); a token without a score has weight 1.

    Raises:
        BadData: as `scored.check_scores` and `scored.on_responses`.
    """
    from torch import tensor

    from finepref.losses.cdpo import rejected_weights

    check_scores(row, options, contrast=True, map_scores="cdpo_map_scores")
    return on_responses(row, options, tensor(row.chosen.whole()), rejected_weights(known_scores(row.rejected)))


STAGE = Stage(
    name="cdpo",
    title="cDPO: DPO with weights on the critical tokens of the rejected response",
    paper="arXiv 2411.19943",
    shape="pair",
    formats=("scored_pair",),
    options=CdpoOptions,
    weigh=weigh,
    losses=dpo_losses,
    reference=True,
    metrics=("logps/chosen", "logps/rejected"),
    recipe="examples/cdpo.yaml",
    demo_dataset="cdpo_demo",
)
