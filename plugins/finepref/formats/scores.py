"""Token scores: what they belong to (tokenizer and prompt), and how to map them to another tokenizer's tokens."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from array import array
from collections.abc import Sequence


def fingerprint(tokenizer_json: str) -> str:
    """16 hex digits, equal for tokenizers that split every plain text into the same tokens.

    Depends on the normaliser, the pre-tokeniser and the model of a tokenizer.json; not on chat templates, padding,
    truncation, post-processing, or special tokens that a host adds.

    Args:
        tokenizer_json: the text of a tokenizer.json, or `tokenizer.backend_tokenizer.to_str()`.
    """
    whole = json.loads(tokenizer_json)
    model = dict(whole["model"])
    if "merges" in model:  # "a b" before tokenizers 0.20, ["a", "b"] since
        model["merges"] = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    parts = [whole.get("normalizer"), whole.get("pre_tokenizer"), model]
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def prompt_digest(ids: Sequence[int]) -> str:
    """16 hex digits that depend on the token ids of a whole prompt, before anything is cut off."""
    packed = array("q", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return hashlib.blake2b(packed.tobytes(), digest_size=8).hexdigest()


def map_scores(
    scores: Sequence[float], offsets: Sequence[tuple[int, int]], targets: Sequence[tuple[int, int]]
) -> list[float]:
    """Map the token scores of one tokenizer to another tokenizer's tokens of the same text.

    A character gets the mean score of the tokens it is part of (several only for characters of several bytes). A token
    of the other tokenizer gets the mean score of its characters. NaN means "no score": the token has no
    characters, or none of them was scored.

    Args:
        scores: [S], one per scored token.
        offsets: [S] half-open character offsets of the scored tokens.
        targets: [T] those of the other tokenizer's tokens.

    Raises:
        ValueError: the numbers of scores and offsets differ.
    """
    if len(scores) != len(offsets):
        raise ValueError(f"{len(scores)} scores for {len(offsets)} tokens")
    length = max((end for _, end in (*offsets, *targets)), default=0)
    total, count = [0.0] * length, [0] * length
    for score, (start, end) in zip(scores, offsets, strict=True):
        for i in range(start, end):
            total[i] += score
            count[i] += 1
    mapped = []
    for start, end in targets:
        known = [total[i] / count[i] for i in range(start, end) if count[i]]
        mapped.append(sum(known) / len(known) if known else math.nan)
    return mapped
