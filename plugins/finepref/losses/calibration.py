"""Calibration of a preference model: of the pairs it prefers with probability p, is a share p right?

Formula: over the non-empty bins b, gap_b = |accuracy_b - confidence_b|;
         ECE = sum_b (count_b / N) gap_b,  ACE = mean_b gap_b,  MCE = max_b gap_b
Where:   B bins of equal width, [i/B, (i+1)/B), the last one closed; confidence_b is the mean probability in bin b,
         accuracy_b the mean label.
Source:  APO (arXiv 2311.08045) reports ECE with 10 bins; p is sigmoid(r_i - r_j), the label is 1 if i is preferred.
Not covered: bins of equal mass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Bins(NamedTuple):
    """A reliability diagram, all float64 [bins]; confidence and accuracy of an empty bin are 0."""

    count: Tensor
    confidence: Tensor
    accuracy: Tensor


class CalibrationError(NamedTuple):
    """ECE, ACE and MCE, in [0, 1]."""

    expected: float
    average: float
    maximum: float


def reliability(probabilities: Tensor, labels: Tensor, *, bins: int = 10) -> Bins:
    """Sort the records [N] into bins of equal width.

    Raises:
        ValueError: no records, different lengths, or a probability or label outside [0, 1].
    """
    p, y = probabilities.double().flatten(), labels.double().flatten()
    if p.shape != y.shape or not len(p):
        raise ValueError(f"{len(p)} probabilities and {len(y)} labels: need as many of each, and at least one")
    if not (((p >= 0) & (p <= 1)).all() and ((y >= 0) & (y <= 1)).all()):
        raise ValueError("a probability or a label is outside [0, 1]")
    which = (p * bins).long().clamp(max=bins - 1)  # [N]
    count = torch.bincount(which, minlength=bins).double()
    filled = count.clamp(min=1)
    confidence = torch.bincount(which, weights=p, minlength=bins) / filled
    accuracy = torch.bincount(which, weights=y, minlength=bins) / filled
    return Bins(count, confidence, accuracy)


def calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = 10) -> CalibrationError:
    """ECE, ACE and MCE of the records [N]; raises like `reliability`."""
    count, confidence, accuracy = reliability(probabilities, labels, bins=bins)
    gap = (accuracy - confidence).abs()[count > 0]
    share = count[count > 0] / count.sum()
    return CalibrationError(float((share * gap).sum()), float(gap.mean()), float(gap.max()))
