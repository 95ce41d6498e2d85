"""TDPO, token-level direct preference optimization (arXiv 2404.11999), and DPO, both with weights on tokens or spans.

Formula: TDPO1  L = -log sigmoid(beta [(m_w - m_l) - (D_l - D_w)])
         TDPO2  L = -log sigmoid(beta [(m_w - m_l) - alpha (D_l - sg D_w)])
         DPO    L = -log sigmoid(beta  (m_w - m_l))
Where:   m = sum_t weight_t log(pi_theta / pi_ref)(y_t), D = sum_t weight_t KL(pi_ref(.|s_t) || pi_theta(.|s_t)),
         EOS included; sg = stop-gradient; w is the chosen, l the rejected response. The paper's weights are 1.
Sides:   0 reads both responses, +1 only the chosen, -1 only the rejected: the other's m and D are 0. It is the flag of
         the granular fork (Token-level-Direct-Preference-Optimization@e17d5cc), whose loss is one-sided.
Deltas from the paper: `weight`, `sides`, `margin` (chosen must lead by it), and `length_normalized`, which divides m
         and D by the sum of the weights: short spans need no larger learning rate (the fork does not divide).
Not covered: which tokens a span selects (see finepref.formats.spans).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from finepref.losses.ops import LossOut, upcast, weighted_mean, weighted_sum


class TokenLogRatio(NamedTuple):
    """One response per pair, all [B, T] in label space. DPO does not read `kl`: there it may be None."""

    policy: Tensor  # log pi_theta(y_t)
    reference: Tensor  # log pi_ref(y_t)
    kl: Tensor | None  # KL(pi_ref || pi_theta) at t, by ops.position_kl
    weight: Tensor


def tdpo1_loss(
    chosen: TokenLogRatio,
    rejected: TokenLogRatio,
    *,
    beta: float,
    margin: Tensor | float = 0.0,
    sides: Tensor | None = None,
    length_normalized: bool = False,
) -> LossOut:
    """TDPO1. A pair is valid if each response that it reads has a token of any weight. `margin`, `sides`: [B]."""
    m_w, d_w, valid_w = _totals(chosen, sides, 1, length_normalized)  # [B] each
    m_l, d_l, valid_l = _totals(rejected, sides, -1, length_normalized)
    logit = beta * (m_w - m_l - d_l + d_w) - margin
    return _out(logit, valid_w & valid_l, beta * (m_w + d_w), beta * (m_l + d_l))


def tdpo2_loss(
    chosen: TokenLogRatio,
    rejected: TokenLogRatio,
    *,
    beta: float,
    alpha: float,
    margin: Tensor | float = 0.0,
    sides: Tensor | None = None,
    length_normalized: bool = False,
) -> LossOut:
    """TDPO2, arguments as `tdpo1_loss`; the logged rewards are beta (m + D) as well."""
    m_w, d_w, valid_w = _totals(chosen, sides, 1, length_normalized)
    m_l, d_l, valid_l = _totals(rejected, sides, -1, length_normalized)
    logit = beta * ((m_w - m_l) - alpha * (d_l - d_w.detach())) - margin
    return _out(logit, valid_w & valid_l, beta * (m_w + d_w), beta * (m_l + d_l))


def masked_dpo_loss(
    chosen: TokenLogRatio,
    rejected: TokenLogRatio,
    *,
    beta: float,
    margin: Tensor | float = 0.0,
    sides: Tensor | None = None,
    length_normalized: bool = False,
) -> LossOut:
    """DPO (arXiv 2305.18290) over the weighted tokens, arguments as `tdpo1_loss`; the logged rewards are beta m."""
    m_w, _, valid_w = _totals(chosen._replace(kl=torch.zeros_like(chosen.policy)), sides, 1, length_normalized)
    m_l, _, valid_l = _totals(rejected._replace(kl=torch.zeros_like(rejected.policy)), sides, -1, length_normalized)
    return _out(beta * (m_w - m_l) - margin, valid_w & valid_l, beta * m_w, beta * m_l)


def _totals(
    response: TokenLogRatio, sides: Tensor | None, side: int, length_normalized: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """m, D and validity of one response, all [B]; a pair of the other side reads 0 from it."""
    if response.kl is None:
        raise ValueError("TDPO needs `kl`, the KL at each position")
    weight = response.weight if sides is None else torch.where((sides != -side)[:, None], response.weight, 0.0)
    total = weighted_mean if length_normalized else weighted_sum
    log_ratio = upcast(response.policy) - upcast(response.reference)
    valid = (weight != 0).any(-1) if sides is None else (weight != 0).any(-1) | (sides == -side)
    return total(log_ratio, weight), total(response.kl, weight), valid


def _out(logit: Tensor, valid: Tensor, chosen_reward: Tensor, rejected_reward: Tensor) -> LossOut:
    loss = torch.where(valid, -logsigmoid(logit), 0.0)
    return LossOut(loss, valid, chosen_reward.detach(), rejected_reward.detach())
