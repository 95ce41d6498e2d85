"""How few tokens carry most of the reward difference of a pair, from the scores of `finepref sepo score`.

A pair's difference is the sum of the chosen tokens' scores less that of the rejected ones. Of its tokens in descending
order of what they add to it, `share` is the smallest share that reaches 80 %; the curve has what each twentieth of the
tokens adds up to. Tokens that take away from the difference come last, so that a part may be above 1. Pairs whose
difference is not positive have no such share, and are counted.
"""

from __future__ import annotations

import argparse
from itertools import accumulate
from pathlib import Path

from finepref.formats.files import write_json
from finepref.synth.intervals import bootstrap
from finepref.synth.reversegen.instructions import read_dicts

PART = 0.8
SHARES = [number / 20 for number in range(21)]


def parts(chosen: list[float], rejected: list[float]) -> list[float] | None:
    """The part of a pair's difference that its first 1, 2, ... tokens add up to, None if it is not positive."""
    sums = [*accumulate(sorted([*chosen, *(-score for score in rejected)], reverse=True))]
    return [each / sums[-1] for each in sums] if sums[-1] > 0 else None


def share(found: list[float]) -> float:
    """The smallest share of the tokens that adds up to 80 %."""
    return next(number for number, part in enumerate(found, start=1) if part >= PART) / len(found)


def part_of(found: list[float], of_tokens: float) -> float:
    """What a share of the tokens, rounded down to whole ones, adds up to."""
    return [0.0, *found][int(of_tokens * len(found) + 1e-9)]


def main() -> None:
    """Write {share, low, high, n, without, curve} of a file of scored pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scored", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    found = [parts(row["chosen_scores"], row["rejected_scores"]) for row in read_dicts(given.scored)]
    known = [each for each in found if each is not None]
    mean, low, high = bootstrap([share(each) for each in known])
    points = [[at, *bootstrap([part_of(each, at) for each in known])] for at in SHARES]
    curve = {
        "x": "share of a pair's tokens, those that add most first",
        "y": "part of its difference",
        "points": points,
    }
    result = {"share": mean, "low": low, "high": high, "n": len(known), "without": found.count(None)}
    write_json(given.output, result | {"curve": curve | {"points": points}})


if __name__ == "__main__":
    main()
