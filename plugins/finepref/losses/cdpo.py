"""cDPO, critical tokens (arXiv 2411.19943): DPO with weights on the rejected tokens. Not conservative DPO.

Formula: L = -log sigmoid(beta [sum_t d_t^w - sum_t (1 - s_t) d_t^l]),  d = log(pi_theta / pi_ref)(y_t)
         s_t = softmax((1 + b) z+ - b z-)[y_t]
Where:   z+ and z- are the logits of two models, trained on right and on wrong answers; b is `contrast`, 1 there.
         A token that is likely by this contrast (s_t near 1) is not critical, and is not pushed down.
         The loss is `tdpo.masked_dpo_loss` with weight 1 (chosen) and 1 - s_t (rejected). The paper's beta is 1.
Deltas from the paper: none (equation 1 and section 3.2 of v3).
Deltas from the authors' code (chenzhiling9954/Critical-Tokens-Matter@228991e): `released_loss`, for comparison only.
         It never adds up tokens: it takes -log sigmoid at each position, of the chosen and the rejected token that
         happen to be there, and the mean over all positions, prompt and padding included; beta 0.1.
Not covered: training the two models, and finding where answers turn wrong (rollouts).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from finepref.losses.ops import LOG_ZERO, upcast
from finepref.losses.tdpo import TokenLogRatio


def contrast(right_logits: Tensor, wrong_logits: Tensor, labels: Tensor, *, contrast: float) -> Tensor:
    """log s_t of each token: two [..., V] and labels [...] -> [...]. Logits or log-probabilities, it is the same.

    A token that both models exclude has no part; one that only the second model excludes has all of it.
    """
    right, wrong = (upcast(each).log_softmax(-1).clamp(min=LOG_ZERO) for each in (right_logits, wrong_logits))
    mixed = ((1 + contrast) * right - contrast * wrong).log_softmax(-1)  # [..., V]
    return mixed.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def rejected_weights(score: Tensor) -> Tensor:
    """1 - s_t: [..., T] -> [..., T]."""
    return 1 - upcast(score)


def released_loss(chosen: TokenLogRatio, rejected: TokenLogRatio, *, beta: float) -> Tensor:
    """The authors' code: one number for a batch whose responses share T positions, prompt and padding included."""
    d_w, d_l = (each.weight * (upcast(each.policy) - upcast(each.reference)) for each in (chosen, rejected))  # [B, T]
    return -logsigmoid(beta * (d_w - d_l)).mean()
