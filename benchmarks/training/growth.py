"""How the memory of a training step grows: with the tokens, the vocabulary, and the prompt's share of them.

    python benchmarks/training/growth.py [--json FILE]

Every point is two micro-batches of one record whose prompt and responses have exactly so many words of one token, on
a random Llama with two layers of 128. The responses of a record have nothing in common. The exponent b of
`memory = a * size ** b` is fitted to the logarithms by least squares; 0 is flat, 1 linear.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from claims import ARMS, Setting, model_config
from flops import Sizes
from runs import ROOT, Failed, Runs, fail

NAMES = ("dpo", "sepo 30 %", "tdpo2", "kto", "seapo_kto")
CURVES = {
    "tokens": [512, 2048, 8192],
    "vocabulary": [32_768, 131_072, 262_144],
    "prompt's share": [0.25, 0.5, 0.75],
}
SHORT = {"tokens": [128, 256], "vocabulary": [32_768, 65_536], "prompt's share": [0.25, 0.5]}
TEMPLATE_TOKENS = 10
"""About what the chat template adds to a row."""


@dataclass(frozen=True)
class Point(Setting):
    """A setting with rows of exact lengths: words of the prompt, and of each response."""

    prompt: int = 0
    response: int = 0


def point(tokens: int, vocabulary: int, share: float) -> Point:
    """Records whose rows have so many tokens, a share of them in the prompt."""
    sizes = Sizes(layers=2, hidden=128, intermediate=344, heads=2, key_value_heads=2, vocabulary=vocabulary)
    prompt = max(1, round(share * tokens))
    rows, model = f"even {tokens} {share}", f"growth-{vocabulary}"
    response = max(1, tokens - prompt - TEMPLATE_TOKENS)
    return Point(model, rows, 2, 1, tokens + 64, model_config(sizes), prompt=prompt, response=response)


def points(curve: str, size: float) -> Point:
    """The point of a curve."""
    if curve == "tokens":
        return point(int(size), 32_768, 0.25)
    return point(512, int(size), 0.25) if curve == "vocabulary" else point(1024, 32_768, size)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """b of `a * size ** b`, by least squares on the logarithms."""
    x, y = ([math.log(each) for each in column] for column in (sizes, values))
    middle, height = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True))
    return slope / sum((a - middle) ** 2 for a in x)


def main() -> None:
    """Measure the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", nargs="*", choices=[*CURVES, []], help="default: all")
    parser.add_argument(
        "--arms", nargs="+", choices=[*ARMS], default=NAMES, metavar="ARM", help=f"of {', '.join(ARMS)}"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--short", action="store_true", help="two small points of each curve, to see that all runs")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench")
    parser.add_argument("--json", type=Path, help="file of the results")
    asked = parser.parse_args()
    runs, curves = Runs(asked.work, asked.threads, asked.device), []
    for curve in asked.curves or CURVES:
        sizes = (SHORT if asked.short else CURVES)[curve]
        for name in asked.arms:
            memory = [_measured(runs, points(curve, size), name) for size in sizes]
            slope = exponent(sizes, memory)
            curves.append({"curve": curve, "arm": name, "sizes": sizes, "MiB": memory, "exponent": slope})
            print(
                f"{curve}: {name}: {', '.join(f'{each:.0f}' for each in memory)} MiB, exponent {slope:.2f}", flush=True
            )
    if asked.json:
        asked.json.write_text(json.dumps({"curves": curves}, indent=1) + "\n")


def _measured(runs: Runs, setting: Point, name: str) -> float:
    """MiB above the model."""
    try:
        runs.prepare(setting)
        return runs.measure(setting, ARMS[name])["MiB"]
    except Failed as error:
        fail(error)
        raise


if __name__ == "__main__":
    main()
