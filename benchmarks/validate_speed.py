"""Records validated per second: `finepref.formats.check.check_file` against plain `json.loads` of the same file.

    python benchmarks/validate_speed.py [--rows 100000] [--runs 5]

Prints one line per format: records/s and MB/s in one process, how many times slower that is than decoding the JSON
alone, and records/s with a process per core. The three alternate; the best run of each counts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from finepref.formats.check import check_file
from finepref.formats.jsonl import write_jsonl
from finepref.formats.records import FORMATS

SENTENCE = "the sum of two even numbers is even because each has a factor two so 4 + 6 = 10 and 10 = 2 * 5"
WORDS = SENTENCE.split()


def rows(formatting: str, count: int, seed: int = 0) -> Iterator[dict[str, object]]:
    """`count` good rows of about 600 characters with ids; every tenth has texts that are not ASCII."""
    draw = random.Random(seed)

    def text(words: int) -> str:
        return ("ça, 数: " if i % 10 == 0 else "") + " ".join(draw.choices(WORDS, k=words))

    for i in range(count):
        row: dict[str, object] = {"id": f"row-{i}", "prompt": text(20)}
        match formatting:
            case "pair":
                row |= {"chosen": text(60), "rejected": text(60), "margin": 0.5}
            case "span_pair":
                row |= {
                    "chosen": text(60),
                    "rejected": text(60),
                    "rejected_spans": [{"start": 3, "end": 9}, {"start": 12, "end": 20}],
                }
            case "scored_pair":
                chosen, rejected = text(30), text(30)
                scores = {"chosen_scores": [0.25] * 40, "rejected_scores": [-0.5] * 40}
                row |= {"chosen": chosen, "rejected": rejected, "tokenizer": "5d1f6d2c9b0e4a37", **scores}
            case "ranked":
                row |= {"responses": [text(30) for _ in range(4)], "scores": [3, 2, 1.5, -1]}
            case "feedback":
                row |= {"response": text(120), "label": i % 2 == 0}
            case "negatives":
                negatives = {name: text(30) for name in ("correctness", "logic", "hallucination")}
                row |= {"chosen": text(30), "negatives": negatives, "spans": {"logic": [{"start": 3, "end": 9}]}}
        yield row


def best(functions: Sequence[Callable[[], object]], runs: int) -> list[float]:
    """The shortest time of each function in seconds: what the machine can do when nothing else runs on it."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(runs):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in times]


def decode_only(path: Path) -> None:
    """The peer: `json.loads` of every line, without any check."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5, help="the best one counts")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        for formatting in FORMATS:
            path = Path(folder) / f"{formatting}.jsonl"
            write_jsonl(path, rows(formatting, arguments.rows))
            assert check_file(path, formatting).total_problems == 0
            one, all_cores, plain = best(
                [
                    partial(check_file, path, formatting),
                    partial(check_file, path, formatting, jobs=cores),
                    partial(decode_only, path),
                ],
                arguments.runs,
            )
            megabytes = path.stat().st_size / 1e6
            path.unlink()
            print(
                f"{formatting:11} 1 process {arguments.rows / one:>8,.0f} records/s {megabytes / one:5.1f} MB/s "
                f"{one / plain:5.2f} x json.loads, {cores} processes {arguments.rows / all_cores:>8,.0f} records/s"
            )


if __name__ == "__main__":
    main()
