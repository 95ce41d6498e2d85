"""Errors inserted into worked arithmetic by rule: no model is needed, and every error can be checked.

    correctness    one step's result becomes another number, so that the step is wrong
    logic          every step stays right; the conclusion becomes a number that does not follow from them
    hallucination  a sentence is inserted with a number that is neither in the question nor in the answer

The choice of step, number and sentence depends on (seed, record id) only. The span is exactly the changed text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, TypeVar

from finepref.formats.negatives import pick
from finepref.formats.records import Prompt, Span
from finepref.synth.arithmetic import Equation, equations, numbers

INVENTED = (
    "The question also says that {n} more were added beforehand.",
    "As the question points out, {n} of these had already been set aside.",
    "Official records give a figure of {n} for this case as well.",
    "A survey in {n} towns found the same figure.",
    "By a well-known rule, {n} of them never count.",
    "The question mentions a fee of {n} for this step.",
    "Everyone involved had agreed on a limit of {n} beforehand.",
    "It is documented that this was repeated {n} times that year.",
)
"""Sentences for `hallucination`; {n} is a number between 11 and 97."""

_SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s+\S)")

T = TypeVar("T")


class Injected(NamedTuple):
    """A changed answer, and the span of its characters that contains the error."""

    text: str
    span: Span


class _Choice(NamedTuple):
    """Choices that depend on the seed and the record only."""

    seed: int
    record_id: str

    def of(self, options: Sequence[T], what: str) -> T:
        return options[pick(len(options), seed=self.seed, epoch=0, record_id=f"{self.record_id}/{what}")]


def inject(error_type: str, *, prompt: Prompt, chosen: str, seed: int, record_id: str) -> Injected | None:
    """The answer with one error of the given type; None if it has no correct equation to start from.

    Args:
        error_type: one of `RULES`.
        prompt: the question.
        chosen: the good answer.
        seed: of the choices.
        record_id: choices differ between records.

    Raises:
        ValueError: there is no rule for the error type.
    """
    steps = [equation for equation in equations(chosen) if equation.holds]
    choice = _Choice(seed, record_id)
    if error_type not in RULES:
        raise ValueError(f"there is no rule for errors of type {error_type}: {', '.join(RULES)} have one")
    return RULES[error_type](prompt, chosen, steps, choice) if steps else None


def _correctness(prompt: Prompt, chosen: str, steps: Sequence[Equation], choice: _Choice) -> Injected:
    step = choice.of(steps, "step")
    digits = chosen[step.result_start : step.result_end]
    return _replaced(chosen, step.result_start, step.result_end, _other_number(digits, choice))


def _logic(prompt: Prompt, chosen: str, steps: Sequence[Equation], choice: _Choice) -> Injected:
    results = [chosen[step.result_start : step.result_end] for step in steps]
    start, end, _ = numbers(chosen)[-1]
    others = sorted({result for result in results if _value(result) != _value(results[-1])})
    wrong = choice.of(others, "conclusion") if others else _other_number(results[-1], choice)
    if start >= steps[-1].end and _value(chosen[start:end]) == _value(results[-1]):
        return _replaced(chosen, start, end, wrong)
    separator = "\n" if "\n" in chosen else " "
    return _replaced(chosen, len(chosen), len(chosen), f"{separator}So the answer is {wrong}.")


def _hallucination(prompt: Prompt, chosen: str, steps: Sequence[Equation], choice: _Choice) -> Injected:
    texts = [chosen, *(turn.content for turn in prompt)]
    known = {text[start:end] for text in texts for start, end, _ in numbers(text)}
    number = choice.of([n for n in range(11, 98) if str(n) not in known], "number")
    sentence = choice.of(INVENTED, "sentence").format(n=number)
    if "\n" in chosen:
        ends = {chosen.find("\n", step.end) for step in steps} - {-1}
        separator = "\n"
    else:
        ends = {match.start() for match in _SENTENCE_END.finditer(chosen)}
        separator = " "
    place = choice.of(sorted(ends) or [len(chosen)], "place")
    return _replaced(chosen, place, place, separator + sentence)


RULES = {"correctness": _correctness, "logic": _logic, "hallucination": _hallucination}
"""Error type -> its rule."""


def _replaced(text: str, start: int, end: int, new: str) -> Injected:
    return Injected(text[:start] + new + text[end:], Span(start, start + len(new)))


def _value(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def _other_number(digits: str, choice: _Choice) -> str:
    """A similar number in the same notation: as many decimals, and thousands commas if the number has them."""
    whole, _, decimals = digits.replace(",", "").partition(".")
    value = int(whole + decimals)
    swapped = int(f"{value // 100}{value % 10}{value // 10 % 10}")
    near = sorted({value + 1, value - 1, value + 2, value + 10, value - 10, swapped} - {value})
    wrong = choice.of([n for n in near if n > 0], "number")
    text = str(wrong).zfill(len(decimals) + 1)
    head, tail = (text[: -len(decimals)], f".{text[-len(decimals) :]}") if decimals else (text, "")
    return (f"{int(head):,}" if "," in digits else head) + tail
