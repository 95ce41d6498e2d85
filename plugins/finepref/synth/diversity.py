"""Self-BLEU: how much the texts of a set repeat each other, 1 when each is found in the others, 0 when nothing is.

The BLEU of each text against all other texts as its references, on the mean over texts, for n-grams up to 2, 3, 4 and
5; `mean` is the mean of the four, as ReverseGen (arXiv 2410.16736) reports it. For the clipped counts only the
greatest and second greatest count of each n-gram over all texts matter, so the exact figure takes time linear in the
text, where BLEU library calls take quadratic time. An order without a match counts epsilon = 0.1 (NLTK's method 1).
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
        sample: take so many texts by chance instead of all; sets of different size compare only at one sample size.
        seed: of the sample.

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
    """Of each text, the share of its n-grams that another text has as often; EPSILON over their number for none."""
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
        # Where this text has the greatest count, the greatest of the others is the second.
        matched = sum(min(c, second[g] if c == first[g] else first[g]) for g, c in count.items())
        total = max(1, count.total())
        found.append(matched / total if matched or n == 1 else EPSILON / total)
    return found


def _closest(length: int, lengths: Sequence[int]) -> int:
    """The closest length of another text, the shorter of two; `lengths` are sorted and hold `length` itself."""
    place = bisect_left(lengths, length)
    others = [lengths[i] for i in (place - 1, place + 1) if 0 <= i < len(lengths)]
    return min(others, key=lambda other: (abs(other - length), other))


def _brevity(length: int, reference: int) -> float:
    return 1.0 if length > reference else math.exp(1 - reference / length) if length else 0.0
