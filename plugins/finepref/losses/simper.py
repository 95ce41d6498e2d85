"""SimPER (arXiv 2502.00883): preference by perplexities. No reference model and no constant.

Formula: L = -exp(u_w) + exp(u_l),  u = mean over the response's tokens of log pi_theta(y_t)
Where:   exp(u) is the inverse of the perplexity; L lies in (-1, 1), and is 0 where both are equal.
Deltas from the paper: `weight` on tokens; the paper's is 1. None from the authors' code (tengxiao1/SimPER@db08c97).
Not covered: -
"""

from __future__ import annotations

import torch

from finepref.losses.ops import LossOut, TokenLogps, weighted_mean


def simper_loss(chosen: TokenLogps, rejected: TokenLogps) -> LossOut:
    """The loss of each pair [B]. A pair is valid if both responses have a token whose weight is not 0.

    The logged rewards are exp(u_w) and exp(u_l).
    """
    inverse_w, inverse_l = (weighted_mean(*side).exp() for side in (chosen, rejected))  # [B]
    valid = (chosen.weight != 0).any(-1) & (rejected.weight != 0).any(-1)
    loss = torch.where(valid, inverse_l - inverse_w, 0.0)
    return LossOut(loss, valid, inverse_w.detach(), inverse_l.detach())
