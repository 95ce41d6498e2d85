"""Grade-school arithmetic questions with worked answers, made by reasoning-gym's `gsm_symbolic` (Apache-2.0).

Every question is checked. It is left out if a step of its worked answer is wrong (integer divisions and rounded shares
cause this), if its last step is not its answer, or if its text is not clean (rounding noise, two currencies, missing
words).
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

from finepref.formats.records import Message, content_id
from finepref.synth.arithmetic import equations
from finepref.synth.data_sources.reasoning_gym import factory, list_seed

UNCLEAN_TEMPLATES = {
    14: "'for 4 the amount of time'",
    27: "calls the last of several complexes the third",
    51: "'ride the roller coaster 2'",
    52: "'in full 4'",
    82: "a step such as 34=34",
    85: "a factor of (1 meters / 1 meters)",
    93: "'slew 2 as many'",
}
"""Templates of gsm_symbolic that are left out: number -> the fault in their text."""

_SUFFIX = " Give the result as your final answer. Do not include units."
_WHOLE = re.compile(r"(?<![\d.,])(\d+)\.0(?![\d.])")
_NOISE = re.compile(r"\d\.\d{4}")


class Questions(NamedTuple):
    """Rows {id, prompt, chosen, answer}, and the number of generated questions left out, by reason."""

    rows: list[dict[str, str]]
    left_out: Counter[str]


def questions(n: int, *, seed: int, skip: int = 0) -> Questions:
    """`n` different questions from a seed's endless list, after its first `skip`; two slices share no question.

    Raises:
        ModuleNotFoundError: reasoning-gym is not installed.
    """
    create_dataset, start = factory().create_dataset, list_seed("gsm", seed)
    rows: dict[str, dict[str, str]] = {}
    left_out: Counter[str] = Counter()
    size, i = 2 * (n + skip) + 64, 0
    while len(rows) < n + skip:
        size *= 2
        dataset = create_dataset("gsm_symbolic", seed=start, size=size)
        while i < size and len(rows) < n + skip:
            item, template = dataset[i], dataset.task_indices[i]
            i += 1
            row, reason = _row(item, template)
            if row is None or row["id"] in rows:
                left_out[reason or "asked before"] += 1
            else:
                rows[row["id"]] = row
    return Questions(list(rows.values())[skip:], left_out)


def _row(item: dict, template: int) -> tuple[dict[str, str] | None, str]:
    """A generated item as a row, or the reason to leave it out."""
    if template in UNCLEAN_TEMPLATES:
        return None, "unclean template"
    question = _WHOLE.sub(r"\1", item["question"].removesuffix(_SUFFIX))
    answer = _WHOLE.sub(r"\1", item["answer"])
    steps = _WHOLE.sub(r"\1", item["metadata"]["answer_cot"]).partition("\n####")[0].rstrip()
    found = equations(steps)
    if not found or not all(equation.holds for equation in found):
        return None, "wrong step"
    last = steps[found[-1].result_start : found[-1].result_end].replace(",", "")
    if Fraction(last) != Fraction(answer):
        return None, "last step is not the answer"
    if _NOISE.search(question + steps) or len(set(re.findall("[$€£]", question + steps))) > 1:
        return None, "unclean text"
    row_id = content_id((Message("user", question),))
    return {"id": row_id, "prompt": question, "chosen": f"{steps}\nThe answer is {answer}.", "answer": answer}, ""
