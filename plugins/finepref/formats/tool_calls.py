"""Calls of functions in a response, as text: JSON of {name, arguments}, or of a list of them.

That is what LLaMA-Factory writes for a turn with calls. A text before the calls is kept in front of them, with the
calls between the marks of `MARKS`; LLaMA-Factory's templates know this form too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MARKS = ("<tool_call>", "</tool_call>")
THOUGHT_END = "</think>"
"""A thought may stand before the calls, without the marks."""


class FunctionCall(str):
    """The text of a response that calls functions, see `read`; a template writes it in its own way."""

    __slots__ = ()


class Calls(NamedTuple):
    """The calls of a turn, each {name, arguments}, and the text before them."""

    before: str
    calls: list[Mapping[str, Any]]


def written(calls: Sequence[object], before: str = "") -> str:
    """Calls as text, as LLaMA-Factory writes them for a turn with `tool_calls`; `before` is the turn's text."""
    text = json.dumps(calls, ensure_ascii=False)
    return f"{before}{MARKS[0]}{text}{MARKS[1]}" if before.strip() else text


def read(text: str) -> Calls:
    """The calls in a text.

    Raises:
        ValueError: what is wrong with it, in one line.
    """
    before, mark, inner = text.partition(MARKS[0])
    if mark:
        inner, end, after = inner.partition(MARKS[1])
        if not end or after.strip():
            raise ValueError(f"{MARKS[1]} is not at the end of the calls")
    else:
        thought, end, inner = text.rpartition(THOUGHT_END)
        before = thought + end
    try:
        value = json.loads(inner)
    except (ValueError, RecursionError):
        raise ValueError("the calls are not JSON") from None
    calls = value if isinstance(value, list) else [value]
    for call in calls:
        if not isinstance(call, dict) or type(call.get("name")) is not str or "arguments" not in call:
            raise ValueError("a call is {name, arguments}")
    if not calls:
        raise ValueError("there is no call")
    return Calls(before, calls)
