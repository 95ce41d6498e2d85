"""The autograd function of `finepref.losses.fused_head`, over all chunks of N positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finepref.losses.autocast import autocast_to, dtype_of_autocast
from finepref.losses.fused_chunks import Chunk, Reference
from finepref.losses.ops import upcast
from finepref.losses.output_head import Head


class Fused(torch.autograd.Function):  # type: ignore[misc]
    """(log pi(y), KL, log pi_ref(y)), [N] each; only the first without a reference. See `fused_head.values`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        processing: tuple[float, float | None],
        reference: Reference | None,
        kl_from: int,
    ) -> tuple[Tensor, ...]:
        """With a frozen head, the gradients of the values at `hidden` are computed here, and nothing else is kept."""
        ctx.autocast = dtype_of_autocast(hidden.device.type)
        dtype = ctx.autocast or weight.dtype
        rows, head = hidden.detach().to(dtype), Head(weight, bias, *processing).cast(dtype)
        ctx.reference, ctx.processing, ctx.dtype, ctx.of_hidden = reference, processing, dtype, hidden.dtype
        ctx.kl_from = len(rows) if reference is None else kl_from
        ctx.slopes = 2 if ctx.kl_from < len(rows) else 1
        ctx.early = ctx.needs_input_grad[0] and not any(ctx.needs_input_grad[1:3])
        result = rows.new_empty((3 if reference else 1, len(rows)), dtype=upcast(rows[:0]).dtype)
        kept = [torch.empty_like(rows[start:]) for start in (0, ctx.kl_from)] if ctx.early else []
        with autocast_to(hidden.device.type, None):
            room = head.room(len(rows), result.dtype, reference=reference is not None)
            for start, stop in head.chunks(len(rows), ctx.kl_from):
                part = _chunk(ctx, rows, head, targets, start, stop, room)
                for row, value in zip(result, part.values(), strict=True):
                    row[start:stop] = value
                if kept and start >= ctx.kl_from:
                    places = slice(start - ctx.kl_from, stop - ctx.kl_from)
                    torch.mm(part.of_kl().to(dtype), head.weight, out=kept[1][places])
                if kept:
                    torch.mm(part.of_nll().to(dtype), head.weight, out=kept[0][start:stop])
        ctx.save_for_backward(*(kept or (hidden, weight, bias, targets)))
        found: tuple[Tensor, ...] = result.unbind(0)
        ctx.mark_non_differentiable(*found[ctx.slopes :])
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what was kept, or compute the logits of each chunk again."""
        given = given[: ctx.slopes]
        if ctx.early:
            of_nll, of_kl = ctx.saved_tensors
            found = of_nll * -given[0].to(of_nll.dtype).unsqueeze(-1)
            if ctx.slopes == 2:
                found[ctx.kl_from :] += of_kl * given[1][ctx.kl_from :].to(of_kl.dtype).unsqueeze(-1)
            return found.to(ctx.of_hidden), *[None] * 6
        hidden, weight, bias, targets = ctx.saved_tensors
        rows, head = hidden.detach().to(ctx.dtype), Head(weight, bias, *ctx.processing).cast(ctx.dtype)
        of_hidden, of_weight, of_bias = (
            # sums over chunks are kept in float32: rounding each to bfloat16 would bias them
            torch.zeros_like(each, dtype=upcast(each[:0]).dtype) if wanted else None
            for each, wanted in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        )
        room = head.room(len(rows), upcast(rows[:0]).dtype, reference=ctx.reference is not None)
        for start, stop in head.chunks(len(rows), ctx.kl_from):
            part = _chunk(ctx, rows, head, targets, start, stop, room)
            _ = [*part.values()]
            of_kl = part.of_kl() if start >= ctx.kl_from else None
            slope = part.of_nll().mul_(-given[0][start:stop].unsqueeze(-1))
            if of_kl is not None:
                slope += of_kl.mul_(given[1][start:stop].unsqueeze(-1))
            if of_bias is not None:
                of_bias += slope.sum(0)
            slope = slope.to(ctx.dtype)
            if of_hidden is not None:
                of_hidden[start:stop] = slope @ head.weight
            if of_weight is not None and of_weight.dtype == ctx.dtype:
                of_weight.addmm_(slope.t(), rows[start:stop])
            elif of_weight is not None:
                of_weight += slope.t() @ rows[start:stop]
        found = zip((of_hidden, of_weight, of_bias), (hidden, weight, bias), strict=True)
        return *(None if each is None else each.to(like.dtype) for each, like in found), *[None] * 4


def _chunk(ctx: Any, rows: Tensor, head: Head, targets: Tensor, start: int, stop: int, room: Any) -> Chunk:
    """A chunk, with the reference's logits as they are under the autocast of the forward pass."""
    with autocast_to(rows.device.type, ctx.autocast):
        theirs = ctx.reference and ctx.reference(start, stop)
    return Chunk(rows[start:stop], head, targets[start:stop], theirs, room)
