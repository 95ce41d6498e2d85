"""Inputs and outputs of a method's functions, the same on every host. B records, T label positions, R responses.

Everything is in label space: position t is the token `input_ids[:, 1:][t]`, which the logits before it predict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from finepref.losses.ops import LossOut


class Weights(NamedTuple):
    """Result of `weigh`: a weight per token of prompt (0 there) and response, for both responses.

    `side` is 0 if the loss reads both responses, 1 if it reads only the chosen one, -1 if only the rejected one.
    `margin` is how far the loss wants the chosen response ahead, in the unit of its logit.
    """

    chosen: list[float]
    rejected: list[float]
    side: int = 0
    margin: float = 0.0


class Response(NamedTuple):
    """One response of each pair. All tensors are [B, T], with 0 where the weight is 0."""

    logps: Tensor  # log pi_theta(y_t)
    weight: Tensor
    reference: Tensor | None = None  # log pi_ref(y_t), if the stage has a reference model
    kl: Tensor | None = None  # KL(pi_ref || pi_theta) over the vocabulary, if the stage has `kl`

    @property
    def trained(self) -> Tensor:
        """Whether any token of the response has a weight: bool [B]."""
        return (self.weight != 0).any(-1)


class Pairs(NamedTuple):
    """A batch of shape "pair"; side [B] and margin [B] as in `Weights`."""

    chosen: Response
    rejected: Response
    side: Tensor
    margin: Tensor | float = 0.0

    @property
    def valid(self) -> Tensor:
        """Whether both responses have a token with a weight: bool [B]."""
        return self.chosen.trained & self.rejected.trained


class Unpaired(NamedTuple):
    """A batch of shape "unpaired": B responses, each with a mismatched response of another prompt for KTO's KL.

    A response is the good one of a record, the negative that was drawn of it, or a single row with its label. How
    many there are of both kinds in the training set is `UnpairedOptions.responses`.
    """

    log_ratio: Tensor  # [B] log pi_theta - log pi_ref, summed over the response
    kl_log_ratio: Tensor  # [B] the same of the mismatched response, without a gradient
    desirable: Tensor  # bool [B]


class Ranked(NamedTuple):
    """A batch of shape "ranked": lists of up to R scored responses."""

    rewards: Tensor  # [B, R], 0 where there is no response
    scores: Tensor  # [B, R], higher is better
    present: Tensor  # bool [B, R]
    is_apo: Tensor  # bool [B], records of kind "apo": a golden answer above samples
    counts: tuple[float, float] | None = None  # human and apo records of the whole optimizer step, on all ranks


class Lists(NamedTuple):
    """A batch of shape "lists": log-probabilities of up to R scored responses to each prompt."""

    logps: Tensor  # [B, R] log pi_theta, summed over the response; 0 where there is no response
    reference: Tensor | None  # the same of the reference, if the stage has one
    scores: Tensor  # [B, R], higher is better
    present: Tensor  # bool [B, R]

    @classmethod
    def of_tokens(
        cls, logps: Tensor, reference: Tensor | None, places: Tensor, scores: Tensor, present: Tensor
    ) -> Lists:
        """The batch of N responses in any order.

        Args:
            logps, reference: [N, T], of each token, 0 where it is none of the response.
            places: int64 [N], where each response stands in the flat [B, R].
            scores, present: as above.
        """
        from finepref.losses.positions import place_at

        sums = (None if part is None else place_at(part.sum(-1), places, present) for part in (logps, reference))
        return cls(*sums, scores, present)


def pair_loss(loss: Tensor, *, valid: Tensor, rewards: tuple[Tensor, Tensor]) -> LossOut:
    """Make the result of `losses` for pairs: loss 0, without gradient, for pairs that are not valid.

    Args:
        loss: [B].
        valid: bool [B], usually `Pairs.valid`.
        rewards: rewards of the chosen and of the rejected responses, [B] each, which are logged.
    """
    from torch import where

    from finepref.losses.ops import LossOut

    return LossOut(where(valid, loss, 0.0), valid, *(reward.detach() for reward in rewards))
