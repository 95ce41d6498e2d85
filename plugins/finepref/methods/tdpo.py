"""TDPO, token-level direct preference optimization (arXiv 2404.11999), and DPO, on spans or whole responses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from finepref.formats.problems import BadData
from finepref.methods.batches import Pairs, Weights
from finepref.methods.options import BETA, PairOptions, host_option, option
from finepref.methods.pair_rows import PairRow
from finepref.methods.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from finepref.losses.ops import LossOut

ALPHA = 0.5  # the paper's


@dataclass
class TdpoOptions(PairOptions):
    """TDPO's options. Of the hosts' own options it reads beta and those of the reference model."""

    tdpo_variant: Literal["tdpo1", "tdpo2", "dpo"] = option(
        "tdpo2", "The paper's two losses, or DPO, over the same tokens."
    )
    tdpo_alpha: float | None = option(
        None, "Weight of the sequential KL in tdpo2 (default 0.5, the paper's); the others have none.", at_least=0
    )
    tdpo_log_kl: bool = option(
        False, "dpo: also log the KL to the reference, for which the head computes the reference's logits too."
    )
    tdpo_masks: Literal["annotated", "none"] = option(
        "annotated", "Train on the tokens of the data's spans, or on every token of both responses."
    )
    tdpo_sides: Literal["one", "two"] = option(
        "two",
        "two: both responses count, one without spans as a whole. "
        "one: only the response that has the spans counts (granular code).",
    )
    tdpo_normalize_spans: bool = option(
        False, "Divide log-ratio and KL by the number of masked tokens, so that short spans learn as fast."
    )
    tdpo_ld_alpha: float | None = option(
        None,
        "LD-DPO: weight of the tokens beyond the length of the other response (paper: 0.5); only without masks.",
        above=0,
        at_most=1,
    )
    tdpo_ld_reference: Literal["weighted", "whole"] = option(
        "weighted",
        "LD-DPO: the reference's tokens are weighted as the policy's (as in TRL) or count in full (LLaMA-Factory).",
    )
    tdpo_end_token: bool = option(
        False,
        "Train on the end token of a response beside its spans, as Mask-DPO does; without spans it always counts.",
    )
    tdpo_pair_margins: bool = option(
        False,
        "The chosen response must lead by the pair's `margin`, which is taken off the loss's logit.",
    )
    pref_beta: float = host_option(0.1, BETA, llamafactory="pref_beta", openrlhf="model.beta", above=0)

    def check_together(self) -> None:
        """Refuse options that would be ignored.

        Raises:
            ValueError: one line naming the option.
        """
        if self.tdpo_alpha is not None and self.tdpo_variant != "tdpo2":
            raise ValueError(
                f"{self.key('tdpo_alpha')} belongs to tdpo2; {self.tdpo_variant} has none, so leave it out"
            )
        if self.tdpo_log_kl and self.tdpo_variant != "dpo":
            raise ValueError(
                f"{self.key('tdpo_log_kl')} belongs to dpo; {self.tdpo_variant} always logs its KL, so leave it out"
            )
        if self.finepref_reference_cache and kl(self):
            reads, way = self.tdpo_variant, f"only {self.key('tdpo_variant', 'dpo')} reads no more"
            if self.tdpo_log_kl:
                reads, way = self.key("tdpo_log_kl", "true"), "leave one of them out"
            raise ValueError(
                f"{self.key('finepref_reference_cache', 'true')} keeps the reference's log-probabilities of the "
                f"responses' tokens, {reads} reads its whole distribution over the vocabulary: {way}"
            )
        if self.tdpo_masks == "none" and (self.tdpo_sides == "one" or self.tdpo_normalize_spans):
            given = ("tdpo_sides", "one") if self.tdpo_sides == "one" else ("tdpo_normalize_spans",)
            raise ValueError(f"{self.key(*given)} needs spans, but {self.key('tdpo_masks', 'none')} reads none")
        if self.tdpo_ld_alpha is not None and self.tdpo_masks != "none":
            raise ValueError(
                f"{self.key('tdpo_ld_alpha')} weighs whole responses: set {self.key('tdpo_masks', 'none')}"
            )
        if self.tdpo_ld_reference == "whole" and self.tdpo_ld_alpha is None:
            raise ValueError(
                f"{self.key('tdpo_ld_reference', 'whole')} does nothing without {self.key('tdpo_ld_alpha')}"
            )
        if self.tdpo_end_token and self.tdpo_masks == "none":
            raise ValueError(f"{self.key('tdpo_end_token')} does nothing with {self.key('tdpo_masks', 'none')}")


def weigh(row: PairRow, options: TdpoOptions, seed: int) -> Weights:
    """Token weights of a tokenised pair, and the side that the loss reads.

    With masks, the tokens in a response's spans count. A response without spans counts as a whole (`tdpo_sides: two`)
    or not at all (`one`). Without masks, every response token counts, including the end token, with less weight beyond
    the length of the other response if `tdpo_ld_alpha` is given.

    Raises:
        BadData: with masks, the pair has no spans (FP210), both responses have spans although `tdpo_sides` is `one`
            (FP215), no token in the spans is left (FP214), or the end token asked for is not there (FP263). Or the
            pair has no margin (FP264).
    """
    return row.with_margin(_tokens(row, options), options, "tdpo_pair_margins")


def _tokens(row: PairRow, options: TdpoOptions) -> Weights:
    if options.tdpo_masks == "none":
        return row.whole() if options.tdpo_ld_alpha is None else _by_length(row, options.tdpo_ld_alpha)
    row.require_spans(options, "tdpo_masks")
    annotated, one = row.annotated, options.tdpo_sides == "one"
    if one and len(annotated) == 2:
        text = f"{options.key('tdpo_sides', 'one')} needs one response without spans"
        raise BadData([row.problem("side", "FP215", text)])
    problems = [row.nothing_left(side, options) for side, r in row.sides() if side in annotated and not any(r.weight)]
    if problems:
        raise BadData(problems)
    chosen, rejected = (_with_end(row, side, options) for side in ("chosen", "rejected"))
    if not one:
        return Weights(chosen, rejected)
    if annotated == ("chosen",):
        return Weights(chosen, [0.0] * len(rejected), 1)
    return Weights([0.0] * len(chosen), rejected, -1)


def _with_end(row: PairRow, side: str, options: TdpoOptions) -> list[float]:
    """The weights of a response, with 1 on its end token, and what the template writes after it, if that is asked."""
    response = row.chosen if side == "chosen" else row.rejected
    if not (options.tdpo_end_token and response.annotated):
        return response.weight
    end = row.after_text(response)
    if not any(end) and not row.cut:
        text = f"the template does not end responses with the tokenizer's end token; {options.key('tdpo_end_token')}"
        raise BadData([row.problem(side, "FP263", text)])
    return [1.0 if after else weight for after, weight in zip(end, response.weight, strict=True)]


def _by_length(row: PairRow, alpha: float) -> Weights:
    """LD-DPO's weights; the lengths count the response tokens that are left."""
    from finepref.losses.ld_dpo import length_weights

    whole = row.whole()
    lengths = [int(sum(weight)) for weight in (whole.chosen, whole.rejected)]
    weights = []
    for weight, length, other in zip((whole.chosen, whole.rejected), lengths, lengths[::-1], strict=True):
        places = iter(length_weights(length, other, alpha=alpha))
        weights.append([next(places) if each else 0.0 for each in weight])
    return Weights(*weights)


def settings(options: TdpoOptions) -> dict[str, Any]:
    """alpha in use: as given or the paper's; None if the variant has no alpha."""
    if options.tdpo_variant != "tdpo2":
        return {"tdpo_alpha": None}
    return {"tdpo_alpha": ALPHA if options.tdpo_alpha is None else options.tdpo_alpha}


def kl(options: TdpoOptions) -> str:
    """TDPO's KL is part of the loss, in TDPO2 detached for the chosen response; DPO's is only logged, if at all."""
    if options.tdpo_variant != "dpo":
        return "loss" if options.tdpo_variant == "tdpo1" else "rejected"
    return "metric" if options.tdpo_log_kl else ""


def losses(pairs: Pairs, options: TdpoOptions) -> tuple[LossOut, dict[str, Tensor]]:
    """TDPO1, TDPO2 or DPO loss [B] of each pair, see `finepref.losses.tdpo`.

    The metrics are weighted sums over the tokens, also with `tdpo_normalize_spans`.
    """
    from finepref.losses import tdpo
    from finepref.losses.ld_dpo import whole_reference
    from finepref.losses.ops import weighted_sum

    function = {
        "tdpo1": tdpo.tdpo1_loss,
        "tdpo2": partial(tdpo.tdpo2_loss, alpha=settings(options)["tdpo_alpha"]),
        "dpo": tdpo.masked_dpo_loss,
    }[options.tdpo_variant]
    chosen, rejected = (
        tdpo.TokenLogRatio(side.logps, side.reference, side.kl, side.weight) for side in (pairs.chosen, pairs.rejected)
    )
    if options.tdpo_ld_reference == "whole":
        chosen, rejected = whole_reference(chosen), whole_reference(rejected)
    reading = {"sides": pairs.side, "length_normalized": options.tdpo_normalize_spans}
    out = function(chosen, rejected, beta=options.pref_beta, margin=pairs.margin, **reading)
    metrics = {}
    for name, side in (("chosen", pairs.chosen), ("rejected", pairs.rejected)):
        metrics[f"logps/{name}"] = weighted_sum(side.logps, side.weight)
        if side.kl is not None:
            metrics[f"kl/{name}"] = weighted_sum(side.kl, side.weight)
    return out, metrics


STAGE = Stage(
    name="tdpo",
    title="TDPO: token-level direct preference optimization, on spans or whole responses",
    paper="arXiv 2404.11999",
    shape="pair",
    formats=("span_pair", "pair"),
    options=TdpoOptions,
    weigh=weigh,
    losses=losses,
    reference=True,
    kl=kl,
    metrics=("logps/chosen", "logps/rejected", "kl/chosen", "kl/rejected"),
    settings=settings,
    recipe="examples/tdpo_spans.yaml",
    demo_dataset="tdpo_demo",
)
