"""A model as it is read, not trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """In the context, every module is in evaluation mode, so without dropout, and no gradients are computed.

    Afterwards each module has its own mode again: a host may keep some of a model that it trains in evaluation mode.
    """
    before = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in before:
            module.training = training
