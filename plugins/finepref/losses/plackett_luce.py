"""The Plackett-Luce loss of ranked lists (DPO, arXiv 2305.18290, appendix A.3, equations 18 to 20), and DPO-PL.

Formula: L = sum_k [ logsumexp_{j in R_k} s(j) - s(k) ]
Where:   R_k is response k and all that are worse; s is a reward, or beta sum_t log(pi_theta / pi_ref)(y_t) for DPO-PL.
         With two responses, L is the ranking loss (and DPO).
Ties:    the paper has none. `apart`: equally scored responses do not compete, R_k has only the strictly worse ones; a
         list of ties is not valid, as in the ranking loss. `breslow`: R_k has its equals too (Breslow's likelihood of
         Cox models), which draws their rewards together.
Deltas from the paper: absent responses, by `mask`.
Not covered: partial rankings other than by ties.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from finepref.losses.ops import LossOut, upcast
from finepref.losses.ranking import rewards_at_ends, unscored

Ties = Literal["apart", "breslow"]


def plackett_luce_loss(
    rewards: Tensor, scores: Tensor, mask: Tensor | None = None, *, ties: Ties = "apart"
) -> LossOut:
    """The loss of each list: rewards [B, R], scores [B, R] (higher is better), mask bool [B, R] -> [B].

    A list is valid if a response of it competes with another one. The logged rewards are those of the best and the
    worst scored response. NaN scores are treated as in `ranking.rank_loss`.

    Raises:
        ValueError: unknown `ties`, or a present response has a NaN score.
    """
    if ties not in ("apart", "breslow"):
        raise ValueError(f"unknown ties {ties!r}: use apart or breslow")
    present = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    rewards, scores = torch.where(present, upcast(rewards), 0.0), upcast(scores)
    theirs, own = scores.unsqueeze(1), scores.unsqueeze(2)  # [B, R, R]: [b, k, j] is whether j is in R_k
    rivals = (theirs <= own if ties == "breslow" else theirs < own) & present.unsqueeze(1) & present.unsqueeze(2)
    itself = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    log_total = torch.where(rivals | itself, rewards.unsqueeze(1), -torch.inf).logsumexp(2)  # [B, R]
    loss = torch.where(present, log_total - rewards, 0.0).sum(1)
    valid = (rivals & ~itself).any(2).any(1)
    broken = unscored(scores, present)
    loss = torch.where(valid, loss, 0.0).masked_fill(broken, torch.nan)
    return LossOut(loss, valid | broken, *rewards_at_ends(rewards, scores, present))


def dpo_pl_loss(
    policy: Tensor, reference: Tensor, scores: Tensor, mask: Tensor | None = None, *, beta: float, ties: Ties = "apart"
) -> LossOut:
    """DPO-PL. The logged rewards are beta times the log-ratio of the best and the worst scored response.

    Args:
        policy, reference: [B, R], log-probabilities of whole responses.
        scores, mask, ties: as in `plackett_luce_loss`.
        beta: scale of the log-ratio.
    """
    reward = beta * (upcast(policy) - upcast(reference))
    return plackett_luce_loss(reward, scores, mask, ties=ties)
