"""SePO, selective preference optimization (arXiv 2408.13518). Not SeaPO (error amplification, arXiv 2509.24781).

Formula: L = -log sigmoid(u_w - u_l - lambda),  u = gamma * mean over the selected tokens of log pi_theta(y_t)
Where:   tokens are selected by their reward s_t = log pi_oracle(y_t) - log pi_ref(y_t): the share k_w of the chosen
         ones with the HIGHEST s, the share k_l of the rejected ones with the LOWEST; `gamma`, lambda = `margin`.
Deltas from the paper: lambda is unverified, so preset `paper` has margin 0, which disables it; its gamma is 2.5, the
         paper's 2.1 to 2.5. Preset `released`, the authors' code: gamma 1, no margin; its --beta is not used.
Not covered: scoring (s_t is computed once, k is chosen at training time); selection over several responses.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from finepref.losses.ops import LossOut, TokenLogps, upcast, weighted_mean

# The paper's gamma is 2.1 to 2.5, depending on the model. Its lambda is unverified; margin 0 disables it.
PRESETS = {
    "paper": {"gamma": 2.5, "margin": 0.0},
    "released": {"gamma": 1.0, "margin": 0.0},
}


def token_reward(oracle_logps: Tensor, reference_logps: Tensor) -> Tensor:
    """s_t = log pi_oracle(y_t) - log pi_ref(y_t): [B, T], [B, T] -> [B, T], in label space."""
    if oracle_logps.shape != reference_logps.shape:
        raise ValueError(f"oracle {[*oracle_logps.shape]} and reference {[*reference_logps.shape]} differ in shape")
    return upcast(oracle_logps) - upcast(reference_logps)


def select_tokens(reward: Tensor, ratio: float, *, highest: bool, mask: Tensor | None = None) -> Tensor:
    """The share of each row with the highest (or lowest) rewards, as a mask in label space.

    A row with N counted tokens gives int(ratio * N) of them, at least one unless N = 0. Ties go to the earliest token.

    Args:
        reward: [..., T].
        ratio: in (0, 1]; the paper's k, 0.3 for both responses.
        highest: True for the chosen, False for the rejected response.
        mask: bool [..., T], the tokens of the response; default all.

    Returns:
        bool [..., T].

    Raises:
        ValueError: `ratio` is out of range, or a counted reward is NaN or infinite.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be in (0, 1], got {ratio}")
    counted = torch.ones_like(reward, dtype=torch.bool) if mask is None else mask
    if not torch.isfinite(reward[counted]).all():
        raise ValueError("a token reward is NaN or infinite: the scores are broken, nothing can be selected by them")
    n = counted.sum(-1, keepdim=True)
    quota = torch.minimum((ratio * n.double()).long().clamp(min=1), n)  # [..., 1]
    order = torch.where(counted, -reward if highest else reward, torch.inf).argsort(dim=-1, stable=True)
    return order.argsort(-1) < quota  # rank of each token < quota


def sepo_loss(chosen: TokenLogps, rejected: TokenLogps, *, gamma: float, margin: Tensor | float) -> LossOut:
    """The loss of each pair; `weight` is 1 at the selected tokens, 0 elsewhere (fractions weigh them). T may differ.

    A pair is valid if both responses have a token whose weight is not 0. The logged rewards are u_w and u_l. `margin`
    is one number or one of each pair, [B].
    """
    u_w = gamma * weighted_mean(*chosen)  # [B]
    u_l = gamma * weighted_mean(*rejected)
    valid = (chosen.weight != 0).any(-1) & (rejected.weight != 0).any(-1)
    loss = torch.where(valid, -logsigmoid(u_w - u_l - margin), 0.0)
    return LossOut(loss, valid, u_w.detach(), u_l.detach())
