"""Intervals of shares and of means."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

RESAMPLES = 2000


def wilson(part: float, whole: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; (0, 1) of nothing."""
    if not whole:
        return 0.0, 1.0
    z, share = 1.96, part / whole
    centre, spread = share + z * z / (2 * whole), z * (share * (1 - share) / whole + (z / whole / 2) ** 2) ** 0.5
    return max(0.0, (centre - spread) / (1 + z * z / whole)), min(1.0, (centre + spread) / (1 + z * z / whole))


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
    return "higher" if low > 0 else "lower" if high < 0 else "not shown"
