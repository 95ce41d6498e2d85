"""TIS-DPO, token-level importance sampling for DPO (arXiv 2410.04350): the weight of each token, and its loss.

Formula: L = -log sigmoid(beta [(m_w - m_l) - alpha (K_w - K_l)]),  m = sum_t w_t log(pi_theta / pi_ref)(y_t)
         paper: w_t = k exp(mu clamp(s_t, low, high)), mu +1 for the chosen, -1 for the rejected response
Where:   s_t = log pi+(y_t) - log pi-(y_t): pi+ is trained by DPO, pi- by DPO with chosen and rejected exchanged.
         K = sum_t w_t KL(pi_theta || pi_ref) at t; alpha 0 leaves it out.
Deltas from the paper: low and high are unverified, so they are parameters. The authors' code (exlaw/TIS-DPO@cbad7c1)
         has no exponential, but `rank_based`, `threshold_and_scale` and `binary`, of s_t (chosen) and -s_t (rejected);
         there the end token has weight 0, which is the caller's `among`. Its KL term is off unless `token_level`.
Not covered: its methods `random`, `threshold` and `origin`; reading the models (`finepref sepo score`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from finepref.losses.ops import LossOut, upcast
from finepref.losses.tdpo import TokenLogRatio, masked_dpo_loss


def importance_weights(score: Tensor, *, chosen: bool, k: float, low: float, high: float) -> Tensor:
    """The paper's weights: s_t [..., T] -> [..., T].

    Args:
        score: s_t of each token.
        chosen: True for the chosen, False for the rejected response.
        k: scale of all weights.
        low, high: bounds of s_t.
    """
    clamped = upcast(score).clamp(low, high)
    return k * (clamped if chosen else -clamped).exp()


def rank_based(score: Tensor, among: Tensor, *, chosen: bool, low: float, high: float) -> Tensor:
    """Evenly spaced weights from `low` to `high` by ascending signed score; equal scores in the order of the tokens.

    A token that is alone has weight 1.

    Args:
        score: s_t [..., T].
        among: bool [..., T], the tokens that are ranked; the others get 0.
        chosen: True for the chosen, False for the rejected response.
        low, high: the weights of the lowest and of the highest.
    """
    rank = _ranks(upcast(score) if chosen else -upcast(score), among).to(upcast(score).dtype)
    last = among.sum(-1, keepdim=True) - 1
    weight = torch.where(last > 0, low + rank / last.clamp(min=1) * (high - low), 1.0)
    return torch.where(among, weight, 0.0)


def threshold_and_scale(
    score: Tensor, among: Tensor, *, chosen: bool, low: float, high: float, scale_low: float, scale_high: float
) -> Tensor:
    """The signed score, clamped to [low, high] and mapped linearly to [scale_low, scale_high].

    Args:
        score, among, chosen: as in `rank_based`.
        low, high: bounds of the signed score.
        scale_low, scale_high: the weights at these bounds.
    """
    signed = (upcast(score) if chosen else -upcast(score)).clamp(low, high)
    return torch.where(among, scale_low + (signed - low) * (scale_high - scale_low) / (high - low), 0.0)


def binary(score: Tensor, among: Tensor, *, chosen: bool, share: float) -> Tensor:
    """1 on the share int(share * N) of N tokens with the highest signed scores, else 0. Ties go to the earliest token.

    (The authors' code gives all tokens of one score the weight of the last of them.)
    """
    rank = _ranks(-upcast(score) if chosen else upcast(score), among)
    quota = (share * among.sum(-1, keepdim=True).double()).long()
    return ((rank < quota) & among).to(upcast(score).dtype)


def tis_dpo_loss(chosen: TokenLogRatio, rejected: TokenLogRatio, *, beta: float, alpha: float = 0.0) -> LossOut:
    """The loss of each pair. `kl` is KL(pi_theta || pi_ref), the reverse of TDPO's, and is not read with alpha 0."""
    if not alpha:
        return masked_dpo_loss(chosen, rejected, beta=beta)
    return masked_dpo_loss(_penalized(chosen, alpha), _penalized(rejected, alpha), beta=beta)


def _penalized(response: TokenLogRatio, alpha: float) -> TokenLogRatio:
    """log pi_theta - alpha KL in place of log pi_theta, so that m becomes m - alpha K."""
    if response.kl is None:
        raise ValueError("alpha needs `kl`, the KL at each position")
    return response._replace(policy=upcast(response.policy) - alpha * response.kl)


def _ranks(values: Tensor, among: Tensor) -> Tensor:
    """Place of each value among the counted ones, ascending, from 0; stable. The others come after them."""
    return torch.where(among, values, torch.inf).argsort(dim=-1, stable=True).argsort(-1)
