"""Log-probabilities and KL from hidden states: output head and log-softmax in one, a chunk of positions at a time.

Formula: log pi(y) and KL(pi_ref || pi) at a position depend on its own hidden state h only. With logits z = W h + b
             d log pi(y) / d h = W^T (onehot(y) - p)        d KL / d h = W^T (p - p_ref)
         are known in the forward pass, whatever the loss makes of the values later.
Where:   p, p_ref = softmax of the logits of policy and reference. N positions, H hidden size, V vocabulary.
Cost:    nothing of [N, V] is kept. With a frozen head (LoRA elsewhere) the backward pass only scales [N, H]: as many
         matrix products as with stored logits. A head with a gradient computes its logits again, for d W.
Also:    logits may be scaled after the head, or capped as c tanh(z / c).

Logits have the dtype of the head's own output, also under autocast; the values are float32 (float64 of float64).
`ops.token_logps` and `ops.position_kl` are the same over stored logits; tests compare them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from finepref.losses.fused_chunks import Reference
from finepref.losses.fused_function import Fused
from finepref.losses.ops import LOG_ZERO, position_kl, upcast
from finepref.losses.output_head import Head

__all__ = ["Head", "Reference", "Values", "through", "values"]


class Values(NamedTuple):
    """What a loss reads of N positions, [N] each; `kl` and `reference` (log pi_ref) are None without a reference."""

    logps: Tensor
    kl: Tensor | None = None
    reference: Tensor | None = None


def values(
    hidden: Tensor, head: Head, targets: Tensor, reference: Reference | None = None, *, kl_from: int = 0
) -> Values:
    """The values at N positions.

    Args:
        hidden: [N, H].
        head: the policy's.
        targets: [N], the tokens y.
        reference: the reference's logits. It is called without gradients, and again if the head has a gradient.
        kl_from: the KL has a gradient at this position and those after it; N for none.
    """
    found = Fused.apply(hidden, head.weight, head.bias, targets, head[2:], reference, kl_from)
    return Values(*found) if reference else Values(found[0])


def through(
    call: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    reference: Reference | None = None,
    *,
    kl_from: int = 0,
    chunks: int = 16,
) -> Values:
    """`values` by a head that is no plain linear layer (LoRA, DoRA, quantised), by its own code and autograd.

    Args:
        call: hidden states [n, H] -> logits [n, V]. It runs again in the backward pass.
        hidden, targets, reference: as in `values`.
        kl_from: as there; positions of the same chunk may have a gradient too.
        chunks: how many; the same on every rank, even where some are empty, as each gathers sharded weights.
    """
    starts = [len(hidden) * each // chunks for each in range(chunks + 1)]

    def part(start: int, stop: int) -> tuple[Tensor, ...]:
        logits, wanted = call(hidden[start:stop]), targets[start:stop].unsqueeze(-1)
        logps = upcast(logits).log_softmax(-1).gather(-1, wanted).squeeze(-1).clamp(min=LOG_ZERO)
        if reference is None:
            return (logps,)
        with torch.no_grad():
            theirs = reference(start, stop)
            known = upcast(theirs).log_softmax(-1).gather(-1, wanted).squeeze(-1).clamp(min=LOG_ZERO)
        with torch.set_grad_enabled(stop > kl_from and torch.is_grad_enabled()):
            return logps, position_kl(logits, theirs), known

    parts = [checkpoint(part, *ends, use_reentrant=False) for ends in pairwise(starts)]
    return Values(*map(torch.cat, zip(*parts, strict=True)))
