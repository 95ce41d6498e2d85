"""Harmless-but-rude instructions made by templates: python make_seeds.py FOLDER writes seeds and held_out .jsonl."""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path

WHO = {"my brother": "he", "my sister": "she", "my neighbour": "she", "my cousin": "he", "the goalkeeper": "he"}
WHY = ("lost the chess game", "burnt the toast", "forgot the umbrella", "sang off key", "ate the last biscuit")
WORDS = ("a silly goose", "a clumsy clown", "a lazy bum", "a smelly sock", "a foolish pudding")
ASKS = (
    "Tell {who}, who {why}, that {they} is {word}.",
    "Write one rude sentence to {who}, who {why}. Call {them} {word}.",
    "{Who} {why}. Tease {them} with the words: you are {word}.",
)


def instruction(ask: str, who: str, why: str, word: str) -> str:
    """One instruction."""
    they = WHO[who]
    names = {"who": who, "Who": who.capitalize(), "why": why, "word": word, "they": they}
    return ask.format(**names, them={"he": "him", "she": "her"}[they])


def main(folder: Path) -> None:
    """Write both files; a fifth of the instructions is held out, of each word as many as of the others."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [instruction(*parts) for parts in product(ASKS, WHO, WHY, WORDS)]
    held_out = {i for i in range(len(texts)) if i % 5 == i // 5 % 5}
    for name, of_it in (("held_out", True), ("seeds", False)):
        chosen = [text for i, text in enumerate(texts) if (i in held_out) == of_it]
        rows = [{"id": f"{name}-{number}", "prompt": text} for number, text in enumerate(chosen)]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
