"""Intervals of shares and of means."""

from __future__ import annotations


def wilson(part: float, whole: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; (0, 1) of nothing."""
    if not whole:
        return 0.0, 1.0
    z, share = 1.96, part / whole
    centre, spread = share + z * z / (2 * whole), z * (share * (1 - share) / whole + (z / whole / 2) ** 2) ** 0.5
    return max(0.0, (centre - spread) / (1 + z * z / whole)), min(1.0, (centre + spread) / (1 + z * z / whole))
