"""What our elements are called in the languages of the host's web UI; the words are in texts.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import Field
from functools import cache
from importlib.resources import files
from typing import Any

LANGUAGES = ("en", "ru", "zh", "ko", "ja")


@cache
def table() -> dict[str, dict[str, dict[str, str]]]:
    """Name of an option or element -> language -> what the host passes to the element: label, info, value."""
    return tomllib.loads(files(__package__).joinpath("texts.toml").read_text(encoding="utf-8"))


def of_option(field: Field) -> dict[str, dict[str, str]]:
    """An option's label and help; in English the help is the argument's own, as it is for one without an entry."""
    known = table().get(field.name, {})
    plain = {"label": field.name, "info": field.metadata.get("help", "")}
    return {language: plain | known.get(language, {}) for language in LANGUAGES}


def of_accordion(name: str) -> dict[str, dict[str, str]]:
    """The heading of a stage's options."""
    return {language: {"label": text["label"].format(name=name)} for language, text in table()["options_tab"].items()}


def of_elements(names: Iterable[str]) -> dict[str, Any]:
    """The words of elements that are no options."""
    return {name: table()[name] for name in names}
