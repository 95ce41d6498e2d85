"""Labels and hints of our elements, from texts.toml, in the languages of the host's web UI."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from finepref.methods.options import Described
from finepref.methods.stage import Stage

LANGUAGES = ("en", "ru", "zh", "ko", "ja")


@cache
def table() -> dict[str, dict[str, Any]]:
    """Name of an option or element -> language -> properties of the element: label, info, value.

    In `phrases`: key -> language -> sentence.
    """
    return tomllib.loads(files(__package__).joinpath("texts.toml").read_text(encoding="utf-8"))


def of_option(row: Stage, option: Described) -> dict[str, dict[str, str]]:
    """An option's label and help: from the stage's row, else from our table, else the option's own in English."""
    known = (row.texts or {}).get(option.name) or table().get(option.name, {})
    plain = {"label": option.name, "info": option.help}
    return {language: plain | dict(known.get(language, {})) for language in LANGUAGES}


def of_accordion(name: str) -> dict[str, dict[str, str]]:
    """The heading of a stage's options."""
    return {language: {"label": text["label"].format(name=name)} for language, text in table()["options_tab"].items()}


def phrase(key: str, language: str) -> str:
    """A sentence that is shown when something happens, with places for `str.format`."""
    return table()["phrases"][key][language]


def of_elements(names: Iterable[str]) -> dict[str, Any]:
    """The texts of elements that are not options."""
    return {name: table()[name] for name in names}
