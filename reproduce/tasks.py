"""Rows for the experiments, made by rule from a seed: tasks that a model of 135 million parameters can move.

    python reproduce/tasks.py reviews --part sft --n 320 --output rows.jsonl       {id, instruction, output}
    python reproduce/tasks.py reviews --part pairs --n 192 --output pairs.jsonl    {id, prompt, chosen, rejected}
    python reproduce/tasks.py golden --part questions --n 64 --output rows.jsonl   {query_id, query, golden}
    python reproduce/tasks.py sums --part sft --n 256 --output rows.jsonl          {id, instruction, output}
    python reproduce/tasks.py sums --part questions --n 96 --output sums.jsonl     {id, prompt, chosen, answer}

`reviews` is the sentiment task of the DPO and TDPO papers in small: a review of four aspects, each with a good or a
bad word. A review is in a good or a bad mood, and nine of ten words agree with it. Of two reviews of a pair, drawn
independently, the one with more good words is chosen. So both are samples of what the model after SFT writes, as in
the papers, and a rule in place of a classifier ranks them. --flipped ranks some of them wrongly, as people do.

`golden` has answers of another author to such questions: always in a good mood, and with a manner of their own, as
those of people or of a larger model have.

`sums` are questions in words with two steps, and worked answers, in which `finepref seapo inject --engine rules` can
put an error of each type.

Parts of one seed share no prompt: the rows of a part are drawn until their prompts, by a hash, belong to it.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

from finepref.formats.jsonl import write_jsonl

PLACES = ("hotel", "museum", "cinema", "theatre", "station", "library", "market", "gallery", "club", "school")
ASPECTS = (
    "entrance",
    "staff",
    "light",
    "sound",
    "garden",
    "kitchen",
    "hall",
    "floor",
    "food",
    "service",
    "view",
    "music",
)
GOOD = ("great", "lovely", "excellent", "pleasant", "wonderful", "perfect")
BAD = ("terrible", "awful", "poor", "boring", "horrible", "bad")
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Irene", "Jack")
THINGS = ("apples", "books", "coins", "stamps", "pens", "cards", "shells", "buttons", "cups", "keys")
PARTS = ("sft", "pairs", "questions", "held_out")
"""Each has its own prompts."""


def reviews(part: str, n: int, *, seed: int) -> Iterator[dict[str, str]]:
    """`n` rows of the part: {id, instruction, output} of `sft`, else {id, prompt, chosen, rejected}."""
    chance, count = random.Random(f"reviews:{part}:{seed}"), 0
    for prompt, aspects in _questions(chance, part):
        if count == n:
            return
        row_id = f"{part}-{count}"
        one, other = (_review(chance, aspects) for _ in range(2))
        if part == "sft":
            yield {"id": row_id, "instruction": prompt, "output": one[1]}
        elif one[0] == other[0]:
            continue
        else:
            rejected, chosen = (text for _, text in sorted((one, other)))
            yield {"id": row_id, "prompt": prompt, "chosen": chosen, "rejected": rejected}
        count += 1


def flipped(rows: Iterator[dict[str, str]], share: float, *, seed: int) -> Iterator[dict[str, str]]:
    """Pairs, of which about a share have the worse review as chosen."""
    chance = random.Random(f"flipped:{seed}")
    for row in rows:
        swapped = {"chosen": row["rejected"], "rejected": row["chosen"]} if chance.random() < share else {}
        yield row | swapped


def golden(part: str, n: int, *, seed: int) -> Iterator[dict[str, str]]:
    """`n` rows of the part: {query_id, query, golden}."""
    chance = random.Random(f"golden:{part}:{seed}")
    for number, (prompt, aspects) in zip(range(n), _questions(chance, part), strict=False):
        text = _review(chance, aspects, mood=True)[1]
        yield {"query_id": f"{part}-{number}", "query": prompt, "golden": f"To sum up: {text}"}


def good_words(response: str) -> float:
    """The share of good words among the four of a review, 0 of a text that is none."""
    return sum(word in GOOD for word in _words(response)) / 4 if is_review(response) else 0.0


def is_review(response: str) -> bool:
    """Whether a text has four good or bad words."""
    return sum(word in (*GOOD, *BAD) for word in _words(response)) == 4


def sums(part: str, n: int, *, seed: int) -> Iterator[dict[str, str]]:
    """`n` rows of the part: {id, instruction, output} of `sft`, else {id, prompt, chosen, answer}."""
    chance, seen = random.Random(f"sums:{part}:{seed}"), 0
    while seen < n:
        name, thing = chance.choice(NAMES), chance.choice(THINGS)
        start, more, less = chance.randint(11, 49), chance.randint(2, 9), chance.randint(2, 9)
        prompt = f"{name} has {start} {thing}, gets {more} more and gives {less} away. How many {thing} are left?"
        if _part_of(prompt) != part:
            continue
        total = start + more
        answer = str(total - less)
        text = f"{start} + {more} = {total}\n{total} - {less} = {answer}\nThe answer is {answer}."
        row_id = f"{part}-{seen}"
        if part == "sft":
            yield {"id": row_id, "instruction": prompt, "output": text}
        else:
            yield {"id": row_id, "prompt": prompt, "chosen": text, "answer": answer}
        seen += 1


def _questions(chance: random.Random, part: str) -> Iterator[tuple[str, list[str]]]:
    """(prompt, aspects) of the part, without end."""
    while True:
        place, aspects = chance.choice(PLACES), chance.sample(ASPECTS, 4)
        first, second, third, last = (f"the {aspect}" for aspect in aspects)
        prompt = f"Review the {place}: {first}, {second}, {third} and {last}."
        if _part_of(prompt) == part:
            yield prompt, aspects


def _review(chance: random.Random, aspects: list[str], *, mood: bool | None = None) -> tuple[int, str]:
    """(number of good words, text) of a review, in a good or a bad mood, or in either."""
    mood = chance.random() < 0.5 if mood is None else mood
    good = [mood == (chance.random() < 0.9) for _ in aspects]
    told = [
        f"the {aspect} was {chance.choice(GOOD if own else BAD)}" for aspect, own in zip(aspects, good, strict=True)
    ]
    text = f"{', '.join(told[:-1])} and {told[-1]}."
    return sum(good), text[0].upper() + text[1:]


def _words(text: str) -> list[str]:
    return text.replace(",", " ").replace(".", " ").split()


def _part_of(prompt: str) -> str:
    return PARTS[hashlib.blake2b(prompt.encode(), digest_size=4).digest()[0] % len(PARTS)]


TASKS = {"reviews": reviews, "golden": golden, "sums": sums}


def main() -> None:
    """Write the rows of a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[*TASKS])
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--n", type=int, required=True, help="number of rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flipped", type=float, default=0.0, help="of pairs, the share that is ranked wrongly")
    parser.add_argument("--output", type=Path, required=True, help="the JSON Lines file to write")
    given = parser.parse_args()
    given.output.parent.mkdir(parents=True, exist_ok=True)
    rows = TASKS[given.task](given.part, given.n, seed=given.seed)
    count = write_jsonl(given.output, flipped(rows, given.flipped, seed=given.seed) if given.flipped else rows)
    print(f"{given.output}: {count} rows")


if __name__ == "__main__":
    main()
