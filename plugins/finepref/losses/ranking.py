"""The ranking loss of scored responses, of reward models in general.

Formula: L = mean over the ordered pairs (i, j) of a record with score_i > score_j of -log sigmoid(r_i - r_j - m_ij)
Where:   the margin m_ij is 0, or score_i - score_j with `margins` (Llama 2, arXiv 2307.09288, equation 2).
Not covered: other losses of a whole list (`losses.plackett_luce`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from finepref.losses.ops import LossOut, upcast


def rank_loss(rewards: Tensor, scores: Tensor, mask: Tensor | None = None, *, margins: bool = False) -> LossOut:
    """L_rank of each record: rewards [B, R], scores [B, R], mask bool [B, R] (absent responses False) -> [B].

    A record without two differently scored responses is not valid. The logged rewards are those of the best and the
    worst scored response. Raises ValueError where a present response has a NaN score; on an accelerator, where asking
    would make the CPU wait, the loss of that record is NaN.
    """
    total, pairs, best, worst = ordered_pairs(
        rewards, scores, mask, torch.zeros_like(scores[:, 0], dtype=torch.bool), margins=margins
    )
    return LossOut(total / pairs.clamp(min=1), pairs > 0, best, worst)


def ordered_pairs(
    rewards: Tensor, scores: Tensor, mask: Tensor | None, linear: Tensor, *, margins: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Summed loss and number of the ordered pairs, reward of the best and of the worst response, all [B].

    Args:
        rewards, scores, mask, margins: as in `rank_loss`.
        linear: bool [B], records whose pairs have the loss -(r_i - r_j).
    """
    present = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    broken = unscored(scores, present)
    rewards = torch.where(present, upcast(rewards), 0.0)
    gap = rewards.unsqueeze(2) - rewards.unsqueeze(1)  # [B, R, R]: r_i - r_j
    better = (scores.unsqueeze(2) > scores.unsqueeze(1)) & present.unsqueeze(2) & present.unsqueeze(1)
    ahead = scores.unsqueeze(2) - scores.unsqueeze(1) if margins else 0.0
    penalty = torch.where(linear[:, None, None], -gap, -logsigmoid(gap - ahead))
    best, worst = rewards_at_ends(rewards, scores, present)
    return (
        torch.where(better, penalty, 0.0).sum((1, 2)).masked_fill(broken, torch.nan),
        better.sum((1, 2)) + broken,
        best,
        worst,
    )


def rewards_at_ends(rewards: Tensor, scores: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The rewards of the best and of the worst scored response, [B] each, without gradient."""
    best = torch.where(present, upcast(scores), -torch.inf).argmax(1, keepdim=True)
    worst = torch.where(present, upcast(scores), torch.inf).argmin(1, keepdim=True)
    logged = rewards.detach()
    return logged.gather(1, best).squeeze(1), logged.gather(1, worst).squeeze(1)


def unscored(scores: Tensor, present: Tensor) -> Tensor:
    """Records with a NaN score of a present response: bool [B].

    Raises ValueError where there is one, unless on an accelerator, where asking would make the CPU wait.
    """
    broken = (present & scores.isnan()).any(1)
    if scores.device.type == "cpu" and broken.any():
        raise ValueError("a present response has a NaN score; mark absent responses in `mask`")
    return broken
