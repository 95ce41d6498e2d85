"""The steps of `finepref.losses.fused_head` on one chunk of positions.

n positions of a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from finepref.losses.ops import LOG_ZERO, upcast
from finepref.losses.output_head import Head

Reference = Callable[[int, int], Tensor]
"""(start, stop) -> the reference's logits [stop - start, V] at these positions."""


class Chunk:
    """Log-probabilities [n, V] of policy and reference; what is read from them, then gradients at the head's output.

    All chunks use the same room, and each step overwrites what is no longer needed: on a CPU, memory that is asked for
    anew costs as much as a pass over it, and the passes as much as the matrix products of a narrow model.
    The order is: all `values`, then `of_kl` if it is wanted, then `of_nll`.
    """

    def __init__(
        self, hidden: Tensor, head: Head, targets: Tensor, reference: Tensor | None, room: Sequence[Tensor | None]
    ) -> None:
        self.spare, ours, theirs = (None if each is None else each[: len(hidden)] for each in room)
        logits = head.logits(hidden, self.spare)
        self.targets, self.scale = targets.unsqueeze(-1), head.scale
        self.damping = None if head.softcap is None else 1 - (logits / head.softcap) ** 2
        self.log_pi = torch.log_softmax(upcast(logits), -1, out=ours)
        # only with a bias can a logit be -inf; no gradient passes the clamp then
        self.impossible = None if head.bias is None else self.log_pi.isneginf()
        self.log_ref = None
        if reference is not None:
            self.log_ref = torch.log_softmax(upcast(reference), -1, out=theirs).clamp_(min=LOG_ZERO)

    def values(self) -> Iterator[Tensor]:
        """log pi(y), KL, log pi_ref(y): [n] each."""
        yield self.log_pi.gather(-1, self.targets).squeeze(-1).clamp_(min=LOG_ZERO)
        if self.log_ref is not None:
            known = self.log_ref.gather(-1, self.targets).squeeze(-1)
            self.ref = torch.exp(self.log_ref, out=self.spare)
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
