"""Negatives with one more: a model's own answer to the question, as the type `original`, which has no known error."""

from __future__ import annotations

import argparse
from pathlib import Path

from finepref.formats.jsonl import write_jsonl
from finepref.synth.reversegen.instructions import read_dicts


def main() -> None:
    """Join the answers to the negatives by id."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("negatives", type=Path)
    parser.add_argument("answers", type=Path, help="of `finepref reversegen answer`")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    negatives, answers = (read_dicts(file) for file in (given.negatives, given.answers))
    found = {row["id"]: row["response"] for row in answers}
    if missing := [row["id"] for row in negatives if row["id"] not in found]:
        raise SystemExit(f"no answer to {', '.join(missing)}")
    for row in negatives:
        row["negatives"]["original"] = found[row["id"]]
    print(f"{given.output}: {write_jsonl(given.output, negatives)} records")


if __name__ == "__main__":
    main()
