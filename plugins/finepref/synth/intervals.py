"""Intervals of shares and of means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

RESAMPLES = 2000
NOT_SHOWN = "not shown"
Z = 1.959964
"""The 97.5 % quantile of the normal distribution."""
_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's t at .975 for 1 to 30 degrees of freedom."""


def student(freedom: int) -> float:
    """Student's t at .975 for 1 degree of freedom or more."""
    return _T_975[freedom - 1] if freedom <= len(_T_975) else Z + 2.46 / freedom


def half_width(values: Sequence[float]) -> float:
    """Half of Student's 95 % interval of the mean of two values or more."""
    return student(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def wilson(part: float, whole: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; (0, 1) of nothing."""
    if not whole:
        return 0.0, 1.0
    share, over = part / whole, 1 + Z * Z / whole
    centre, spread = share + Z * Z / (2 * whole), Z * (share * (1 - share) / whole + (Z / whole / 2) ** 2) ** 0.5
    return max(0.0, (centre - spread) / over), min(1.0, (centre + spread) / over)


def bootstrap(
    values: ArrayLike, *, groups: ArrayLike | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, low, high): the mean of values [N] with its 95 % bootstrap interval (percentiles).

    Paired: give the differences of two models on the same records. NaN for the interval of a single group.

    Args:
        values: [N].
        groups: which values are drawn together, such as those of one record: a label for each. None: each alone.
        resamples: number of bootstrap samples.
        seed: of the resamples.

    Raises:
        ValueError: there are no values, or not as many groups.
    """
    import numpy as np

    x = np.asarray(values, dtype=np.float64).ravel()
    members = np.arange(len(x)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    if not len(x) or len(members) != len(x):
        raise ValueError(f"{len(members)} groups for {len(x)} values: need as many of each, and at least one")
    sizes = np.bincount(members).astype(np.float64)
    sums = np.bincount(members, weights=x)
    if len(sizes) == 1:
        return float(x.mean()), float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    means = []
    at_once = max(1, 4_000_000 // len(sizes))
    for start in range(0, resamples, at_once):
        drawn = generator.integers(len(sizes), size=(min(at_once, resamples - start), len(sizes)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(x.mean()), float(low), float(high)


def shown(low: float, high: float) -> str:
    """What an interval of a difference shows: "higher", "lower", or "not shown" if it holds 0 or is not known."""
    return "higher" if low > 0 else "lower" if high < 0 else NOT_SHOWN
