"""Log-probabilities and KL at the tokens that a loss reads, the same on both hosts.

N needed positions on this process, V vocabulary size, M responses (2B for B pairs), L tokens, T = L - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from finepref.losses import chunked, ops


class Logits(Protocol):
    """The logits of a forward pass, as the loss reads them."""

    def logps(self) -> Tensor:
        """log pi of the needed tokens, 0 elsewhere: [M, T], in label space."""

    def kl(self, reference: Logits) -> Tensor:
        """KL(pi_ref || pi_theta) where the needed tokens are predicted, 0 elsewhere: [M, T]."""

    def drop(self) -> None:
        """Free the logits. Results with a gradient keep what their backward pass needs."""


class NeededLogits:
    """Logits of the needed positions only, see `finepref.losses.chunked`.

    Args:
        logits: [N, V].
        targets: [N], the token that each position predicts.
        place: puts values [N] of the needed positions into [M, T].
    """

    def __init__(self, logits: Tensor, targets: Tensor, place: Callable[[Tensor], Tensor]) -> None:
        self.logits, self.targets, self.place = chunked.whole(logits), targets, place

    def logps(self) -> Tensor:
        return self.place(chunked.logps_at(self.logits, self.targets))

    def kl(self, reference: NeededLogits) -> Tensor:
        return self.place(chunked.kl_at(self.logits, reference.logits))

    def drop(self) -> None:
        self.logits = None


class AllLogits:
    """Logits of every position, without recomputation; for comparison only.

    Args:
        logits: [M, L, V].
        tokens: [M, L], the token ids.
        needed: bool [M, T], in label space.
    """

    def __init__(self, logits: Tensor, tokens: Tensor, needed: Tensor) -> None:
        self.logits, self.tokens, self.needed = chunked.whole(logits), tokens, needed

    def logps(self) -> Tensor:
        labels = torch.where(self.needed, self.tokens[:, 1:], -100)
        return ops.token_logps(self.logits, torch.cat((self.tokens[:, :1], labels), 1))

    def kl(self, reference: AllLogits) -> Tensor:
        return torch.where(self.needed, ops.position_kl(self.logits[:, :-1], reference.logits[:, :-1]), 0.0)

    def drop(self) -> None:
        self.logits = None
