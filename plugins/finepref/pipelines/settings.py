"""The YAML file of a pipeline, `key=value` overrides, and the check of both against the pipeline's signature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


def load(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The settings of a YAML file with `key=value` on top, where a dot goes into a section: `sample.temperature=1.2`.

    Raises:
        ValueError: the file is not a YAML mapping, or an override is not `key=value`.
    """
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is not a mapping of settings")
    return overridden(settings, overrides)


def overridden(settings: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The settings, changed in place by `key=value`.

    Raises:
        ValueError: an override is not `key=value`, or goes into what is no section.
    """
    import yaml

    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not all(parts := name.split(".")):
            raise ValueError(f"{override!r} is not key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"the value of {override!r} is not YAML") from None
        section = settings
        for part in parts[:-1]:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise ValueError(f"{override!r}: {part} is not a section")
        section[parts[-1]] = value
    return settings


def call(function: Callable[..., None], settings: Mapping[str, Any], *, file: Path, **more: object) -> None:
    """Call a pipeline with its settings, checked against the annotations of its keyword-only parameters.

    Raises:
        ValueError: every setting that is unknown, missing or not of its type, with the file and the key.
    """
    from pydantic import ConfigDict, ValidationError, validate_call

    try:
        checked = validate_call(function, config=ConfigDict(arbitrary_types_allowed=True))
        checked(**settings, **more)
    except ValidationError as error:
        raise ValueError("\n".join(_line(file, each) for each in error.errors())) from None


def options(section: Mapping[str, object]) -> list[str]:
    """A section as options of one of our commands: `{n: 4, check: true}` -> --n 4 --check."""
    words: list[str] = []
    for name, value in section.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, list):
            words += [flag, ",".join(map(str, value))]
        elif value is not False and value is not None:
            words += [flag, str(value)]
    return words


def _line(file: Path, error: Mapping[str, Any]) -> str:
    key = ".".join(map(str, error["loc"]))
    known = {"unexpected_keyword_argument": "unknown key", "missing_keyword_only_argument": "is missing"}
    return f"{file}: {key}: {known.get(error['type'], error['msg'])}"
