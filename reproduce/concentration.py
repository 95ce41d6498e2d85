"""How few tokens carry most of the reward difference of a pair, from the scores of `finepref sepo score`.

A pair's difference is the sum of the chosen tokens' scores less that of the rejected ones. Of its tokens in descending
order of what they add to it, `share` is the smallest share that reaches 80 %. Pairs whose difference is not positive
have no such share, and are counted.
"""

from __future__ import annotations

import argparse
from itertools import accumulate
from pathlib import Path

from finepref.formats.files import write_json
from finepref.synth.intervals import bootstrap
from finepref.synth.reversegen.instructions import read_dicts

PART = 0.8


def share(chosen: list[float], rejected: list[float]) -> float | None:
    """The share of a pair's tokens, None if its difference is not positive."""
    added = sorted([*chosen, *(-score for score in rejected)], reverse=True)
    whole = sum(added)
    if whole <= 0:
        return None
    count = next(number for number, sofar in enumerate(accumulate(added), start=1) if sofar >= PART * whole)
    return count / len(added)


def main() -> None:
    """Write {share, low, high, n, without} of a file of scored pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scored", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    found = [share(row["chosen_scores"], row["rejected_scores"]) for row in read_dicts(given.scored)]
    known = [each for each in found if each is not None]
    mean, low, high = bootstrap(known)
    write_json(given.output, {"share": mean, "low": low, "high": high, "n": len(known), "without": found.count(None)})


if __name__ == "__main__":
    main()
