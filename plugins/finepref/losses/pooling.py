"""Where a reward model reads its reward. N sequences, T tokens, H channels."""

from __future__ import annotations

import torch
from torch import Tensor


def pool(hidden: Tensor, attended: Tensor, position: Tensor, how: str) -> Tensor:
    """The hidden state that stands for a sequence: hidden [N, T, H], attended [N, T], position [N] -> [N, H].

    `last` and `eos` take the hidden state at `position`; `mean` and `max` (per channel) are over all attended tokens,
    the prompt's too, as in the authors' code.

    Raises:
        ValueError: another way of pooling.
    """
    if how in ("last", "eos"):
        return hidden[torch.arange(len(hidden), device=hidden.device), position]
    mask = attended.bool().unsqueeze(-1)
    if how == "max":
        return hidden.masked_fill(~mask, -torch.inf).amax(1)
    if how == "mean":
        return torch.where(mask, hidden, 0.0).float().sum(1).div(mask.sum(1)).to(hidden.dtype)
    raise ValueError(f"unknown pooling {how!r}")
