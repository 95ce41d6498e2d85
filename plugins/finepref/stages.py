"""The installed stages. Their rows come from the entry-point group `finepref.stages`.

finepref's own rows are at the end of the files in `finepref.methods`. Another package adds a stage in the same way:
a method file, its row, and an entry point that names the row. CONTRIBUTING.md explains the steps, and
examples/own_stage is such a package. A row that cannot be used is reported and left out; the host's own stages and
all other stages still run.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple, get_args

from finepref.formats.problems import CODES
from finepref.formats.records import FORMATS
from finepref.methods.options import BASES, HOSTS, in_yaml
from finepref.methods.shapes import HOST_STAGES
from finepref.methods.stage import Batch, Stage

GROUP = "finepref.stages"


class StageError(ValueError):
    """A row that cannot be used. The message names package, row and field."""


# Field -> number of positional arguments that its function is called with.
ARGUMENTS = {"losses": 2, "weigh": 3, "kl": 1, "settings": 1, "check_record": 2, "check_data": 2}
NAME = re.compile(r"[a-z][a-z0-9_]*")
CODE = re.compile(r"(?!FP)[A-Z]{2,8}\d{3}")


def problems_of(row: Any) -> list[str]:
    """What is missing or malformed in a row, as texts "FIELD: what is wrong". Empty if the row can be used."""
    if not isinstance(row, Stage):
        return [f"expected a finepref.methods.stage.Stage, or a tuple of them, got {type(row).__name__}"]
    found = []
    texts = ("name", "title", "paper", "recipe", "demo_dataset", "switch", "openrlhf_command", "openrlhf_group")
    for field in texts:
        value = getattr(row, field)
        if type(value) is not str or (field in ("name", "title", "paper") and not value.strip()):
            found.append(f"{field}: expected a text, got {value!r}")
    if type(row.name) is str and not NAME.fullmatch(row.name):
        found.append(f"name: {row.name!r} must be lower-case letters, digits and _, starting with a letter")
    elif row.name in HOST_STAGES:
        found.append(f"name: {row.name} is a stage of LLaMA-Factory itself; choose another")
    if row.shape not in get_args(Batch):
        return [*found, f"shape: expected {', '.join(get_args(Batch))}, got {row.shape!r}"]
    found += _problems_of_formats(row)
    base = BASES[row.shape]
    if not (isinstance(row.options, type) and issubclass(row.options, base)):
        found.append(f"options: expected a dataclass derived from finepref.methods.options.{base.__name__}")
    else:
        found += _problems_of_options(row)
    for field, count in ARGUMENTS.items():
        value = getattr(row, field)
        if value is None:
            if field == "losses" and row.shape != "single":
                found.append(f"losses: a stage of shape {row.shape} needs the function of its loss")
            continue
        found += [f"{field}: {text}" for text in _problems_of_function(value, count)]
    if not isinstance(row.reference, bool):
        found += [f"reference: {text}" for text in _problems_of_function(row.reference, 1)]
    if row.kl is not None and row.reference is False:
        found.append("kl: the KL is to a reference model, but `reference` is False")
    for field in ("metrics", "cards"):
        value = getattr(row, field)
        if type(value) is not tuple or not all(type(each) is str for each in value):
            found.append(f"{field}: expected a tuple of texts, got {value!r}")
    for code, meaning in (row.codes or {}).items():
        if not CODE.fullmatch(code) or type(meaning) is not str or not meaning.strip():
            found.append(f"codes: expected a code such as AB001, not FP..., and a text, got {code!r}: {meaning!r}")
    return found


def _problems_of_formats(row: Stage) -> list[str]:
    if type(row.formats) is not tuple or not row.formats:
        return [f"formats: expected a tuple with one of {', '.join(FORMATS)} or more, got {row.formats!r}"]
    readable = row.of_shape.formats
    return [
        f"formats: {name!r} does not fit shape {row.shape}; use {' or '.join(readable)}"
        for name in row.formats
        if name not in readable
    ]


def _problems_of_options(row: Stage) -> list[str]:
    found = []
    for field in fields(row.options):
        if "host_keys" not in field.metadata:
            found.append(f"options.{field.name}: declare it with finepref.methods.options.option")
        elif not str(field.metadata["help"]).strip():
            found.append(f"options.{field.name}: its help is empty")
        elif not field.metadata["host_keys"] and not _has_own_name(field.name, row):
            found.append(
                f"options.{field.name}: its name must begin with {row.name}_ or a word of that, as {row.name}_"
                f"{field.name}, so that it cannot be a key of the host's"
            )
    if not found and row.switch and row.switch not in row.options.described("llamafactory"):
        found.append(f"switch: {row.switch} is not one of the stage's options")
    if not found:
        found += [f"options: {error}" for error in _refused_defaults(row)]
    return found


def _has_own_name(option: str, row: Stage) -> bool:
    """Whether no key of a host's can have the name of a new option."""
    shared = {field.name for base in BASES.values() for field in fields(base)}
    begins = option.startswith((f"{row.name}_", *(f"{word}_" for word in str(row.name).split("_"))))
    return begins or option in shared or option == row.switch


def _refused_defaults(row: Stage) -> list[str]:
    try:
        for host in HOSTS:
            row.options.read(host, {}, in_yaml)
    except (ValueError, TypeError, NameError) as error:
        return [f"the defaults are refused, or a type cannot be read: {error}"]
    return []


def _problems_of_function(value: Any, count: int) -> list[str]:
    if not callable(value):
        return [f"expected a function, got {type(value).__name__}"]
    try:
        inspect.signature(value).bind(*[None] * count)
    except TypeError:
        return [f"is called with {count} arguments, but its signature is {inspect.signature(value)}"]
    return []


class Registry(NamedTuple):
    """All rows of the installed packages.

    Attributes:
        rows: name of a usable row -> the row.
        packages: name of a usable row -> its package.
        broken: name of an unusable row, or of an entry point that cannot be loaded -> the error message.
    """

    rows: dict[str, Stage]
    packages: dict[str, str]
    broken: dict[str, str]


@cache
def registry() -> Registry:
    """Load and check the rows of all installed packages, once per process."""
    found: dict[str, Stage] = {}
    owners: dict[str, str] = {}
    broken: dict[str, str] = {}
    for entry_point in sorted(entry_points(group=GROUP), key=lambda each: (each.name != "finepref", each.name)):
        package = _package_of(entry_point)
        try:
            rows = entry_point.load()
        except Exception as error:  # an error in another package must not stop the host
            broken[entry_point.name] = f"{package}: entry point {entry_point.name} = {entry_point.value}: {error!r}"
            continue
        for number, row in enumerate(rows if isinstance(rows, tuple) else (rows,)):
            name = getattr(row, "name", None) or f"{entry_point.name}[{number}]"
            problems = problems_of(row)
            if name in found:
                problems.append(f"name: {owners[name]} has a stage {name} already")
            problems += _clashes(row, found, owners) if not problems else []
            if problems:
                lines = "".join(f"\n  {package}, stage {name}, {problem}" for problem in problems)
                key = str(name) if name not in found else f"{package} {name}"
                broken[key] = f"a stage of {package} cannot be used{lines}"
            else:
                found[row.name], owners[row.name] = row, package
                CODES.update(row.codes or {})
    return Registry(found, owners, broken)


def _package_of(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist else "an unknown package"


def _clashes(row: Stage, found: Mapping[str, Stage], owners: Mapping[str, str]) -> list[str]:
    """Conflicts of a row with earlier ones: OpenRLHF command, or another meaning of an option or a code."""
    clashes = []
    own = row.options.described("llamafactory")
    for other in found.values():
        theirs = other.options.described("llamafactory")
        clashes += [
            f"options.{name}: stage {other.name} of {owners[other.name]} has another option of that name"
            for name in own.keys() & theirs.keys()
            if own[name] != theirs[name] and not own[name].host_key
        ]
        clashes += [
            f"codes: {code} means something else already"
            for code, meaning in (row.codes or {}).items()
            if CODES.get(code, meaning) != meaning
        ]
        if row.command and row.command == other.command:
            clashes.append(f"openrlhf_command: {row.command} is that of stage {other.name}")
    return clashes


def all_stages() -> dict[str, Stage]:
    """Every usable stage by name."""
    return registry().rows


@cache
def report_broken() -> None:
    """Print why rows cannot be used, to standard error, once per process."""
    for text in registry().broken.values():
        print(f"finepref: {text}", file=sys.stderr)


def as_row(row: Stage) -> dict[str, str]:
    """A stage as text, for tables and JSON."""
    return {
        "stage": row.name,
        "package": registry().packages[row.name],
        "title": row.title,
        "paper": row.paper,
        "formats": ", ".join(row.formats),
        "LLaMA-Factory": f"stage: {row.host_stage} with {row.switch}: true" if row.switch else f"stage: {row.name}",
        "OpenRLHF": f"openrlhf.cli.{row.command}" if row.command else "not supported",
    }


def find(name: str | None) -> Stage | None:
    """The stage of that name, or None if finepref has none (a stage of the host).

    Raises:
        StageError: the stage is registered, but its row cannot be used.
    """
    if not name:
        return None
    rows, _, broken = registry()
    if name in broken and name not in rows:
        raise StageError(broken[name])
    return rows.get(name)


def of_command(command: str) -> Stage | None:
    """The stage with that command on OpenRLHF, e.g. "train_tdpo"; None if there is no such stage."""
    return next((row for row in all_stages().values() if command and row.command == command), None)


def switched(host_stage: str, keys: Mapping[str, object]) -> Stage | None:
    """The stage that a key turns a host's stage into, as `granular: true` does with `stage: sft`; else None."""
    rows = (row for row in all_stages().values() if row.switch and row.host_stage == host_stage)
    return next((row for row in rows if keys.get(row.switch)), None)
