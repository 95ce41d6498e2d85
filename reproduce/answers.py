"""A model answers questions, and a rule grades each answer: `results.json` and `samples/`, as `finepref report` reads.

    python reproduce/answers.py sums.jsonl --grade number --model ADAPTER --output FOLDER
    python reproduce/answers.py pairs.jsonl --grade good_words --temperature 1 --model ADAPTER --output FOLDER

`number`: whether the answer's number is the row's `answer`. `good_words`: the share of good words of a review, 0 of a
text that is none, and the share of reviews. Answers that are sampled have the same noise for each model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finepref.evals.local_tasks import metric
from finepref.formats.files import write_json
from finepref.formats.jsonl import write_jsonl
from finepref.synth.engines.hf import HfEngine
from finepref.synth.judges.reasoning_gym import answer_in
from finepref.synth.margins import model_at
from finepref.synth.reversegen.answer import answer
from finepref.synth.reversegen.instructions import read_dicts
from tasks import good_words, is_review


def number(row: Mapping[str, Any]) -> dict[str, float]:
    """1 if what the response says is the answer is that of the row, as text."""
    return {"accuracy": float(answer_in(row["response"]) == row["answer"])}


def words(row: Mapping[str, Any]) -> dict[str, float]:
    """See `tasks.good_words`."""
    return {"good_words": good_words(row["response"]), "reviews": float(is_review(row["response"]))}


GRADES: Mapping[str, Callable[[Mapping[str, Any]], dict[str, float]]] = {"number": number, "good_words": words}


def main() -> None:
    """Answer, grade, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--grade", choices=[*GRADES], required=True)
    parser.add_argument("--model", required=True, help="folder of a model, or of an adapter that names its base")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()
    model = model_at(given.model)
    answered = given.output / "answers.jsonl"
    answer(
        given.questions,
        answered,
        engine=HfEngine(model.path, adapter=model.adapter, batch_size=given.batch_size),
        max_new_tokens=given.max_new_tokens,
        temperature=given.temperature,
    )
    found = {row["id"]: row for row in read_dicts(answered)}
    grade = GRADES[given.grade]
    # An answer that is empty is left out by `answer`; it counts as a wrong one.
    graded = [found.get(row["id"], {**row, "response": ""}) for row in read_dicts(given.questions)]
    samples = [{"id": row["id"], **grade(row), "response": row["response"]} for row in graded]
    names = grade({"response": "", "answer": " "})
    metrics = {name: metric(each[name] for each in samples) for name in names}
    write_jsonl(given.output / "samples" / "answers.jsonl", samples)
    write_json(given.output / "results.json", {"tasks": {"answers": {"n": len(samples), "metrics": metrics}}})
    print(", ".join(f"{name} {each['value']:.4f}" for name, each in metrics.items()))


if __name__ == "__main__":
    main()
