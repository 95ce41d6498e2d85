"""Log-probabilities and KL at the tokens that a loss reads, the same view on both hosts.

N needed positions of this process, V vocabulary, M responses (of a batch of pairs M = 2B), L tokens, T = L - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from finepref.losses import chunked, ops


class Logits(Protocol):
    """What a forward pass leaves for the loss."""

    def logps(self) -> Tensor:
        """log pi of the needed tokens, 0 elsewhere: [M, T] in label space."""

    def kl(self, reference: Logits) -> Tensor:
        """KL(pi_ref || pi_theta) where the needed tokens are predicted, 0 elsewhere: [M, T]."""

    def drop(self) -> None:
        """Let go of the logits themselves; results that need a gradient keep what they need."""


class NeededLogits:
    """Logits of the needed positions only, see `finepref.losses.chunked`.

    Args:
        logits: [N, V].
        targets: [N], the token that each position predicts.
        place: values [N] of the needed positions -> [M, T].
    """

    def __init__(self, logits: Tensor, targets: Tensor, place: Callable[[Tensor], Tensor]) -> None:
        self.logits, self.targets, self.place = logits, targets, place

    def logps(self) -> Tensor:
        return self.place(chunked.logps_at(self.logits, self.targets))

    def kl(self, reference: NeededLogits) -> Tensor:
        return self.place(chunked.kl_at(self.logits, reference.logits))

    def drop(self) -> None:
        self.logits = None


class AllLogits:
    """The plain path, for comparison: logits of every position, nothing recomputed.

    Args:
        logits: [M, L, V].
        tokens: [M, L], the token ids.
        needed: bool [M, T], in label space.
    """

    def __init__(self, logits: Tensor, tokens: Tensor, needed: Tensor) -> None:
        self.logits, self.tokens, self.needed = logits, tokens, needed

    def logps(self) -> Tensor:
        labels = torch.where(self.needed, self.tokens[:, 1:], -100)
        return ops.token_logps(self.logits, torch.cat((self.tokens[:, :1], labels), 1))

    def kl(self, reference: AllLogits) -> Tensor:
        return torch.where(self.needed, ops.position_kl(self.logits[:, :-1], reference.logits[:, :-1]), 0.0)

    def drop(self) -> None:
        self.logits = None
