"""Patch cards: every use of a host's internals is described by a TOML file in `patches/` and checked first.

A card either replaces a host object (`replacement`), or describes one that we rely on (no `replacement`). If the host
differs from a card, that is `HostDrift`. Drift never breaks the host's own stages: the object stays unchanged, the
reason is printed to standard error, and a finepref stage that needs the card refuses to start.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.resources import files
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from finepref import attach as attach_table
from finepref import stages


class HostDrift(RuntimeError):  # noqa: N818 - the name users read
    """A host differs from a patch card. The message has card, host version, what was expected and what was found."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One patch card. `signature` has no annotations: they can change while calls stay the same."""

    name: str
    host: str
    versions: str
    module: str
    attribute: str
    signature: str = ""
    replacement: str = ""
    fields: tuple[str, ...] = ()
    methods: dict[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()  # keys that the target must have, if it is a dict
    tested: dict[str, str]
    why: str
    without_it: str
    upstream: str
    drop_when: str

    @property
    def target(self) -> str:
        """Dotted name of the host object."""
        return f"{self.module}.{self.attribute}"


@dataclass
class State:
    """Result of checking a card in this process."""

    card: Card
    outcome: str = "not loaded"  # "applied", "verified" (relied upon), "drift" or "not loaded"
    source: str = ""  # "tested" if our tests ran on this source of the host, else "unverified"
    detail: str = ""


# Hosts that must be adapted before every machine can import them -> the function that adapts them.
MADE_READY = {"openrlhf": "finepref.hosts.openrlhf.compat:install"}


CARDS_GROUP = "finepref.cards"


@cache
def load_cards() -> dict[str, Card]:
    """All cards by name: finepref's, then those of other packages.

    An entry point of the group `finepref.cards` names a package that contains them as HOST/NAME.toml. Such a card may
    have a `replacement` only in a module that finepref already watches (see `finepref.attach`).

    Raises:
        ValueError: a card with an unknown or missing key, two cards of one name, or a `replacement` in a module that
            is not watched; the message names package and card.
    """
    cards: dict[str, Card] = {}
    for package in ("finepref.patches", *(each.value for each in entry_points(group=CARDS_GROUP))):
        for card in _cards_of(package):
            if card.name in cards:
                raise ValueError(f"{package}: patch card {card.host}/{card.name}: a card of that name exists already")
            if card.replacement and card.module not in attach_table.WATCHED:
                raise ValueError(
                    f"{package}: patch card {card.host}/{card.name}: `replacement` needs a module that finepref "
                    f"watches, and {card.module} is not one; leave it out to only check what you rely on"
                )
            cards[card.name] = card
    return cards


def _cards_of(package: str) -> Iterator[Card]:
    for folder in sorted(files(package).iterdir(), key=lambda entry: entry.name):
        if not folder.is_dir():
            continue
        for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if not file.name.endswith(".toml"):
                continue
            table = tomllib.loads(file.read_text(encoding="utf-8"))
            table |= {name: tuple(table.get(name, ())) for name in ("fields", "keys")}
            try:
                yield Card(name=file.name.removesuffix(".toml"), host=folder.name, **table)
            except TypeError as error:
                raise ValueError(f"{package}: patch card {folder.name}/{file.name}: {error}") from error


STATES: dict[str, State] = {}


def state_of(name: str) -> State:
    """The state of a card in this process."""
    return STATES.setdefault(name, State(load_cards()[name]))


def host_version(host: str) -> str:
    """Version of the installed host, "" if it is not installed."""
    try:
        return version(host)
    except PackageNotFoundError:
        return ""


def canonical_signature(function: Any) -> str:
    """Parameters with their kinds, and `=` for a default: "(a, b=, *, c=, **rest)"."""
    parameters = inspect.signature(function).parameters.values()
    bare = [
        parameter.replace(
            annotation=inspect.Parameter.empty,
            default=inspect.Parameter.empty if parameter.default is inspect.Parameter.empty else _Default(),
        )
        for parameter in parameters
    ]
    return str(inspect.Signature(bare))


class _Default:
    """Stands for any default in a canonical signature."""

    def __repr__(self) -> str:
        return ""


def source_digest(target: Any, keys: Sequence[str] = ()) -> str:
    """First 16 hex digits of the SHA-256 of a function's or class's source, or of the entries `keys` of a dict."""
    text = repr({key: target[key] for key in keys}) if keys else inspect.getsource(target)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def mismatch(card: Card, module: ModuleType, installed: str) -> str:
    """The first difference between host and card, "" if there is none."""
    from packaging.specifiers import SpecifierSet

    if not SpecifierSet(card.versions).contains(installed, prereleases=True):
        return f"expected {card.host} {card.versions}, found {installed or 'none'}"
    target = getattr(module, card.attribute, None)
    if target is None:
        return f"expected {card.target}, found no such name"
    if card.keys:
        if not isinstance(target, dict):
            return f"expected {card.target} to be a table, found a {type(target).__name__}"
        missing = set(card.keys) - set(target)
        if missing:
            return f"expected {card.target} to have the keys {', '.join(sorted(missing))}"
    elif card.methods or card.fields:
        if not inspect.isclass(target):
            return f"expected {card.target} to be a class, found a {type(target).__name__}"
        missing = set(card.fields) - ({f.name for f in fields(target)} if is_dataclass(target) else set())
        if missing:
            return f"expected {card.target} to have the fields {', '.join(sorted(missing))}"
        for name, signature in card.methods.items():
            method = inspect.getattr_static(target, name, None)
            if method is None:
                return f"expected {card.target}.{name}{signature}, found no such method"
            found = canonical_signature(getattr(method, "__func__", method))
            if found != signature:
                return f"expected {card.target}.{name}{signature}, found {found}"
    elif not inspect.isfunction(target):
        return f"expected {card.target} to be a function, found a {type(target).__name__}"
    elif (found := canonical_signature(target)) != card.signature:
        return f"expected {card.target}{card.signature}, found {found}"
    return ""


def _check(card: Card, module: ModuleType) -> State:
    """Compare the host with the card and record the result."""
    state = state_of(card.name)
    installed = host_version(card.host)
    wrong = mismatch(card, module, installed)
    if wrong:
        state.outcome, state.detail = "drift", wrong
    else:
        digest = source_digest(getattr(module, card.attribute), card.keys)
        state.outcome = "verified"
        state.source = "tested" if digest in card.tested.values() else "unverified"
        state.detail = "" if state.source == "tested" else f"source {digest} of {card.host} {installed} is not tested"
    return state


def attach(module: ModuleType) -> None:
    """Apply the cards of a host module that has just been imported.

    Raises:
        HostDrift: a card does not fit, and this process was started to run a finepref stage. In any other process the
            host continues unchanged, and stages that need the card refuse to start.
    """
    for card in load_cards().values():
        if card.module != module.__name__ or not card.replacement:
            continue
        state = _check(card, module)
        if state.outcome == "verified":
            original = getattr(module, card.attribute)
            try:
                setattr(module, card.attribute, resolve_name(card.replacement)(original))
                state.outcome = "applied"
            except Exception as error:  # the host must keep running; a stage that needs the card reports the cause
                state.outcome, state.detail = "drift", f"{card.replacement} failed with {error!r}"
        if state.outcome == "drift":
            if stages.find(asked_stage(sys.argv)):
                raise _drift([state])
            print(f"finepref: {_line(state)}", file=sys.stderr)


def require(names: Iterable[str], *, needed_by: str) -> None:
    """Check that every named card is in place, before anything expensive starts.

    Raises:
        HostDrift: naming each card that is missing, did not fit, or was never applied.
    """
    bad: list[State] = []
    for name in names:
        if name not in load_cards():
            raise HostDrift(f"{needed_by} needs the patch card '{name}', which is not installed; reinstall finepref")
        card = load_cards()[name]
        state = state_of(name)
        if not card.replacement:
            try:
                state = _check(card, importlib.import_module(card.module))
            except ImportError as error:
                state.outcome, state.detail = "drift", f"expected the module {card.module}, found: {error}"
        elif state.outcome == "not loaded":
            state.detail = f"{card.module} was not imported with finepref attached (FINEPREF_DISABLE set, or renamed?)"
        if state.outcome not in ("applied", "verified"):
            bad.append(state)
        elif state.source == "unverified":
            print(f"finepref: warning: card {name}: {state.detail}", file=sys.stderr)
    if bad:
        raise _drift(bad)


def as_row(state: State) -> dict[str, str]:
    """A card's state as text, for tables and JSON."""
    return {
        "card": state.card.name,
        "host": state.card.host,
        "version": host_version(state.card.host) or "not installed",
        "target": state.card.target,
        "kind": "rebinds" if state.card.replacement else "relies on",
        "state": f"{state.outcome}, source {state.source}" if state.source else state.outcome,
        "detail": state.detail,
        "why": state.card.why,
        "without_it": state.card.without_it,
        "upstream": state.card.upstream,
        "drop_when": state.card.drop_when,
    }


def report(names: Iterable[str]) -> list[dict[str, str]]:
    """Name, target and state of the named cards, for the receipt."""
    rows = []
    for name in names:
        state = state_of(name)
        rows.append({"card": name, "target": state.card.target, "outcome": state.outcome, "source": state.source})
    return rows


def survey() -> list[State]:
    """Check every card against the installed hosts, for `finepref doctor`. Imports the hosts."""
    surveyed = []
    for card in load_cards().values():
        if not host_version(card.host):
            surveyed.append(State(card, "host not installed"))
            continue
        try:
            if card.host in MADE_READY:
                resolve_name(MADE_READY[card.host])()
            module = importlib.import_module(card.module)
        except ImportError as error:
            surveyed.append(State(card, "drift", "", f"expected the module {card.module}, found: {error}"))
            continue
        surveyed.append(state_of(card.name) if card.replacement else _check(card, module))
    return surveyed


def _line(state: State) -> str:
    installed = host_version(state.card.host)
    return f"card '{state.card.name}' ({state.card.host} {installed}): {state.detail}"


def _drift(states: Sequence[State]) -> HostDrift:
    lines = "\n".join(f"  {_line(state)}" for state in states)
    return HostDrift(f"the host differs from what finepref expects\n{lines}\n  see `finepref doctor`")


def stop_if_asked(module: str) -> None:
    """While finepref is off: exit if a stage of finepref was asked for, since the host does not know it.

    Args:
        module: the host's parser, or a command line under `openrlhf.cli`, which is about to be imported.
    """
    if module == attach_table.HOST_PARSER:
        asked = asked_stage(sys.argv)
        row = stages.find(asked) or _switched_on(sys.argv)
    else:
        asked = module.rpartition(".")[2]
        row = stages.of_command(asked)
    if row is not None:
        value = os.environ[attach_table.SWITCH]
        name = row.switch if row.switch else asked
        sys.exit(f"{name} is finepref's, and {attach_table.SWITCH}={value} switches it off: unset it")


def asked_stage(arguments: Sequence[str]) -> str | None:
    """The stage named on a command line or in its config file, None if there is none.

    It is read without the host's parser, so that drift can stop the run before the host has imported its modules.
    """
    stage = None
    for text in _settings_files(arguments):
        written = re.search(r'^\s*"?stage"?\s*:\s*["\']?([\w-]+)', text, re.MULTILINE)
        stage = written.group(1) if written else stage
    for position, argument in enumerate(arguments):
        if found := re.match(r"(?:--)?stage=(.+)", argument):
            stage = found.group(1)
        elif argument == "--stage" and position + 1 < len(arguments):
            stage = arguments[position + 1]
    return stage


def _settings_files(arguments: Sequence[str]) -> Iterator[str]:
    """The texts of the YAML and JSON files on a command line."""
    for argument in arguments:
        if argument.endswith((".yaml", ".yml", ".json")) and os.path.isfile(argument):
            yield Path(argument).read_text(encoding="utf-8", errors="replace")


def _switched_on(arguments: Sequence[str]) -> stages.Stage | None:
    """The stage whose switch is set on a command line or in its config file."""
    for row in stages.all_stages().values():
        if not row.switch:
            continue
        written = re.compile(rf'^\s*"?{row.switch}"?\s*:\s*true\b', re.MULTILINE)
        given = re.compile(rf"(--)?{row.switch}(=true)?", re.IGNORECASE)
        if any(map(written.search, _settings_files(arguments))) or any(map(given.fullmatch, arguments)):
            return row
    return None
