"""Arithmetic exercises in words and signs, parsed exactly, so that the right answer needs no model.

    What is 17 + 25?     Compute 3 * (4 - 1).     Calculate 12 minus 5 plus 8     17 + 25 =

A text that does not match as a whole is not an exercise: units, a story, a second sentence, a division by zero.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from finepref.synth.arithmetic import computed, numbers

_LEAD = re.compile(
    r"\s*(?:(?:what(?:[’']s| is)(?: the (?:result|value|sum|difference|product) of)?|calculate|compute|solve|evaluate"
    r"|work out|find)\b:?\s*)?",
    re.IGNORECASE,
)
_END = re.compile(r"\s*(?:=\s*\??|=?\s*[?.])?\s*$")
_WORDS = {
    r"multiplied by": "*",
    r"divided by": "/",
    r"plus": "+",
    r"minus": "-",
    r"times": "*",
}


class Exercise(NamedTuple):
    """A computation with signs in place of words, and its value."""

    expression: str
    value: Fraction

    @property
    def answer(self) -> str:
        """The value: an integer, or a fraction in lowest terms."""
        return str(self.value)


def exercise(text: str, *, max_numbers: int = 3, max_digits: int = 4) -> Exercise | str:
    """The exercise in a text, or why it is none.

    Args:
        text: one line.
        max_numbers: most numbers in it.
        max_digits: most digits of a number, decimals included.
    """
    body = text[_LEAD.match(text).end() :]  # type: ignore[union-attr]
    body = body[: _END.search(body).start()]  # type: ignore[union-attr]
    for word, sign in _WORDS.items():
        body = re.sub(rf"\b{word}\b", sign, body, flags=re.IGNORECASE)
    expression = " ".join(body.split())
    if "\n" in text.strip():
        return "more than one line"
    found = numbers(expression)
    if len(found) > max_numbers:
        return f"more than {max_numbers} numbers"
    if any(sum(map(str.isdigit, expression[start:end])) > max_digits for start, end, _ in found):
        return f"a number of more than {max_digits} digits"
    value = computed(expression)
    return "not one computation" if value is None else Exercise(expression, value)


def value_of(text: str) -> Fraction | None:
    """The number that a text is, such as the option of a question; None if it is none."""
    try:
        return Fraction(text.strip().rstrip(".").replace("−", "-").replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
