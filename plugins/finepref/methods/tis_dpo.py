"""TIS-DPO (arXiv 2410.04350): DPO whose token weights come from two models, DPO forwards and backwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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

if TYPE_CHECKING:
    from torch import Tensor

BOUNDS = {"exponential": (-0.5, 1.5), "threshold_and_scale": (-1.5, 1.5)}
"""Bounds of the scores. Those of `exponential`, the paper's form, are unverified; the others are the release's."""


@dataclass
class TisOptions(ScoredDpoOptions):
    """TIS-DPO's options. Of the hosts' own options it reads beta and those of the reference model."""

    tis_weights: Literal["exponential", "rank_based", "threshold_and_scale", "binary"] = option(
        "exponential", "Weights from scores: the paper's exponential, or one of the released code's other forms."
    )
    tis_low: float | None = option(
        None, "Lower bound of the scores: default -0.5 (exponential), -1.5 (threshold_and_scale)."
    )
    tis_high: float | None = option(None, "Upper bound of the scores: default 1.5.")
    tis_scale_low: float = option(0.7, "Lowest weight of rank_based and threshold_and_scale.", at_least=0)
    tis_scale_high: float = option(1.3, "Highest weight of rank_based and threshold_and_scale.", at_least=0)
    tis_share: float = option(1.0, "binary: share of the tokens that have weight 1.", above=0, at_most=1)
    tis_end_token: bool = option(
        False, "Weigh the end token too in the released code's forms, which give it 0; exponential always does."
    )
    tis_map_scores: bool = option(False, MAP_SCORES)

    def check_together(self) -> None:
        """Refuse options that would be ignored, and bounds in the wrong order.

        Raises:
            ValueError: one line naming the option.
        """
        if self.tis_weights not in BOUNDS:
            for name in ("tis_low", "tis_high"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{self.key(name)} does nothing with {self.key('tis_weights', self.tis_weights)}")
        elif not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"{self.key('tis_low')} must be below {self.key('tis_high')}, not {self.bounds}")
        if self.tis_share != 1 and self.tis_weights != "binary":
            raise ValueError(f"{self.key('tis_share')} belongs to {self.key('tis_weights', 'binary')}")
        if self.tis_scale_low > self.tis_scale_high:
            raise ValueError(f"{self.key('tis_scale_low')} must not be above {self.key('tis_scale_high')}")

    @property
    def bounds(self) -> tuple[float, float]:
        """Bounds of the scores, as given or by default; only for the forms in `BOUNDS`."""
        low, high = BOUNDS[self.tis_weights]
        return low if self.tis_low is None else self.tis_low, high if self.tis_high is None else self.tis_high


def weigh(row: PairRow, options: TisOptions, seed: int) -> Weights:
    """The weights by `tis_weights`, see `finepref.losses.tis_dpo`.

    A token without a score counts as one of score 0. The released forms round scores to 2 digits, as their code does.

    Raises:
        BadData: as `scored.check_scores` and `scored.on_responses`.
    """
    check_scores(row, options, contrast=False, map_scores="tis_map_scores")
    return on_responses(row, options, *(_weights(row, side, options) for side in ("chosen", "rejected")))


def _weights(row: PairRow, side: str, options: TisOptions) -> Tensor:
    from torch import tensor

    from finepref.losses import tis_dpo

    response, chosen = getattr(row, side), side == "chosen"
    score = known_scores(response)
    if options.tis_weights == "exponential":
        low, high = options.bounds
        return tis_dpo.importance_weights(score, chosen=chosen, k=1.0, low=low, high=high)
    among = tensor(response.whole()) > 0
    if not options.tis_end_token:
        among &= ~tensor(row.after_text(response))
    score = score.round(decimals=2)
    scale = {"scale_low": options.tis_scale_low, "scale_high": options.tis_scale_high}
    if options.tis_weights == "rank_based":
        return tis_dpo.rank_based(score, among, chosen=chosen, low=scale["scale_low"], high=scale["scale_high"])
    if options.tis_weights == "binary":
        return tis_dpo.binary(score, among, chosen=chosen, share=options.tis_share)
    low, high = options.bounds
    return tis_dpo.threshold_and_scale(score, among, chosen=chosen, low=low, high=high, **scale)


def settings(options: TisOptions) -> dict[str, Any]:
    """The bounds in use, for the receipt; None where there are none."""
    low, high = options.bounds if options.tis_weights in BOUNDS else (None, None)
    return {"tis_low": low, "tis_high": high}


STAGE = Stage(
    name="tis_dpo",
    title="TIS-DPO: DPO with token-level importance weights",
    paper="arXiv 2410.04350",
    shape="pair",
    formats=("scored_pair",),
    options=TisOptions,
    weigh=weigh,
    losses=dpo_losses,
    reference=True,
    metrics=("logps/chosen", "logps/rejected"),
    settings=settings,
    recipe="examples/tis_dpo.yaml",
    demo_dataset="sepo_demo",
)
