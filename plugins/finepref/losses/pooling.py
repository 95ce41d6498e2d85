"""Where a reward model reads its reward. N sequences, T tokens, H channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def reading_places(response: Sequence[int], end_token: int) -> tuple[int, int]:
    """Where in a response's tokens its reward is read.

    Args:
        response: token ids [T], with what a template writes behind the text.
        end_token: the tokenizer's end token.

    Returns:
        (`last`: the token right before the last end token, or the last one where there is none; `eos`: that end token,
        or -1 where there is none).
    """
    if end_token not in response:
        return len(response) - 1, -1
    at_end = len(response) - 1 - list(response)[::-1].index(end_token)
    return at_end - 1, at_end


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
