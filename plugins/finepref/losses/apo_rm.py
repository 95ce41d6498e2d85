"""APO, ADVERSARIAL preference optimization (arXiv 2311.08045): the reward model's step. Not Anchored PO (TRL's "APO").

Formula: L = kl_coeff * L_rank(human pairs) + apo_coeff / samples * L_rank(golden > the LLM's own sample)
Where:   L_rank = mean over the ordered pairs (i, j) of a record with score_i > score_j of -log sigmoid(r_i - r_j);
         `kind="wgan"` takes -(r_i - r_j) for the APO records, the human records keep the sigmoid.
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
from torch.nn.functional import logsigmoid

from finepref.losses.ops import LossOut, upcast
from finepref.losses.ranks import sum_over_ranks


def rank_loss(rewards: Tensor, scores: Tensor, mask: Tensor | None = None) -> LossOut:
    """L_rank of each record: rewards [B, R], scores [B, R], mask bool [B, R] (absent responses False) -> [B].

    A record without two differently scored responses is not valid. The logged rewards are those of the best and the
    worst scored response. Raises ValueError where a present response has a NaN score; on an accelerator, where asking
    would make the CPU wait, the loss of that record is NaN.
    """
    total, pairs, best, worst = _pairs(rewards, scores, mask, torch.zeros_like(scores[:, 0], dtype=torch.bool))
    return LossOut(total / pairs.clamp(min=1), pairs > 0, best, worst)


def apo_rm_loss(
    rewards: Tensor,
    scores: Tensor,
    is_apo: Tensor,
    *,
    kl_coeff: float,
    apo_coeff: float,
    samples: int,
    kind: Literal["ranking", "wgan"] = "ranking",
    normalization: Literal["per_type", "released"] = "per_type",
    mask: Tensor | None = None,
    counts: tuple[float | Tensor, float | Tensor] | None = None,
    group: dist.ProcessGroup | None = None,
) -> LossOut:
    """The share of each record in L, scaled so that `ops.reduce` of the result is L; other arguments as `rank_loss`.

    Args:
        is_apo: bool [B], True for golden > sample records.
        counts: valid human and valid APO records of the whole optimiser step on all ranks, for gradient accumulation:
            numbers or scalar tensors. Then also call `reduce(out, count=sum(counts))`. Default: this batch's, on all
            ranks of `group`.

    Raises:
        ValueError: an unknown `kind` or `normalization`, or `counts` with `released`, which divides by micro-batch.
    """
    if kind not in ("ranking", "wgan") or normalization not in ("per_type", "released"):
        raise ValueError(f"unknown kind {kind!r} or normalization {normalization!r}")
    if counts is not None and normalization == "released":
        raise ValueError("counts: `released` divides by the pairs of the micro-batch, whatever the step holds")
    is_apo = is_apo.bool()
    total, pairs, best, worst = _pairs(rewards, scores, mask, is_apo if kind == "wgan" else torch.zeros_like(is_apo))
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


def _pairs(
    rewards: Tensor, scores: Tensor, mask: Tensor | None, linear: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Summed loss and number of the ordered pairs, reward of the best and of the worst response, all [B]."""
    present = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    broken = present & scores.isnan()  # [B, R]
    if scores.device.type == "cpu" and broken.any():
        raise ValueError("a present response has a NaN score; mark absent responses in `mask`")
    rewards = torch.where(present, upcast(rewards), 0.0)
    gap = rewards.unsqueeze(2) - rewards.unsqueeze(1)  # [B, R, R]: r_i - r_j
    better = (scores.unsqueeze(2) > scores.unsqueeze(1)) & present.unsqueeze(2) & present.unsqueeze(1)
    penalty = torch.where(linear[:, None, None], -gap, -logsigmoid(gap))
    best = torch.where(present, upcast(scores), -torch.inf).argmax(1, keepdim=True)
    worst = torch.where(present, upcast(scores), torch.inf).argmin(1, keepdim=True)
    logged = rewards.detach()
    return (
        torch.where(better, penalty, 0.0).sum((1, 2)).masked_fill(broken.any(1), torch.nan),
        better.sum((1, 2)) + broken.any(1),
        logged.gather(1, best).squeeze(1),
        logged.gather(1, worst).squeeze(1),
    )
