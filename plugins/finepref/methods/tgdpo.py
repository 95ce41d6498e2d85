"""TGDPO (arXiv 2506.14574): DPO whose token weights come from a model that DPO has trained already."""

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
class TgdpoOptions(ScoredDpoOptions):
    """TGDPO's options. Of the hosts' own options it reads beta and those of the reference model."""

    tgdpo_alpha: float = option(
        0.5, "Strength of the guidance: a token has weight 1 + alpha R if chosen, 1 - alpha R if rejected.", at_least=0
    )
    tgdpo_map_scores: bool = option(False, MAP_SCORES)


def weigh(row: PairRow, options: TgdpoOptions, seed: int) -> Weights:
    """1 + alpha R_t (chosen) and 1 - alpha R_t (rejected), R_t = beta times the score; may be negative.

    A token without a score has weight 1.

    Raises:
        BadData: as `scored.check_scores` and `scored.on_responses`.
    """
    from finepref.losses.tgdpo import token_weights

    check_scores(row, options, contrast=False, map_scores="tgdpo_map_scores")
    made = (
        token_weights(
            known_scores(response), beta=options.pref_beta, alpha=options.tgdpo_alpha, chosen=side == "chosen"
        )
        for side, response in row.sides()
    )
    return on_responses(row, options, *made)


STAGE = Stage(
    name="tgdpo",
    title="TGDPO: DPO with token weights from a model that DPO has trained",
    paper="arXiv 2506.14574",
    shape="pair",
    formats=("scored_pair",),
    options=TgdpoOptions,
    weigh=weigh,
    losses=dpo_losses,
    reference=True,
    metrics=("logps/chosen", "logps/rejected"),
    recipe="examples/tgdpo.yaml",
    demo_dataset="sepo_demo",
)
