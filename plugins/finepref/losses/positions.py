"""Where a loss reads something: flat indices of the marked positions, and values put back at them.

The number of marked positions is passed as an int where it is known, because to learn it from a tensor the CPU waits
for the accelerator.
"""

from __future__ import annotations

import torch
from torch import Tensor


def needed_positions(mask: Tensor, count: int | None = None) -> Tensor:
    """Where to apply the head: bool [B, T] in label space -> flat indices [N] into hidden states [B, T+1, H].

    If the mask is all False, the result is [0], so that the head stays in the graph on every rank; see `place`.

    Args:
        mask: the tokens of which the loss reads something.
        count: how many there are. Without it the CPU waits for an accelerator here, to learn N.
    """
    return marked_positions(torch.nn.functional.pad(mask, (0, 1)), count)


def marked_positions(mask: Tensor, count: int | None = None) -> Tensor:
    """As `needed_positions`, for a mask over the hidden states themselves, in any layout: bool [...] -> [N]."""
    flat = mask.flatten()
    if count is None:
        count = int(flat.sum())
    marked_first = flat.to(torch.uint8).sort(descending=True, stable=True).indices.narrow(0, 0, max(count, 1))
    return marked_first if count else torch.zeros_like(marked_first)


def place(values: Tensor, mask: Tensor) -> Tensor:
    """Put values [N] where a mask is True, in its order, 0 elsewhere: bool [...] -> the same shape.

    One value for a mask that is all False goes nowhere, and gets a gradient of 0. Neither direction waits for an
    accelerator, as the backward pass of `masked_scatter` does.
    """
    return place_at(values, marked_positions(mask, len(values)), mask)


def place_at(values: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """`place` for positions [N] that are known: flat indices into the mask."""
    flat = torch.zeros(mask.numel(), dtype=values.dtype, device=values.device).scatter(0, positions, values)
    return torch.where(mask, flat.view(mask.shape), 0.0)
