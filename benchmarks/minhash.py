"""Scaling of `finepref dedup --method minhash`, and its recall and precision against exact Jaccard similarity.

    .venvs/core/bin/python benchmarks/minhash.py [--sizes 1000,10000,100000]

The texts are random with a fixed seed: 30 to 60 of 5,000 words (weighted by rank); one in five is an earlier text with
up to a third of its words changed. The exponent is log(time ratio) / log(size ratio); comparing all pairs would have
2. The first peer is exact Jaccard similarity of all pairs of 2,000 texts: recall and precision count the pairs at or
above the threshold. The second peer is datasketch's index alone, with its candidates taken unchecked.
"""

from __future__ import annotations

import argparse
import math
import random
import time

from finepref.synth.dedup import minhash, shingles

THRESHOLD = 0.78


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Random texts with a fixed seed, a fifth of them near duplicates."""
    chance = random.Random(seed)
    vocabulary = [f"word{i}" for i in range(5000)]
    weights = [1 / (rank + 20) for rank in range(5000)]
    texts: list[list[str]] = []
    for i in range(count):
        if i % 5 == 4:
            words = list(chance.choice(texts))
            for _ in range(chance.randrange(len(words) // 3)):
                words[chance.randrange(len(words))] = chance.choice(vocabulary)
        else:
            words = chance.choices(vocabulary, weights, k=chance.randrange(30, 61))
        texts.append(words)
    return [" ".join(words) for words in texts]


def all_pairs(texts: list[str]) -> set[tuple[int, int]]:
    """Pairs whose exact Jaccard similarity reaches the threshold."""
    sets = [shingles(text, 1) for text in texts]
    return {
        (i, j)
        for j, right in enumerate(sets)
        for i, left in enumerate(sets[:j])
        if len(left & right) >= THRESHOLD * len(left | right)
    }


def index_alone(texts: list[str]) -> set[tuple[int, int]]:
    """Candidate pairs of datasketch's index with its defaults."""
    from datasketch import MinHash, MinHashLSH

    index, found = MinHashLSH(threshold=THRESHOLD, num_perm=128), set()
    for j, sketch in enumerate(MinHash.generator([each.encode() for each in shingles(text, 1)] for text in texts)):
        found |= {(i, j) for i in index.query(sketch)}
        index.insert(j, sketch)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000,100000")
    sizes = [int(size) for size in parser.parse_args().sizes.split(",")]
    minhash(make_texts(100), threshold=THRESHOLD)  # imports
    taken = []
    for size in sizes:
        texts = make_texts(size)
        started = time.process_time()
        groups = minhash(texts, threshold=THRESHOLD)
        taken.append(time.process_time() - started)
        print(f"{size:7} texts {taken[-1]:8.2f} s   {len(groups)} kept")
    for i in range(1, len(sizes)):
        exponent = math.log(taken[i] / taken[i - 1]) / math.log(sizes[i] / sizes[i - 1])
        print(f"growth from {sizes[i - 1]} to {sizes[i]}: exponent {exponent:.2f}")
    texts = make_texts(2000)
    started = time.process_time()
    wanted = all_pairs(texts)
    exact_seconds = time.process_time() - started
    started = time.process_time()
    groups = minhash(texts, threshold=THRESHOLD)
    seconds = time.process_time() - started
    # A row goes when it is like a kept one: pairs of a kept row and one left out are what can be judged.
    kept = {group[0] for group in groups}
    found = {(group[0], i) for group in groups for i in group[1:]}
    due = {j for i, j in wanted if i in kept}
    gone = {j for _, j in found}
    print(
        f"2000 texts: {len(wanted)} pairs at {THRESHOLD} by exact Jaccard, {exact_seconds:.1f} s; ours {seconds:.1f} s"
    )
    print(f"rows left out: recall {len(gone & due) / len(due):.3f}, precision {len(found & wanted) / len(found):.3f}")
    alone = index_alone(texts)
    recall, precision = len(alone & wanted) / len(wanted), len(alone & wanted) / len(alone)
    print(f"datasketch's index alone, pairs: recall {recall:.3f}, precision {precision:.3f}")


if __name__ == "__main__":
    main()
