"""ConfPO (arXiv 2506.08712): SimPO on the tokens of which the policy itself is least sure. No reference model.

Formula: L = -log sigmoid(beta (u_w - u_l) - gamma),  u = mean over the selected tokens of log pi_theta(y_t)
Where:   a token is selected if its probability is below the mean probability of its response, without gradient.
         beta 1.5, gamma 1.6 are the authors'.
Rules:   `released` (hee-suk-yoon/ConfPO@044b366) selects p_t < mean, `paper` p_t <= mean (second hand). They differ
         for a token exactly at the mean, as where all probabilities are equal: `released` then selects nothing.
Deltas from the paper: `weight` says which tokens belong to the response, and weighs both means; the paper's is 1.
         A pair of which a response selects nothing has loss 0 and still counts in the mean, as in the authors' code.
Not covered: selection by gradients, to which the paper compares.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from finepref.losses.ops import LossOut, TokenLogps, upcast, weighted_mean

Rule = Literal["released", "paper"]


def select(response: TokenLogps, *, rule: Rule) -> Tensor:
    """The tokens that are trained: bool [B, T]."""
    probability = upcast(response.logps.detach()).exp()
    mean = weighted_mean(probability, response.weight).unsqueeze(-1)  # [B, 1]
    below = probability < mean if rule == "released" else probability <= mean
    return below & (response.weight != 0)


def confpo_loss(
    chosen: TokenLogps, rejected: TokenLogps, *, beta: float, gamma: float, rule: Rule = "released"
) -> LossOut:
    """The loss of each pair [B]. A pair is valid if both responses have a token whose weight is not 0.

    The logged rewards are beta u_w and beta u_l.
    """
    sides = []
    for side in (chosen, rejected):
        selected = select(side, rule=rule)
        sides.append((beta * weighted_mean(side.logps, torch.where(selected, side.weight, 0.0)), selected.any(-1)))
    (u_w, any_w), (u_l, any_l) = sides  # [B] each
    valid = (chosen.weight != 0).any(-1) & (rejected.weight != 0).any(-1)
    loss = torch.where(any_w & any_l, -logsigmoid(u_w - u_l - gamma), 0.0)
    return LossOut(loss, valid, u_w.detach(), u_l.detach())
