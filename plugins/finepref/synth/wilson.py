"""Wilson's interval of a share."""

from __future__ import annotations

import math

Z = 1.959964
"""Of 95 %."""


def interval(part: int, whole: int) -> tuple[float, float]:
    """Wilson's 95 % interval of the share part / whole; (0, 1) of nothing."""
    if not whole:
        return 0.0, 1.0
    share, over = part / whole, 1 + Z * Z / whole
    centre = share + Z * Z / (2 * whole)
    spread = Z * math.sqrt(share * (1 - share) / whole + (Z / whole / 2) ** 2)
    return max(0.0, (centre - spread) / over), min(1.0, (centre + spread) / over)
