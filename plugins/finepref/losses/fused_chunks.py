"""The steps of `finepref.losses.fused_head` on one chunk of positions, and its autograd function over all chunks.

n positions of a chunk, N of all, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from finepref.losses.ops import LOG_ZERO, upcast

CPU_BYTES, ACCELERATOR_BYTES = 40 * 2**20, 2**28
"""Of one chunk of float32 logits. On a CPU it is small beside the cache, and above the 32 MiB from which on the C
library gives memory back at once."""

Reference = Callable[[int, int], Tensor]
"""(start, stop) -> the reference's logits [stop - start, V] at these positions."""


class Head(NamedTuple):
    """A linear output head: weight [V, H], bias [V] or None; then logits are multiplied by `scale` and capped."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, H] -> logits [n, V]."""
        return self.processed(torch.nn.functional.linear(hidden, self.weight, self.bias))

    def processed(self, logits: Tensor) -> Tensor:
        """What the model makes of the head's output, of the same shape."""
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def cast(self, dtype: torch.dtype) -> Head:
        """The same in another dtype, without a gradient."""
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        return self._replace(weight=self.weight.detach().to(dtype), bias=bias)

    def chunks(self, count: int, border: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of each chunk of `count` positions, none of which lies on both sides of a border."""
        most = CPU_BYTES if self.weight.device.type == "cpu" else ACCELERATOR_BYTES
        size = max(16, most // (4 * len(self.weight)))
        for first, last in ((0, border), (border, count)):
            yield from ((start, min(start + size, last)) for start in range(first, last, size))


class Chunk:
    """Log-probabilities [n, V] of policy and reference; what is read from them, then gradients at the head's output.

    A pass over [n, V] takes as long as the matrix product of a narrow model, so each one overwrites what is no longer
    needed. The order is: all `values`, then `of_kl` if it is wanted, then `of_nll`.
    """

    def __init__(self, hidden: Tensor, head: Head, targets: Tensor, reference: Tensor | None) -> None:
        logits = head.logits(hidden)
        self.targets, self.scale = targets.unsqueeze(-1), head.scale
        self.damping = None if head.softcap is None else 1 - (logits / head.softcap) ** 2
        self.log_pi = upcast(logits).log_softmax(-1)
        # only with a bias can a logit be -inf; no gradient passes the clamp then
        self.impossible = None if head.bias is None else self.log_pi.isneginf()
        self.log_ref = None if reference is None else upcast(reference).log_softmax(-1).clamp_(min=LOG_ZERO)

    def values(self) -> Iterator[Tensor]:
        """log pi(y), KL, log pi_ref(y): [n] each."""
        yield self.log_pi.gather(-1, self.targets).squeeze(-1).clamp_(min=LOG_ZERO)
        if self.log_ref is not None:
            known = self.log_ref.gather(-1, self.targets).squeeze(-1)
            self.ref = self.log_ref.exp()
            log_pi = self.log_pi if self.impossible is None else self.log_pi.clamp_(min=LOG_ZERO)
            yield torch.einsum("nv,nv->n", self.ref, self.log_ref.sub_(log_pi))
            yield known
        self.pi = self.log_pi.exp_()

    def of_kl(self) -> Tensor:
        """d KL / d output: p - p_ref, [n, V]."""
        if self.impossible is None:
            return self._at_output(torch.sub(self.pi, self.ref, out=self.ref))
        ref = self.ref.masked_fill_(self.impossible, 0.0)
        return self._at_output((self.pi * ref.sum(-1, keepdim=True)).sub_(ref))

    def of_nll(self) -> Tensor:
        """d (-log pi(y)) / d output: p - onehot(y), [n, V]."""
        slope = self.pi.scatter_add_(-1, self.targets, -torch.ones_like(self.pi[:, :1]))
        if self.impossible is not None:
            slope.masked_fill_(self.impossible.gather(-1, self.targets), 0.0)
        return self._at_output(slope)

    def _at_output(self, slope: Tensor) -> Tensor:
        """What was the slope at the logits, before they were scaled and capped."""
        if self.damping is not None:
            slope *= self.damping
        return slope if self.scale == 1 else slope.mul_(self.scale)
