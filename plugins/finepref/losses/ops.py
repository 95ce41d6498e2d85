"""Shared by the losses: the one function that shifts, KL per position, weighted sums, the one function that averages.

B records, T label positions, V vocabulary, R responses. Label space everywhere: t means `labels[:, 1:][t]`, the token
that `logits[:, :-1][t]` predicts. `weight` is a float, 0 where not counted; `mask` is bool. Results are float32
(float64 of float64).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from finepref.losses.ranks import sum_over_ranks

# Stands for log 0, so that logits of -inf (a padded vocabulary) give finite numbers: 0 log 0 = 0, impossible tokens
# have log-ratio 0. What is truly infinite (the policy excludes a label, or a token the reference allows) is huge.
LOG_ZERO = -1e30


class TokenLogps(NamedTuple):
    """Log-probabilities of the label tokens and their weights, both [B, T]."""

    logps: Tensor
    weight: Tensor


class LossOut(NamedTuple):
    """One value per record, all [B]: `loss` carries the gradient, `valid` is bool, the rewards are detached."""

    loss: Tensor
    valid: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


def upcast(values: Tensor) -> Tensor:
    """`values` in float32, or in float64 where they are that already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def token_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """log pi(y_t | x, y_<t): logits [B, T+1, V], labels [B, T+1] with -100 where ignored -> [B, T] in label space.

    The only function that shifts. Ignored positions are exactly 0; their logits, even NaN, get exactly no gradient.
    Raises ValueError where the shapes do not fit.
    """
    if logits.dim() != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(f"need logits [B, T+1, V] and labels [B, T+1], got {[*logits.shape]} and {[*labels.shape]}")
    targets = labels[:, 1:]  # [B, T]
    counted = targets != -100  # [B, T]
    log_pi = upcast(logits[:, :-1][counted]).log_softmax(-1)  # [N, V], only the N counted positions
    picked = log_pi.gather(-1, targets[counted].unsqueeze(-1)).squeeze(-1).clamp(min=LOG_ZERO)  # [N]
    return torch.zeros_like(targets, dtype=picked.dtype).masked_scatter(counted, picked)


def position_kl(policy_logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(pi_ref || pi_theta) over the vocabulary: [..., V], [..., V] -> [...]. Does not shift: pass `logits[:, :-1]`.

    Its gradient at the policy's logits is pi_theta - pi_ref; the reference gets none.
    """
    log_pi = upcast(policy_logits).log_softmax(-1).clamp(min=LOG_ZERO)
    log_ref = upcast(reference_logits.detach()).log_softmax(-1).clamp(min=LOG_ZERO)
    return (log_ref.exp() * (log_ref - log_pi)).sum(-1)


def weighted_sum(values: Tensor, weight: Tensor) -> Tensor:
    """sum_t weight_t values_t: [B, T], [B, T] -> [B]. Values of weight 0, even NaN, count 0 and get no gradient."""
    if values.shape != weight.shape:
        raise ValueError(f"values {[*values.shape]} and weight {[*weight.shape]} differ in shape")
    return (torch.where(weight != 0, values, 0.0) * upcast(weight)).sum(-1)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """`weighted_sum` over the sum of the weights' sizes: [B, T], [B, T] -> [B]; 0 for a row without weight."""
    total = upcast(weight).abs().sum(-1)
    return weighted_sum(values, weight) / torch.where(total > 0, total, 1.0)


def reduce(out: LossOut, group: dist.ProcessGroup | None = None, *, count: Tensor | float | None = None) -> Tensor:
    """Sum of the valid losses of all ranks / their number: a scalar, the same on every rank, 0 where nothing is valid.

    Convention: the data-parallel wrapper AVERAGES gradients over W ranks (DDP, FSDP, DeepSpeed). A rank's gradient is
    W * d(sum of its own losses) / global count, so that the average is the gradient of the global mean. In gradient
    accumulation, pass the valid records of the whole step on all ranks as `count` and add up the micro-batches.
    """
    mine = torch.where(out.valid, out.loss, 0.0).sum()
    totals = torch.stack([mine, out.valid.sum().to(mine), torch.ones_like(mine)])
    everyone, valid, ranks = sum_over_ranks(totals, group)
    denominator = valid.clamp(min=1) if count is None else count
    mine = mine * ranks / denominator
    return mine + (everyone / denominator - mine).detach()
