"""KTO, Kahneman-Tversky optimization (arXiv 2402.01306), on unpaired desirable and undesirable responses.

Formula: L = w_D [1 - sigmoid(beta (r - z0))] for desirable, w_U [1 - sigmoid(beta (z0 - r))] for undesirable
Where:   r = log pi_theta(y|x) - log pi_ref(y|x), summed over the response; z0 = max(0, mean r of mismatched (x, y'))
Deltas from the paper: none; z0 is the mean over the ranks' batches.
Not covered: forming the mismatched pairs. Their responses must come from OTHER prompts; the data pipeline ensures it.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from finepref.losses.ops import LossOut, upcast
from finepref.losses.ranks import sum_over_ranks


def kto_reference_point(
    policy_kl_logps: Tensor,
    reference_kl_logps: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    valid: Tensor | None = None,
) -> Tensor:
    """z0 = max(0, mean of log pi_theta(y'|x) - log pi_ref(y'|x)) over the mismatched pairs of all ranks.

    Args:
        policy_kl_logps, reference_kl_logps: [B], sums over the mismatched response; B may differ between ranks.
        valid: bool [B], the rows that have a mismatched response; default all.

    Returns:
        A detached scalar, the same on every rank; 0 if no rank has a pair.
    """
    log_ratio = upcast(policy_kl_logps) - upcast(reference_kl_logps)  # [B]
    rows = torch.ones_like(log_ratio, dtype=torch.bool) if valid is None else valid
    total, count = sum_over_ranks(
        torch.stack([torch.where(rows, log_ratio, 0.0).sum(), rows.sum().to(log_ratio)]), group
    )
    return (total / count.clamp(min=1)).clamp(min=0)


def kto_loss(
    log_ratio: Tensor,
    desirable: Tensor,
    reference_point: Tensor | float,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
    valid: Tensor | None = None,
) -> LossOut:
    """The loss of each record.

    Args:
        log_ratio: [B], r of each record.
        desirable: bool [B].
        reference_point: z0, a scalar.
        valid: bool [B], the records with at least one response token; default all.

    Returns:
        `chosen_reward` holds beta * r of the desirable, `rejected_reward` of the undesirable records, and 0 elsewhere.
    """
    rows = torch.ones_like(desirable, dtype=torch.bool) if valid is None else valid
    reward = beta * torch.where(rows, upcast(log_ratio), 0.0)  # [B]
    advantage = reward - beta * reference_point  # [B]
    gain = desirable_weight * torch.sigmoid(-advantage)  # 1 - sigmoid(v) = sigmoid(-v)
    cost = undesirable_weight * torch.sigmoid(advantage)
    loss = torch.where(rows, torch.where(desirable, gain, cost), 0.0)
    reward = reward.detach()
    return LossOut(loss, rows, torch.where(desirable, reward, 0.0), torch.where(desirable, 0.0, reward))


def automatic_weights(
    n_desirable: int, n_undesirable: int, *, desirable_weight: float, undesirable_weight: float
) -> tuple[float, float]:
    """(w_D, w_U) such that (w_D n_D) / (w_U n_U) lies in [1, 4/3], the range that the paper advises.

    Weights inside the range are returned unchanged; otherwise w_D moves to the nearer end of it.

    Raises:
        ValueError: a count or a weight is not positive.
    """
    if min(n_desirable, n_undesirable, desirable_weight, undesirable_weight) <= 0:
        raise ValueError(
            "automatic weights need records and weights of both kinds, got "
            f"{n_desirable} desirable x {desirable_weight}, {n_undesirable} undesirable x {undesirable_weight}"
        )
    undesirable_mass = undesirable_weight * n_undesirable
    ratio = desirable_weight * n_desirable / undesirable_mass
    if 1 <= ratio <= 4 / 3:
        return desirable_weight, undesirable_weight
    return (1.0 if ratio < 1 else 4 / 3) * undesirable_mass / n_desirable, undesirable_weight
