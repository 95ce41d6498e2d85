"""The output head of a language model, as `finepref.losses.fused_head` applies it to chunks of positions.

n positions of a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CPU_BYTES, ACCELERATOR_BYTES = 40 * 2**20, 2**28
"""Of one chunk of float32 logits. On a CPU it is small beside the cache, and above the 32 MiB from which on the C
library gives memory back at once."""


class Head(NamedTuple):
    """A linear output head: weight [V, H], bias [V] or None; then logits are multiplied by `scale` and capped."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor, room: Tensor | None = None) -> Tensor:
        """Hidden states [n, H] -> logits [n, V], in `room` [n, V] if it has the right dtype."""
        if room is None or room.dtype != hidden.dtype:
            return self.processed(torch.nn.functional.linear(hidden, self.weight, self.bias))
        torch.mm(hidden, self.weight.t(), out=room)
        return self.processed(room if self.bias is None else room.add_(self.bias))

    def processed(self, logits: Tensor) -> Tensor:
        """What the model makes of the head's output, of the same shape."""
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def cast(self, dtype: torch.dtype) -> Head:
        """The same in another dtype, without a gradient."""
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        return self._replace(weight=self.weight.detach().to(dtype), bias=bias)

    @property
    def most(self) -> int:
        """Positions of a chunk, at most."""
        size = CPU_BYTES if self.weight.device.type == "cpu" else ACCELERATOR_BYTES
        return max(16, size // (4 * len(self.weight)))

    def chunks(self, count: int, border: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of each chunk of `count` positions, none of which lies on both sides of a border."""
        for first, last in ((0, border), (border, count)):
            yield from ((start, min(start + self.most, last)) for start in range(first, last, self.most))

    def room(self, count: int, dtype: torch.dtype, *, reference: bool) -> tuple[Tensor | None, ...]:
        """Room for the numbers of a chunk [n, V] of `count` positions, see `fused_chunks.Chunk`."""
        shape = (min(self.most, count), len(self.weight))
        wanted = (reference or self.weight.dtype == dtype, True, reference)
        return tuple(self.weight.new_empty(shape, dtype=dtype) if each else None for each in wanted)
