"""TGDPO, token-level reward guidance for DPO (arXiv 2506.14574): the weight of each token, from a guide model.

Formula: L = -log sigmoid(sum_t f_w(t) beta d_t^w - sum_t f_l(t) beta d_t^l),  d = log(pi_theta / pi_ref)(y_t)
         f_w(t) = 1 + alpha R_t,  f_l(t) = 1 - alpha R_t
Where:   R_t = beta log(pi_guide / pi_ref)(y_t), by a model that DPO has trained already; beta is that of the loss.
         The loss is `tdpo.masked_dpo_loss` with these weights.
Deltas from the paper: none, and none from the authors' code (dvlab-research/TGDPO@dd88982). Neither clamps: a weight
         is negative where alpha R_t is below -1 (chosen) or above 1 (rejected).
Not covered: reading the guide, which is done once (`finepref sepo score`); alpha 0 is DPO.
"""

from __future__ import annotations

from torch import Tensor

from finepref.losses.ops import upcast


def token_weights(log_ratio: Tensor, *, beta: float, alpha: float, chosen: bool) -> Tensor:
    """f of each token: [..., T] -> [..., T].

    Args:
        log_ratio: log pi_guide - log pi_ref of each token.
        beta: that of the loss.
        alpha: strength of the guidance.
        chosen: True for the chosen, False for the rejected response.
    """
    reward = beta * upcast(log_ratio)  # R_t
    return 1 + alpha * reward if chosen else 1 - alpha * reward
