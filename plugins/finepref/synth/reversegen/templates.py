"""Prompt templates: a check of their fields, and a version for the journal."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def check_template(template: str, *required: str, optional: Sequence[str] = ()) -> str:
    """The template, if it has the required fields and no unknown ones.

    Raises:
        ValueError: a field is missing, or there is an unknown one.
    """
    values = {name: f"<{name}>" for name in (*required, *optional)}
    text = filled(template, **values)
    if missing := [name for name in required if values[name] not in text]:
        raise ValueError(f"the template has no {{{missing[0]}}}")
    return template


def check_ask(ask: str) -> str:
    """The template of a question to a model: with {prompt}, or {question}, which is the prompt without its options.

    Raises:
        ValueError: it has neither, or an unknown field.
    """
    return check_template(ask, "question" if "{question}" in ask else "prompt", optional=("prompt", "question"))


def version(*texts: str) -> str:
    """The version of a prompt, for the journal."""
    return "reversegen-" + hashlib.blake2b("\0".join(texts).encode(), digest_size=4).hexdigest()


def filled(template: str, **values: object) -> str:
    """The template with values for its fields.

    Raises:
        ValueError: it has other fields, or other braces.
    """
    try:
        return template.format(**values)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        known = ", ".join(f"{{{name}}}" for name in values)
        raise ValueError(f"the template may have {known} and no other braces: {error!r}") from None
