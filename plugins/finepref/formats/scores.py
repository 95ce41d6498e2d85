"""Token scores: which tokenizer they belong to, and what they are for the tokens of another one."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence


def fingerprint(tokenizer_json: str) -> str:
    """16 hex digits that are equal where two tokenizers cut every plain text into the same tokens.

    Depends on the normaliser, the pre-tokeniser and the model of a tokenizer.json; not on chat templates, padding,
    truncation, what is put around a text, or special tokens that a host adds.

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


def map_scores(
    scores: Sequence[float], offsets: Sequence[tuple[int, int]], targets: Sequence[tuple[int, int]]
) -> list[float]:
    """Scores of the tokens of one tokenizer as scores of another one's tokens of the same text.

    Every character has the mean score of the tokens that it is part of (one, but for characters of several bytes),
    and a token of the other tokenizer has the mean score of its characters. NaN stands for "no score": a token
    without characters, or of characters that nothing was scored for.

    Args:
        scores: [S], one per scored token.
        offsets: [S] half-open character offsets of the scored tokens.
        targets: [T] those of the other tokenizer's tokens.

    Raises:
        ValueError: scores and offsets differ in number.
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
