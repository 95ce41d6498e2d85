"""The judge `gym`: reasoning-gym's own verifier of the task that a row comes from.

A row is a reasoning-gym item with a response: {prompt or question, answer, metadata: {source_dataset, ...}, response}.
The answer is the text of the response's last <answer> element, or else what follows its last "answer is" or "####",
or else the whole response.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from finepref.formats.row import is_text
from finepref.synth.judges.verdict import Row, Verdict

EVALUATES_THE_ANSWER = {
    "binary_matrix",
    "countdown",
    "n_queens",
    "number_sorting",
    "puzzle24",
    "spiral_matrix",
    "string_insertion",
}
"""Verifiers of reasoning-gym 0.1.25 that run the answers of response and row as Python: used for numbers only."""
EVALUATES_THE_ROW = {
    "bitwise_arithmetic",
    "codeio",
    "intermediate_integration",
    "polynomial_multiplication",
    "simple_integration",
}
"""Verifiers that run other texts of a row too: they are not used."""

# Arithmetic without powers, or lists of numbers, quoted or not: this uses no names and not much memory.
_HARMLESS = re.compile(r"(?!.*\*\s*\*)[\d\s.+*/()-]*|[\d\s.,'\"\[\]-]*", re.DOTALL)
_ELEMENT = re.compile(r"<answer>\s*((?:(?!<answer>).)*?)\s*</answer>", re.DOTALL)
_ANSWER_IS = re.compile(r"(?:\banswer is:?|####)\s*(.+?)\.?\s*$", re.IGNORECASE)


def gym(row: Row) -> Verdict:
    """Whether the task's verifier gives the response full marks; the marks are the score."""
    response, answer, metadata = row.get("response"), row.get("answer"), row.get("metadata")
    task = metadata.get("source_dataset") if isinstance(metadata, Mapping) else None
    if not is_text(response) or not isinstance(answer, str) or not isinstance(task, str):
        return Verdict(None, "the row needs the texts response and answer, and metadata with source_dataset")
    found = answer_in(str(response))
    harmless = all(map(_HARMLESS.fullmatch, (found, answer)))
    if task in EVALUATES_THE_ROW or (task in EVALUATES_THE_ANSWER and not harmless):
        return Verdict(None, f"the verifier of {task} would run a text of this row as code")
    if (marks := _verifier(task)) is None:
        return Verdict(None, f"reasoning-gym has no task {task}")
    try:
        score = float(marks(found, {**row, "question": row.get("question", row.get("prompt"))}))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        return Verdict(None, f"the verifier of {task} failed ({type(error).__name__}: {error})")
    return Verdict(score >= 1, score=score)


def answer_in(response: str) -> str:
    """The answer in a response, see the module's docstring."""
    if elements := _ELEMENT.findall(response):
        return str(elements[-1])
    told = [match[1] for line in response.splitlines() if (match := _ANSWER_IS.search(line))]
    return str(told[-1]) if told else response.strip()


@cache
def _verifier(task: str) -> Callable[[str, Mapping[str, object]], Any] | None:
    from reasoning_gym.factory import DATASETS, get_score_answer_fn

    return get_score_answer_fn(task) if task in DATASETS else None
