"""What lists in a column have in common, from its Arrow arrays, without a Python object per row or number."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def lengths(parts: Iterable[pa.Array]) -> np.ndarray:
    """The number of values in each list, int64 [N]."""
    return _joined(map(_lengths, parts))


def values(parts: Iterable[pa.Array]) -> np.ndarray:
    """The values of all lists, one list after the other, int64."""
    return _joined(map(_values, parts))


def maxima(parts: Iterable[pa.Array]) -> np.ndarray:
    """The largest number in each list, int64 [N]; 0 for an empty list."""
    found = []
    for part in parts:
        each = _lengths(part)
        largest, filled = np.zeros(len(each), dtype=np.int64), each > 0
        if filled.any():
            largest[filled] = np.maximum.reduceat(_values(part), (each.cumsum() - each)[filled])
        found.append(largest)
    return _joined(found)


def sums(parts: Iterable[pa.Array]) -> np.ndarray:
    """The sum of each list, int64 [N]."""
    found = []
    for part in parts:
        totals = np.concatenate([[0], _values(part).cumsum()])
        found.append(np.diff(totals[_lengths(part).cumsum()], prepend=0))
    return _joined(found)


def _lengths(part: pa.Array) -> np.ndarray:
    return pc.list_value_length(part).to_numpy(zero_copy_only=False).astype(np.int64)


def _values(part: pa.Array) -> np.ndarray:
    return part.flatten().to_numpy(zero_copy_only=False).astype(np.int64)


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([*parts, np.zeros(0, dtype=np.int64)])
