"""Columns of tokenised rows that need few bytes: numpy arrays, from which both hosts write Arrow files.

A token has 4 bytes for its id, once per response and once per prompt. Its weight has a bit if all weights of the
response are 0 or 1, nothing if they all are 1, and 4 bytes otherwise; its score has 4 bytes if there are scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from finepref.methods.pair_rows import IGNORED, SIDES

NAN = float("nan")


def plain(values: Any) -> list[Any]:
    """A column's value as a list of Python's numbers; a stream passes on arrays."""
    return values.tolist() if isinstance(values, np.ndarray) else [*values]


def ids(values: Iterable[int]) -> np.ndarray:
    """Token ids, int32."""
    return np.asarray([*values], dtype=np.int32)


def weight(values: Sequence[float]) -> dict[str, np.ndarray]:
    """Columns `marks` (bool) and `weight` (float32) of the weights of a response; both are empty if all are 1."""
    array = np.asarray(values, dtype=np.float32)
    ones = array == 1
    binary, kept = bool((ones | (array == 0)).all()), not bool(ones.all())
    marks = array.astype(bool) if kept and binary else np.zeros(0, dtype=bool)
    return {"marks": marks, "weight": array if kept and not binary else np.zeros(0, dtype=np.float32)}


def weight_of(marks: Sequence[bool], values: Sequence[float], count: int) -> list[float]:
    """The weights of `count` tokens, the reverse of `weight`."""
    if len(marks):
        return [float(mark) for mark in marks]
    return plain(values) if len(values) else [1.0] * count


def score(values: Sequence[float]) -> np.ndarray:
    """Scores, float32; empty if there are none."""
    array = np.asarray(values, dtype=np.float32)
    return array[:0] if np.isnan(array).all() else array


def joined(lists: Iterable[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Some lists of token ids as one, and their lengths; int32."""
    found = [*lists]
    return ids(each for one in found for each in one), ids(map(len, found))


def parted(flat: Any, lengths: Iterable[int]) -> list[list[int]]:
    """The lists that `joined` has joined."""
    flat = plain(flat)
    return [flat[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]


def pair(prompt: Sequence[int], sides: Mapping[str, tuple[Sequence[int], Sequence[float], Sequence[float]]]) -> dict:
    """The columns of a tokenised pair; `sides` has (ids, weight, score) of the tokens of each response."""
    row: dict[str, Any] = {"prompt": ids(prompt)}
    for side, (response, weights, scores) in sides.items():
        row[f"{side}_ids"], row[f"{side}_score"] = ids(response), score(scores)
        row |= {f"{side}_{name}": values for name, values in weight(weights).items()}
    return row


def whole_pair(row: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenised pair as `finepref.methods.pair_rows` has it, with {side}_input_ids: the reverse of `pair`."""
    prompt = plain(row["prompt"])
    made = {name: value for name, value in row.items() if name != "prompt"}
    for side in SIDES:
        if f"{side}_ids" not in made:
            continue
        response, scores = plain(made.pop(f"{side}_ids")), plain(row[f"{side}_score"])
        weights = weight_of(made.pop(f"{side}_marks"), row[f"{side}_weight"], len(response))
        made[f"{side}_input_ids"] = prompt + response
        made[f"{side}_labels"] = [IGNORED] * len(prompt) + response
        made[f"{side}_weight"] = [0.0] * len(prompt) + weights
        made[f"{side}_score"] = [NAN] * len(prompt) + (scores or [NAN] * len(response))
    return made
