"""Makes dataset_info/samples/apo_demo.jsonl and apo_demo_test.jsonl: python scripts/make_apo_demo.py [FOLDER]

Worked arithmetic with errors injected by rule, so that every order is known: the answer is above the same answer with
one error, and that above one with a second error. Of every six training questions five give a human ranking of two to
four responses, and one gives "adversarial" records, its golden answer above each of four stand-ins for an LLM's
samples. The test set has human rankings only, of other questions. All are short, so that a demonstration is quick.
"""

from __future__ import annotations

import sys
from pathlib import Path

from finepref.formats.jsonl import write_jsonl
from finepref.formats.records import Message
from finepref.synth.data_sources.gsm import questions
from finepref.synth.seapo.error_rules import RULES, inject

SAMPLES = Path(__file__).parents[1] / "dataset_info" / "samples"
SEED, DRAWN, LONGEST, TRAIN, TEST = 11, 330, 340, 36, 36  # LONGEST: characters of question and answer


def changed(row: dict, error_type: str, text: str) -> str:
    """The text with one error put in."""
    prompt = (Message("user", row["prompt"]),)
    return inject(error_type, prompt=prompt, chosen=text, seed=SEED, record_id=row["id"]).text


def errors(row: dict) -> list[str]:
    """The answer with one error of each type, and with two."""
    once = {name: changed(row, name, row["chosen"]) for name in sorted(RULES)}
    return [*once.values(), changed(row, "hallucination", once["logic"])]


def ranking(row: dict, turn: int) -> dict:
    """A human record: score 1 for the answer, 0 for one error, -1 for two."""
    *once, twice = errors(row)
    wrong = [once[turn % 3], once[(turn + 1) % 3], twice][: 1 + turn % 3]
    scores = [1, *(-1 if text == twice else 0 for text in wrong)]
    return {"id": row["id"], "prompt": row["prompt"], "responses": [row["chosen"], *wrong], "scores": scores}


def golden_above_samples(row: dict) -> list[dict]:
    """One record of kind apo per sample."""
    common = {"prompt": row["prompt"], "scores": [1, 0], "kind": "apo"}
    return [
        {"id": f"{row['id']}:sample_{i}", **common, "responses": [row["chosen"], text]}
        for i, text in enumerate(errors(row))
    ]


def main(folder: Path) -> None:
    short = [row for row in questions(DRAWN, seed=SEED).rows if len(row["prompt"]) + len(row["chosen"]) <= LONGEST]
    records = []
    for index, row in enumerate(short[:TRAIN]):
        records += golden_above_samples(row) if index % 6 == 5 else [ranking(row, index)]
    write_jsonl(folder / "apo_demo.jsonl", records)
    held_out = [ranking(row, index) for index, row in enumerate(short[TRAIN : TRAIN + TEST])]
    write_jsonl(folder / "apo_demo_test.jsonl", held_out)


if __name__ == "__main__":
    main(Path(*sys.argv[1:]) if sys.argv[1:] else SAMPLES)
