"""Where a reward model reads its reward. N sequences, T tokens, H channels."""

from __future__ import annotations

from collections.abc import Sequence

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


def tokens_read(response: Sequence[int], eos: int, how: str) -> int | None:
    """How many tokens of a response are read: the reward stands at the last of them, and what follows is not read.

    `response` is the response's token ids with all that the template writes after its text. With `eos` the reward
    stands at the last end token, otherwise at the token before that, or at the last token if there is no end token.
    0 means that the response has no text: the reward stands at the last token of the prompt. None means that `how` is
    `eos` and the response has no end token.
    """
    if eos not in response:
        return None if how == "eos" else len(response)
    closing = len(response) - 1 - response[::-1].index(eos)
    return closing + 1 if how == "eos" else closing
