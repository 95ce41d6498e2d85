"""Autocast as it is now, to be entered again later or switched off, on any kind of device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def dtype_of_autocast(kind: str) -> torch.dtype | None:
    """The dtype of autocast on a kind of device, such as "cuda"; None where it is off or unknown."""
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None


def autocast_to(kind: str, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to a dtype; None switches it off."""
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    found: AbstractContextManager[object] = torch.autocast(kind, dtype=dtype, enabled=dtype is not None)
    return found
