"""Equations in worked answers: found in running text and computed exactly, to tell right from wrong.

    expression = term (("+" | "-") term)*          term = factor (("*" | "/") factor)*
    factor     = number unit*  |  "(" expression ")" unit*  |  number "(" expression ")"

A number may have a currency sign, thousands commas, decimals and a per cent sign; a unit is any run of words, such as
`girls`, `boys/girl` or `per day`. In `8 boxes x $15 per box = $120 in all` the left side is `8 boxes x $15 per box`
and the result `120`. Anything else (variables, equations without a computation) does not count as an equation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

_TOKEN = re.compile(
    r"""(?P<number>(?P<currency>[$€£¥₹]\s?)?(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])|\d+(?:\.\d+)?)(?P<percent>\s?%)?)
      | (?P<word>(?:[/-](?=[^\W\d_]))?[^\W\d_]+(?:['’-][^\W\d_]+)*)
      | (?P<operator>[-+*×÷/−])
      | (?P<bracket>[()])
      | (?P<other>\S)""",
    re.VERBOSE,
)
_TIMES = re.compile(r"(?<=[\s\d)%])[xX](?=\s*[\d$€£¥₹(])")
_BULLET = re.compile(r"\s*(?:[-*•]\s|\d+[.)]\s)")
_EQUALS = re.compile(r"(?<![<>!=:])=(?!=)")
_OPERATORS = {"×": "*", "÷": "/", "−": "-"}


class Equation(NamedTuple):
    """One computation in a text.

    `start` and `end` enclose the equation from its left side to its result, `result_start` and `result_end` the digits
    of the result only (no currency and per cent signs); all are half-open character offsets into the text.
    """

    start: int
    end: int
    result_start: int
    result_end: int
    left: Fraction
    right: Fraction

    @property
    def holds(self) -> bool:
        """Whether both sides are exactly equal."""
        return self.left == self.right


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int
    digits: tuple[int, int] = (0, 0)
    value: Fraction = Fraction(0)


def equations(text: str) -> list[Equation]:
    """The equations of a text in order; of a chain `a = b = c`, each link from a computation to a number."""
    found: list[Equation] = []
    position = 0
    for line in text.splitlines(keepends=True):
        found += _in_line(text, position, position + len(line))
        position += len(line)
    return found


def computed(text: str) -> Fraction | None:
    """The value of a text that is one computation of two or more bare numbers and nothing else, otherwise None."""
    tokens = [*_tokens(text, 0, len(text))]
    signs = sum(token.kind in ("operator", "bracket") for token in tokens)
    bare = sum(token.kind == "number" and token.text == text[slice(*token.digits)] for token in tokens)
    if bare < 2 or bare + signs < len(tokens):
        return None
    value, stop = _expression(tokens, 0)
    return value if stop == len(tokens) else None


def numbers(text: str) -> list[tuple[int, int, Fraction]]:
    """All numbers in a text: start and end of their digits, and their values."""
    return [(*t.digits, t.value) for t in _tokens(text, 0, len(text)) if t.kind == "number"]


def _in_line(text: str, start: int, end: int) -> Iterator[Equation]:
    bullet = _BULLET.match(text, start, end)
    sides = [bullet.end() if bullet else start, *(m.end() for m in _EQUALS.finditer(text, start, end)), end + 1]
    tokens = [list(_tokens(text, a, b - 1)) for a, b in pairwise(sides)]
    for left, right in pairwise(tokens):
        computed, result = _ending(left), _beginning(right)
        if computed is not None and result is not None:
            first, value = computed
            yield Equation(first.start, result.end, *result.digits, value, result.value)


def _tokens(text: str, start: int, end: int) -> Iterator[_Token]:
    signs = {m.start() for m in _TIMES.finditer(text, start, end)}
    position = start
    while match := _TOKEN.search(text, position, end):
        kind, position = str(match.lastgroup), match.end()
        if match.start() in signs:
            kind, position = "operator", match.start() + 1
        if match["number"] is not None:
            value = Fraction(match["digits"].replace(",", "")) / (100 if match["percent"] else 1)
            yield _Token("number", match[0], match.start(), match.end(), match.span("digits"), value)
        else:
            sign = "*" if match.start() in signs else _OPERATORS.get(match[0], match[0])
            yield _Token(kind, sign, match.start(), position)


def _ending(tokens: Sequence[_Token]) -> tuple[_Token, Fraction] | None:
    """The longest computation at the end of the tokens: its first token and its value."""
    for i, token in enumerate(tokens):
        if token.kind not in ("number", "bracket") or (i and tokens[i - 1].kind in ("operator", "bracket")):
            continue
        value, stop = _expression(tokens, i)
        if value is not None and stop == len(tokens) and sum(t.kind == "number" for t in tokens[i:]) > 1:
            return token, value
    return None


def _beginning(tokens: Sequence[_Token]) -> _Token | None:
    """The number at the beginning of the tokens, unless a computation starts with it."""
    if not tokens or tokens[0].kind != "number":
        return None
    _, stop = _factor(tokens, 0)
    goes_on = stop < len(tokens) and tokens[stop].kind in ("operator", "bracket")
    return None if goes_on else tokens[0]


def _expression(tokens: Sequence[_Token], i: int) -> tuple[Fraction | None, int]:
    total, i = _term(tokens, i)
    while total is not None and i < len(tokens) and tokens[i].kind == "operator" and tokens[i].text in "+-":
        value, stop = _term(tokens, i + 1)
        if value is None:
            return None, i
        total, i = (total + value if tokens[i].text == "+" else total - value), stop
    return total, i


def _term(tokens: Sequence[_Token], i: int) -> tuple[Fraction | None, int]:
    product, i = _factor(tokens, i)
    while product is not None and i < len(tokens) and tokens[i].kind == "operator" and tokens[i].text in "*/":
        value, stop = _factor(tokens, i + 1)
        if value is None or (tokens[i].text == "/" and value == 0):
            return None, i
        product, i = (product * value if tokens[i].text == "*" else product / value), stop
    return product, i


def _factor(tokens: Sequence[_Token], i: int) -> tuple[Fraction | None, int]:
    value: Fraction | None = None
    if i < len(tokens) and tokens[i].kind == "number":
        value, i = tokens[i].value, i + 1
    if i < len(tokens) and tokens[i].text == "(":
        inner, stop = _expression(tokens, i + 1)
        if inner is None or stop >= len(tokens) or tokens[stop].text != ")":
            return None, i
        value, i = (inner if value is None else value * inner), stop + 1
    if value is None:
        return None, i
    while i < len(tokens) and tokens[i].kind == "word":
        i += 1
    return value, i
