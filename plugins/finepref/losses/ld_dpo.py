"""LD-DPO, length-desensitized DPO (arXiv 2409.06411): less weight beyond the length of the shorter response.

Formula: L = -log sigmoid(beta (m_w - m_l)),  m = sum_t w_t log(pi_theta / pi_ref)(y_t)
         w_t = 1 for t < min(|y_w|, |y_l|), then alpha
Where:   |y| counts response tokens, the end token included; alpha 0.5 is usual, 1 is DPO.
Readings: `weighted`, of TRL: the weight counts for policy and reference.
         `whole`, of LLaMA-Factory and ms-swift: m = sum_t w_t log pi_theta(y_t) - sum_t log pi_ref(y_t). The two have
         the same gradient direction, but the loss of `whole` does not start at ln 2.
Deltas from the paper: none known; it does not say which reading is meant.
Not covered: spans, whose weights have another meaning.
"""

from __future__ import annotations

import torch

from finepref.losses.tdpo import TokenLogRatio


def length_weights(length: int, other: int, *, alpha: float) -> list[float]:
    """The weights of a response of `length` tokens beside one of `other` tokens."""
    return [1.0 if t < other else alpha for t in range(length)]


def whole_reference(response: TokenLogRatio) -> TokenLogRatio:
    """The reading `whole`: the reference counts in full where the weight is not 0, so alpha must not be 0."""
    weight = response.weight
    divided = response.reference / torch.where(weight != 0, weight, 1.0)
    return response._replace(reference=divided)
