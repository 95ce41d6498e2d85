"""APO, ADVERSARIAL preference optimization (arXiv 2311.08045): the reward model's step. Not Anchored PO (TRL's "APO").

Formula: L = kl_coeff * L_rank(human pairs) + apo_coeff / samples * L_rank(golden > the LLM's own sample)
Where:   L_rank = mean over the ordered pairs (i, j) of a record with score_i > score_j of -log sigmoid(r_i - r_j);
         `kind="wgan"` takes -(r_i - r_j) for the APO records, the human records keep the sigmoid;
         `kind="plackett_luce"` takes the loss of the whole list (`losses.plackett_luce`) in place of L_rank.
Deltas from the paper: `per_type` takes one mean over the human and one over the APO records, so that neither's weight
         depends on the mix of the batch. The authors' code (`released`) divides both sums by all pairs of the batch,
         and takes a score of -1 for an absent response; here `mask` says what is absent and every score is a score.
Not covered: sampling from the LLM, pooling the reward (both are the data's and the host's side).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from finepref.losses.ops import LossOut
from finepref.losses.plackett_luce import Ties, plackett_luce_loss
from finepref.losses.ranking import ordered_pairs
from finepref.losses.ranks import sum_over_ranks


def apo_rm_loss(
    rewards: Tensor,
    scores: Tensor,
    is_apo: Tensor,
    *,
    kl_coeff: float,
    apo_coeff: float,
    samples: int,
    kind: Literal["ranking", "wgan", "plackett_luce"] = "ranking",
    ties: Ties = "apart",
    margins: bool = False,
    normalization: Literal["per_type", "released"] = "per_type",
    mask: Tensor | None = None,
    counts: tuple[float | Tensor, float | Tensor] | None = None,
    group: dist.ProcessGroup | None = None,
) -> LossOut:
    """The share of each record in L, scaled so that `ops.reduce` of the result is L.

    Other arguments as in `ranking.rank_loss` and `plackett_luce.plackett_luce_loss`.

    Args:
        is_apo: bool [B], True for golden > sample records.
        counts: valid human and valid APO records of the whole optimiser step on all ranks, for gradient accumulation:
            numbers or scalar tensors. Then also call `reduce(out, count=sum(counts))`. Default: this batch's, on all
            ranks of `group`.

    Raises:
        ValueError: an unknown `kind` or `normalization`, or `counts` or whole lists with `released`, which divides by
            the pairs of the micro-batch.
    """
    if kind not in ("ranking", "wgan", "plackett_luce") or normalization not in ("per_type", "released"):
        raise ValueError(f"unknown kind {kind!r} or normalization {normalization!r}")
    if (counts is not None or kind == "plackett_luce") and normalization == "released":
        raise ValueError("`released` divides by the pairs of the micro-batch: no counts of a step, no whole lists")
    is_apo = is_apo.bool()
    if kind == "plackett_luce":
        total, pairs, best, worst = plackett_luce_loss(rewards, scores, mask, ties=ties)  # as one pair per list
    else:
        linear = is_apo if kind == "wgan" else torch.zeros_like(is_apo)
        total, pairs, best, worst = ordered_pairs(rewards, scores, mask, linear, margins=margins)
    pairs = pairs.long()
    valid = pairs > 0
    sizes = torch.stack([(valid & ~is_apo).sum(), (valid & is_apo).sum(), pairs.sum()])
    human, apo, all_pairs = sum_over_ranks(sizes, group)
    human, apo = counts or (human, apo)
    if normalization == "released":
        mean = total / all_pairs.clamp(min=1)  # [B], sums to the two sums over all pairs
    else:
        mean = total / pairs.clamp(min=1) / torch.where(is_apo, apo, human).clamp(min=1)  # [B], sums to two means
    share = torch.where(is_apo, mean * (apo_coeff / samples), mean * kl_coeff)
    return LossOut(share * (human + apo), valid, best, worst)  # reduce divides by human + apo
