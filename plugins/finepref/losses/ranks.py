"""Sums over the ranks of a run, which carry no gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch.distributed as dist
from torch import Tensor

_ALONE: ContextVar[bool] = ContextVar("finepref_alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """In the context nothing is summed over ranks: for values that this rank already has of all ranks.

    Such values may lie on the CPU, whose tensors NCCL cannot send.
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def sum_over_ranks(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The detached sum of `values` over the ranks of `group` (default: all); a copy if there is only this rank.

    The values must lie on the device of the rank's backend, the accelerator for NCCL. See `alone` for others.
    """
    total = values.detach().clone()
    if not _ALONE.get() and dist.is_available() and dist.is_initialized():
        dist.all_reduce(total, group=group)
    return total
