"""Self-BLEU: how much the texts of a set repeat each other, from 0 (no n-gram in common) to 1 (all equal).

The mean over texts of the BLEU of each text with all other texts as references, for n-grams up to 2, 3, 4 and 5;
`mean` is the mean of the four, as in ReverseGen (arXiv 2410.16736). The clipped counts need only the greatest and the
second greatest count of each n-gram over all texts, so the exact figure takes linear time, while calls of a BLEU
library would take quadratic time. An order without a match counts epsilon = 0.1 (method 1 of NLTK).
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from finepref.synth.dedup import words

ORDERS = (2, 3, 4, 5)
EPSILON = 0.1


def self_bleu(texts: Sequence[str], *, sample: int = 0, seed: int = 0) -> dict[str, float]:
    """Self-BLEU for each order, and their mean.

    Args:
        texts: two or more.
        sample: size of a random sample to take instead of all texts; to compare sets of different sizes, use the same
            sample size.
        seed: random seed of the sample.

    Raises:
        ValueError: fewer than two texts.
    """
    if sample and sample < len(texts):
        texts = random.Random(seed).sample(list(texts), sample)
    if len(texts) < 2:
        raise ValueError("self-BLEU needs two texts or more")
    tokens = [words(text) for text in texts]
    lengths = sorted(map(len, tokens))
    penalties = [_brevity(len(each), _closest(len(each), lengths)) for each in tokens]
    precisions = [*zip(*(_precisions(tokens, n) for n in range(1, max(ORDERS) + 1)), strict=True)]  # per text and n
    scores = {}
    for order in ORDERS:
        values = [
            penalty * math.exp(sum(map(math.log, each[:order])) / order) if each[0] else 0.0
            for penalty, each in zip(penalties, precisions, strict=True)
        ]
        scores[f"bleu_{order}"] = sum(values) / len(values)
    return scores | {"mean": sum(scores.values()) / len(scores)}


def _precisions(tokens: Sequence[Sequence[str]], n: int) -> list[float]:
    """For each text, the share of its n-grams that another text has as often; EPSILON / their number if none has."""
    counts = [Counter(zip(*(each[i:] for i in range(n)), strict=False)) for each in tokens]
    first: dict[tuple[str, ...], int] = {}
    second: dict[tuple[str, ...], int] = {}
    for count in counts:
        for gram, number in count.items():
            if number > first.get(gram, 0):
                first[gram], second[gram] = number, first.get(gram, 0)
            elif number > second.get(gram, 0):
                second[gram] = number
    found = []
    for count in counts:
        # If this text has the greatest count, the greatest of the others is the second.
        matched = sum(min(c, second[g] if c == first[g] else first[g]) for g, c in count.items())
        total = max(1, count.total())
        found.append(matched / total if matched or n == 1 else EPSILON / total)
    return found


def _closest(length: int, lengths: Sequence[int]) -> int:
    """The closest length of another text, the shorter one on a tie; `lengths` are sorted and include `length`."""
    place = bisect_left(lengths, length)
    others = [lengths[i] for i in (place - 1, place + 1) if 0 <= i < len(lengths)]
    return min(others, key=lambda other: (abs(other - length), other))


def _brevity(length: int, reference: int) -> float:
    return 1.0 if length > reference else math.exp(1 - reference / length) if length else 0.0
