"""What the token scores of a file look like: quantiles, a histogram, the share near 0, and the top tokens by mean."""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finepref.formats.problems import SHOWN

NEAR = 0.01
"""Scores within this distance of 0 count as near 0."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BARS, BARS_OVER = 24, (0.01, 0.99)
"""A histogram has this many bars of one width between these quantiles; what is beyond is in the outer bars."""
TOP = 5
OFTEN = 5
"""A token is among the top ones only if it is scored this often, or if the file has few tokens."""


class Summary:
    """Collects the scores of responses in constant memory.

    Quantiles are exact up to `room` scores; beyond that they are those of every second, fourth, ... score.

    Args:
        room: scores that are kept.
    """

    def __init__(self, room: int = 2**20) -> None:
        self.room, self.stride = room, 1
        self.kept = array("f")
        self.count = self.near = 0
        self.by_token: dict[str, dict[int, list[float]]] = {}

    def add(self, side: str, tokens: Sequence[int], scores: Sequence[float]) -> None:
        """Add the scores of a response; `side` is chosen or rejected."""
        known = self.by_token.setdefault(side, defaultdict(lambda: [0.0, 0]))
        for token, score in zip(tokens, scores, strict=True):
            if self.count % self.stride == 0:
                self.kept.append(score)
                if len(self.kept) > self.room:
                    self.kept, self.stride = self.kept[::2], 2 * self.stride
            self.count += 1
            self.near += abs(score) < NEAR
            total = known[token]
            total[0] += score
            total[1] += 1

    def quantiles(self) -> list[float]:
        """The scores at `QUANTILES`, each that of the nearest rank; empty without scores."""
        ordered = sorted(self.kept)
        return [ordered[round(q * (len(ordered) - 1))] for q in QUANTILES] if ordered else []

    def histogram(self) -> dict[str, list[float]]:
        """The `edges` of the bars, one more than bars, and the `shares` of the scores in them; {} without scores."""
        if not self.kept:
            return {}
        ordered = sorted(self.kept)
        low, high = (ordered[round(q * (len(ordered) - 1))] for q in BARS_OVER)
        if low == high:
            return {"edges": [low, high], "shares": [1.0]}
        width, counts = (high - low) / BARS, [0] * BARS
        for score in ordered:
            counts[min(BARS - 1, max(0, int((score - low) / width)))] += 1
        edges = [*(low + i * width for i in range(BARS)), high]
        return {"edges": edges, "shares": [count / len(ordered) for count in counts]}

    def top(self, side: str) -> list[tuple[int, float, int]]:
        """(token, mean score, how often) of the highest means of chosen, or the lowest of rejected."""
        known = self.by_token.get(side, {})
        often = OFTEN if len(known) > SHOWN else 1
        means = [(token, total / count, int(count)) for token, (total, count) in known.items() if count >= often]
        sign = -1 if side == "chosen" else 1
        return sorted(means, key=lambda each: (sign * each[1], each[0]))[:TOP]

    def content(self, text_of: Callable[[int], str]) -> dict[str, object]:
        """JSON-ready, for a report; `text_of` gives a token's text."""
        return {
            "tokens": self.count,
            "quantiles": {f"{q:g}": round(value, 6) for q, value in zip(QUANTILES, self.quantiles(), strict=False)},
            "near_0": self.near,
            "histogram": {name: [round(value, 6) for value in each] for name, each in self.histogram().items()},
            "top_tokens": {
                side: [
                    {"token": text_of(token), "mean": round(mean, 6), "count": count}
                    for token, mean, count in self.top(side)
                ]
                for side in self.by_token
            },
        }


def described(content: Mapping[str, Any]) -> list[str]:
    """Lines for the terminal about scores: quantiles, a histogram, and the top tokens of both responses."""
    quantiles = ", ".join(f"{float(q):.0%} {value:.3g}" for q, value in content["quantiles"].items())
    near = content["near_0"] / content["tokens"]
    lines = [f"scores of {content['tokens']} tokens: quantiles {quantiles}; {near:.1%} within {NEAR:g} of 0"]
    if bars := content["histogram"]:
        most = max(bars["shares"])
        drawn = "".join(" ▁▂▃▄▅▆▇█"[math.ceil(8 * share / most - 1e-3)] for share in bars["shares"])
        lines.append(f"histogram from {bars['edges'][0]:.3g} to {bars['edges'][-1]:.3g}: |{drawn}|")
    for side, found in content["top_tokens"].items():
        told = ", ".join(f"{each['token']!r} {each['mean']:.3g} ({each['count']} times)" for each in found)
        lines.append(f"{'highest' if side == 'chosen' else 'lowest'} means in {side}: {told}")
    return lines
