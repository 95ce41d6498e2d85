"""Token scores of tokenised pairs as the stages read them, and DPO over the tokens that they weigh."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finepref.formats.problems import BadData
from finepref.methods.batches import Pairs, Weights
from finepref.methods.options import BETA, Options, PairOptions, host_option
from finepref.methods.pair_rows import IGNORED, SIDES, PairRow, ResponseRow

if TYPE_CHECKING:
    from torch import Tensor

    from finepref.losses.ops import LossOut

MAP_SCORES = (
    "Use scores of another tokenizer, mapped by their character offsets, or of another template; else refused."
)
MAKE = {
    False: "`finepref sepo score`",
    True: "`finepref sepo score --contrast`",
}
"""What writes scores of a kind, by whether it is the contrast."""


@dataclass
class ScoredDpoOptions(PairOptions):
    """Base of the options of DPO whose token weights come from scores: beta, and the reference model's."""

    pref_beta: float = host_option(0.1, BETA, llamafactory="pref_beta", openrlhf="model.beta", above=0)


def check_scores(row: PairRow, options: Options, *, contrast: bool, map_scores: str, missing: str = "") -> None:
    """Refuse a pair whose token scores the stage cannot read.

    Args:
        row: the tokenised pair.
        options: of the stage.
        contrast: whether the stage reads the kind "contrast", else "log_ratio".
        map_scores: name of the option that accepts scores of other tokens.
        missing: what to do about missing scores, for the message.

    Raises:
        BadData: the data has no scores (FP210) or those of another kind (FP262); or they belong to another tokenizer
            (FP212) or another prompt (FP250), and the option does not accept that.
    """
    accepted = getattr(options, map_scores)
    if not row.chosen.scored:
        raise BadData([row.problem("chosen_scores", "FP210", missing or f"run {MAKE[contrast]}")])
    if row.contrast != contrast:
        text = f"the stage reads those that {MAKE[contrast]} writes"
        raise BadData([row.problem("score_kind", "FP262", text)])
    if row.mapped and not accepted:
        text = f"set {options.key(map_scores)} to map them by their character offsets"
        raise BadData([row.problem("tokenizer", "FP212", text)])
    if row.other_prompt and not accepted:
        text = f"{row.other_prompt}, or set {options.key(map_scores)} to use these"
        raise BadData([row.problem("prompt_digest", "FP250", text)])


def known_scores(response: ResponseRow) -> Tensor:
    """The score of each token, float64; 0, which changes nothing, for a token without one."""
    from torch import float64, tensor

    return tensor([0.0 if math.isnan(score) else score for score in response.score], dtype=float64)


def on_responses(row: PairRow, options: Options, chosen: Tensor, rejected: Tensor) -> Weights:
    """Weights of the response tokens, 0 on the prompt.

    Args:
        row: the tokenised pair.
        options: of the stage, for the message.
        chosen, rejected: a weight per token of prompt and response.

    Raises:
        BadData: all weights of a response are 0 (FP214).
    """
    weights = [
        [weight if label != IGNORED else 0.0 for weight, label in zip(values.tolist(), response.labels, strict=True)]
        for values, (_, response) in zip((chosen, rejected), row.sides(), strict=True)
    ]
    problems = [row.nothing_left(side, options) for side, each in zip(SIDES, weights, strict=True) if not any(each)]
    if problems:
        raise BadData(problems)
    return Weights(*weights)


def dpo_losses(pairs: Pairs, options: Any) -> tuple[LossOut, dict[str, Tensor]]:
    """DPO [B] over the weighted tokens, see `finepref.losses.tdpo.masked_dpo_loss`; the metrics are weighted sums."""
    from finepref.losses.ops import weighted_sum
    from finepref.losses.tdpo import TokenLogRatio, masked_dpo_loss

    sides = (TokenLogRatio(side.logps, side.reference, None, side.weight) for side in (pairs.chosen, pairs.rejected))
    out = masked_dpo_loss(*sides, beta=options.pref_beta)
    named = (("chosen", pairs.chosen), ("rejected", pairs.rejected))
    return out, {f"logps/{name}": weighted_sum(side.logps, side.weight) for name, side in named}
