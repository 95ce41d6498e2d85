"""Apply the LM head only where it is needed, and recompute its float32 intermediates in the backward pass.

`head_at` makes a model's own forward pass apply its output head to N positions instead of all B (T+1). The head is not
called directly, so the hooks of LoRA, ZeRO-3 and FSDP still run. `logps_at` and `kl_at` then process the [N, V] logits
in chunks; the backward pass recomputes a chunk's float32 [chunk, V] instead of storing it.

`ops.token_logps` and `ops.position_kl` are the same over all logits; tests compare the two. The functions of
`positions` are here by name too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.utils.checkpoint import checkpoint

from finepref.losses.hooks import first_input
from finepref.losses.ops import LOG_ZERO, position_kl, upcast
from finepref.losses.positions import marked_positions, needed_positions, place, place_at

__all__ = [
    "head_at",
    "kept",
    "kl_at",
    "logps_at",
    "marked_positions",
    "needed_positions",
    "place",
    "place_at",
    "whole",
]

CHUNK = 1024  # positions: at V = 128k one float32 chunk takes 0.5 GiB


def head_at(head: nn.Module, positions: Tensor) -> AbstractContextManager[None]:
    """In the context, `head` (`model.get_output_embeddings()`) sees [1, N, H], and the model's logits are [1, N, V].

    Args:
        head: applied once per forward to hidden states [B, T+1, H] of any leading shape.
        positions: flat indices [N] into B (T+1), at least one.
    """
    return first_input(head, kept, positions)


def kept(hidden: Tensor, positions: Tensor) -> Tensor:
    """Hidden states [..., H] at flat positions [N]: [1, N, H]; with tensor parallelism as a DTensor again."""
    if isinstance(hidden, DTensor):
        everywhere = [Replicate()] * hidden.device_mesh.ndim
        whole = hidden.redistribute(placements=everywhere).to_local()
        return DTensor.from_local(kept(whole, positions), hidden.device_mesh, everywhere, run_check=False)
    return hidden.flatten(0, -2)[positions].unsqueeze(0)


def whole(values: Tensor) -> Tensor:
    """The values as a plain tensor: those of a head that tensor parallelism has split are gathered."""
    return values.full_tensor() if isinstance(values, DTensor) else values


def logps_at(logits: Tensor, targets: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """log pi(y) at each position: logits [N, V], targets [N] -> [N]; `ops.token_logps` without the shift."""

    def logps(part: Tensor, wanted: Tensor) -> Tensor:
        return upcast(part).log_softmax(-1).gather(-1, wanted.unsqueeze(-1)).squeeze(-1).clamp(min=LOG_ZERO)

    return _recomputed(logps, logits, targets, chunk=chunk)


def kl_at(policy_logits: Tensor, reference_logits: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """`ops.position_kl`, KL(pi_ref || pi_theta), in chunks: [N, V], [N, V] -> [N]."""
    return _recomputed(position_kl, policy_logits, reference_logits, chunk=chunk)


def _recomputed(function: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, *, chunk: int) -> Tensor:
    """`function` over chunks of rows of two tensors [N, V]; its intermediates are recomputed in the backward pass."""
    if len(a) != len(b):
        raise ValueError(
            f"{len(a)} positions have logits, {len(b)} were asked for: the output head was not cut. "
            "`finepref_full_logits` computes all logits instead"
        )
    parts = [
        checkpoint(function, *rows, use_reentrant=False, preserve_rng_state=False)
        for rows in zip(a.split(chunk), b.split(chunk), strict=True)
    ]
    return torch.cat(parts)
