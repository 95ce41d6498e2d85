"""Records of every format about sums, for the tests of both hosts, and a dataset_dir for them."""

from __future__ import annotations

import json
from pathlib import Path

SIDES = ("chosen", "rejected")


def rows(count: int = 12) -> list[dict]:
    """Negatives records of sums, each with the paper's three error types."""
    return [
        {
            "id": f"sum-{i}",
            "prompt": f"What is {i} + {i + 1}?",
            "chosen": f"{i} + {i + 1} = {2 * i + 1}. The answer is {2 * i + 1}.",
            "negatives": {
                "correctness": f"{i} + {i + 1} = {2 * i + 4}. The answer is {2 * i + 4}.",
                "logic": f"{i} + {i + 1} = {2 * i + 1}. So the answer is {i}.",
                "hallucination": f"As Gauss wrote, {i} + {i + 1} = {2 * i + 1}. The answer is {2 * i + 1}.",
            },
        }
        for i in range(count)
    ]


def span_rows(count: int = 12) -> list[dict]:
    """Pairs of right and wrong sums with two spans, on the wrong results, or on the right ones in every third pair."""
    pairs = []
    for i in range(count):
        right, wrong = f"{2 * i + 1}", f"{2 * i + 4}"
        chosen = f"{i} + {i + 1} = {right}. The answer is {right}."
        rejected = f"{i} + {i + 1} = {wrong}. The answer is {wrong}."
        row = {"id": f"span-{i}", "prompt": f"What is {i} + {i + 1}?", "chosen": chosen, "rejected": rejected}
        side, text, number = ("chosen", chosen, right) if i % 3 == 0 else ("rejected", rejected, wrong)
        row[f"{side}_spans"] = results(text, number)
        pairs.append(row)
    return pairs


def margin_rows(count: int = 12) -> list[dict]:
    """The same pairs without spans, each with a margin of its own."""
    keys = ("id", "prompt", *SIDES)
    return [{key: row[key] for key in keys} | {"margin": 0.25 * (i + 1)} for i, row in enumerate(span_rows(count))]


def granular_rows(count: int = 12) -> list[dict]:
    """The same pairs with both results marked in the right answer."""
    return [
        {key: row[key] for key in ("id", "prompt", "chosen", "rejected")}
        | {"chosen_spans": results(row["chosen"], f"{2 * i + 1}")}
        for i, row in enumerate(span_rows(count))
    ]


def results(text: str, number: str) -> list[dict]:
    """Spans of the two places that state a result."""
    starts = (text.index("= ") + 2, text.index("is ") + 3)
    return [{"start": start, "end": start + len(number)} for start in starts]


def scored_rows(model: Path, count: int = 12) -> list[dict]:
    """The same pairs with a score for each token of the model's tokenizer and for the end token."""
    from finepref.formats.scores import fingerprint
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    pairs = []
    for row in span_rows(count):
        scored = {key: row[key] for key in ("id", "prompt", "chosen", "rejected")}
        scored["tokenizer"] = fingerprint(tokenizer.backend_tokenizer.to_str())
        for side in ("chosen", "rejected"):
            encoded = tokenizer(scored[side], add_special_tokens=False, return_offsets_mapping=True)
            places = [*encoded["offset_mapping"], (len(scored[side]),) * 2]
            scored[f"{side}_scores"] = [((7 * k + len(row["id"])) % 11 - 5) / 4 for k in range(len(places))]
            scored[f"{side}_offsets"] = [list(place) for place in places]
        pairs.append(scored)
    return pairs


def contrast_rows(model: Path, count: int = 12) -> list[dict]:
    """The scored pairs with cDPO's contrast in place of log-ratios."""
    return [
        row | {"score_kind": "contrast"} | {f"{s}_scores": [(x + 2) / 4 for x in row[f"{s}_scores"]] for s in SIDES}
        for row in scored_rows(model, count)
    ]


def ranked_rows(count: int = 12, start: int = 0) -> list[dict]:
    """Sums with two to four scored responses; every third record is of kind apo and has two."""
    lists = []
    for i in range(start, start + count):
        total = 2 * i + 1
        texts = [f"{i} + {i + 1} = {total}.", f"{i} + {i + 1} = {total + 3}!", f"As Gauss wrote, {total}.", "No idea."]
        size = 2 if i % 3 == 2 else 2 + i % 3 + i % 2
        row = {"id": f"list-{i}", "prompt": f"What is {i} + {i + 1}?", "responses": texts[:size]}
        lists.append(row | {"scores": [1.0, 0.5, -1.0, -2.0][:size]} | ({"kind": "apo"} if i % 3 == 2 else {}))
    return lists


def write_rows(folder: Path, records: list[dict], name: str = "sums", **entry: object) -> Path:
    """A dataset_dir with one data set."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in records)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    info = folder / "dataset_info.json"
    table = json.loads(info.read_text()) if info.exists() else {}
    table[name] = {"file_name": f"{name}.jsonl", "formatting": "negatives", **entry}
    info.write_text(json.dumps(table), encoding="utf-8")
    return folder
