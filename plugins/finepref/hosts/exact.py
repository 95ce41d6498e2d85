"""Tensors of a batch that no host may round: floats as the integers that have their bits, the same on both hosts.

Under DeepSpeed, the host of LLaMA-Factory casts every floating tensor of a batch to the model's type. In bfloat16 the
scores 8.53 and 8.51 are one score, and the weight 0.3 is 0.3008. No host casts integers.
"""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
_FLOATS = {integer: number for number, integer in _INTEGERS.items()}


def bits(values: Tensor) -> Tensor:
    """Float32 as int32, float64 as int64, of the same shape."""
    return values.contiguous().view(_INTEGERS[values.dtype])


def floats(values: Tensor) -> Tensor:
    """The values of which `bits` gave the bits."""
    return values.contiguous().view(_FLOATS[values.dtype])
