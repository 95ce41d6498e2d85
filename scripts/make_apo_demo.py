"""dataset_info/samples/apo_demo.jsonl from questions of `finepref data gsm`: python scripts/make_apo_demo.py IN OUT

Errors are injected by rule, so every order is known: the worked answer is above the same answer with one error, and
that above one with a second error put in. Questions take turns in being a human ranking of two to four responses, or
golden answers above "samples" (kind apo) of which each has one error.
"""

from __future__ import annotations

import sys

from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.formats.records import Message
from finepref.synth.rules import RULES, inject

SEED = 11


def changed(row: dict, error_type: str, text: str) -> str | None:
    """The text with one error put in, None where the rule finds nothing to build on."""
    prompt = (Message("user", row["prompt"]),)
    injected = inject(error_type, prompt=prompt, chosen=text, seed=SEED, record_id=row["id"])
    return injected.text if injected else None


def ranking(row: dict, index: int) -> dict:
    """A human record: score 1 for the answer, 0 for one error, -1 for two."""
    wrong = {name: changed(row, name, row["chosen"]) for name in sorted(RULES)}
    kept = sorted(wrong)[: 1 + index % 3]
    scored = {row["chosen"]: 1, **{wrong[name]: 0 for name in kept}}
    twice = changed(row, "hallucination", wrong["logic"])
    if index % 4 == 3:
        scored[twice] = -1
    return {"id": row["id"], "prompt": row["prompt"], "responses": [*scored], "scores": [*scored.values()]}


def golden_above_samples(row: dict) -> list[dict]:
    """One apo record per sample."""
    texts = [changed(row, name, row["chosen"]) for name in sorted(RULES)]
    return [
        {
            "id": f"{row['id']}:sample_{i}",
            "prompt": row["prompt"],
            "responses": [row["chosen"], text],
            "scores": [1, 0],
            "kind": "apo",
        }
        for i, text in enumerate(texts)
    ]


def main() -> None:
    source, target = sys.argv[1:]
    records = []
    for index, (_, row) in enumerate(read_jsonl(source, problems=None)):
        records += golden_above_samples(row) if index % 2 else [ranking(row, index // 2)]
    write_jsonl(target, records)


if __name__ == "__main__":
    main()
