"""Checks the types of a YAML's values: the host's parser takes any, and fails later without naming the key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

NUMBERS = {int: "a whole number", float: "a number", bool: "true or false"}


def check(given: Mapping[str, Any], classes: Iterable[type]) -> None:
    """Refuse a value that a number or a switch cannot be.

    Texts are not checked, since the host takes numbers and lists for many of them.

    Args:
        given: key -> value.
        classes: the host's dataclasses of arguments.

    Raises:
        ValueError: one line that names the key.
    """
    for owner in classes:
        hints = get_type_hints(owner)
        for field in fields(owner):
            value = given.get(field.name)
            if value is None or not field.init:
                continue
            kinds = _kinds(hints[field.name])
            if kinds <= NUMBERS.keys() and not any(_fits(value, kind) for kind in kinds):
                wanted = next(text for kind, text in reversed(NUMBERS.items()) if kind in kinds)
                raise ValueError(f"`{field.name}` must be {wanted}, not {_shown(value)}")


def _kinds(hint: Any) -> set[Any]:
    """The types of a field, without None."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return {part for part in parts if part is not type(None)}


def _fits(value: Any, kind: type) -> bool:
    if kind is bool:
        return value in (True, False) and not isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return kind is float or value == int(value)


def _shown(value: Any) -> str:
    if not isinstance(value, str):
        return repr(value)
    try:
        return f"the text {value!r}; write {float(value)}"
    except ValueError:
        return repr(value)
