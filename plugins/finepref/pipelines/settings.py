"""The YAML file of a pipeline, `key=value` overrides, and a check of both against the pipeline's signature.

Settings become command lines, which other users can see in the list of processes and which `step.json` and `log.txt`
contain. Therefore secrets are refused, and no error repeats them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from finepref.formats.bad_rows import share_of

_SECRET_KEY = re.compile(
    r"(api_?key|wandb\.key|secret|passw(or)?d|authorization|(^|(hub|hf|access|auth|api|bearer)_)token)$", re.I
)
_SECRET_TEXT = re.compile(r"://[^/\s]*@|://\S*\?|\b(sk-[\w-]{12}|hf_[A-Za-z0-9]{20})|\bBearer\s")


def load(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The settings of a YAML file with `key=value` overrides; a dot means a section: `sample.temperature=1.2`.

    Raises:
        ValueError: the file is not a YAML mapping, an override is not `key=value`, or a setting is a secret.
    """
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(f"{path} is not YAML{f' (line {mark.line + 1})' if mark else ''}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is not a mapping of settings")
    overridden(settings, overrides)
    if secret := ", ".join(_secrets(settings)):
        raise ValueError(
            f"{path}: {secret}: settings are written to files that others may see, so they must not contain a key, "
            "a password or an address with one: set OPENAI_API_KEY and OPENAI_BASE_URL in the environment instead"
        )
    return settings


def overridden(settings: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The settings, changed in place by `key=value`.

    Raises:
        ValueError: an override is not `key=value`, or its path is not a section.
    """
    import yaml

    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not all(parts := name.split(".")):
            raise ValueError(f"{'a setting' if _SECRET_TEXT.search(override) else repr(override)} is not key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"the value of {name!r} is not YAML") from None
        section = settings
        for part in parts[:-1]:
            inner = section.get(part, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{name!r}: {part} is not a section")
            section[part] = dict(inner)  # a YAML alias may share this section with another key
            section = section[part]
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


def bad_row_options(bad_rows: str, max_bad: str) -> dict[str, object]:
    """--bad-rows and --max-bad as options of our commands; none for the commands' own default, which is "error".

    Raises:
        ValueError: `max_bad` is not a share.
    """
    share_of(max_bad)
    return {} if bad_rows == "error" else {"bad_rows": bad_rows, "max_bad": max_bad}


def _secrets(value: object, key: str = "") -> Iterator[str]:
    """The keys of settings that are secret by their name or by the look of their value."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _secrets(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _secrets(inner, key)
    elif value and (_SECRET_KEY.search(key) or (isinstance(value, str) and _SECRET_TEXT.search(value))):
        yield key


def _line(file: Path, error: Mapping[str, Any]) -> str:
    key = ".".join(map(str, error["loc"]))
    known = {"unexpected_keyword_argument": "unknown key", "missing_keyword_only_argument": "is missing"}
    return f"{file}: {key}: {known.get(error['type'], error['msg'])}"
