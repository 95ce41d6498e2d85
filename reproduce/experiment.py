"""An experiment: what its YAML file says.

    paper      what is tested
    seeds      how many, 1 to N, unless the command says another number
    begin      another YAML file, whose steps and datasets come first
    datasets   name -> further keys of its entry in dataset_info.json; the file is data/NAME.jsonl in the run's folder
    steps      name -> a command line, or the keys of a training; done once, in this order
    train      recipe and keys of every arm's training
    tune       arms, key, values, figure, expected: a value of the key for each of these arms, see `Tuning`
    arms       arm -> keys on top, or `untrained`, a model in place of one that is trained; plots compare with the
               first arm. `then` and `measures` of an arm replace those below by name; null leaves one out
    own        names of further datasets -> keys of their entries, as above; each run makes its own, {here}/NAME.jsonl
    then       name -> a command line, or the keys of a training: done for each run after its training, in this order
    measures   name -> a command line that writes figures for one run into a folder
    derived    figure -> two curves of the log; it is the first minus the second
    facts      step -> a sentence with the values of the JSON file that the step wrote; a `curve` in it is drawn
    figures    figure -> what it is, for the page
    claims     list of {text, paper, figure, arm, against, expected: higher or lower}, or {text, paper, not_testable}
    again      arm and seed of the run that is done a second time
    small      keys in place of those above, for a run in seconds on a model of random weights

In texts, {folder} is the folder of the whole experiment, {output} what a step has to write, {here} the folder of a
run, {run} the model that the training of its arm wrote, {last} that of the last training in `then`, {arm} and {seed}
its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "reproduction"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A value of a key for each of some arms, by runs with a seed of their own, before the seeds of the experiment.

    Attributes:
        arms: which are tuned, each alone.
        key: of the training.
        values: all are tried; of two that are equally good the first is taken.
        figure: what is compared.
        expected: "higher" or "lower", which is better.
        measures: name -> a command line, in place of those of the experiment.
        seed: of all these runs.
    """

    arms: list[str]
    key: str
    values: list[Any]
    figure: str
    expected: str
    measures: Mapping[str, str]
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """See the module's docstring. `page` is the folder of its YAML file."""

    page: Path
    paper: str
    seeds: int
    datasets: Mapping[str, Mapping[str, Any]]
    steps: Mapping[str, str | Mapping[str, Any]]
    train: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    figures: Mapping[str, str]
    claims: list[Mapping[str, Any]]
    tune: Tuning | None = None
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    then: Mapping[str, str | Mapping[str, Any]] = field(default_factory=dict)
    measures: Mapping[str, str] = field(default_factory=dict)
    derived: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    again: Mapping[str, Any] | None = None

    def part(self, name: str, arm: str) -> dict[str, Any]:
        """`then` or `measures` of an arm: those of all arms, with what the arm replaces or leaves out."""
        found = {**getattr(self, name), **self.arms[arm].get(name, {})}
        return {key: each for key, each in found.items() if each is not None}

    def trains(self, arm: str) -> bool:
        """Whether the runs of an arm train anything, so that its seeds differ."""
        later = self.part("then", arm).values()
        return "untrained" not in self.arms[arm] or any(isinstance(each, Mapping) for each in later)


def load(page: Path, *, small: bool = False) -> Experiment:
    """The experiment of a folder; `small`: with the keys of that section.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a key is unknown or missing, or a claim names an arm or a figure that is not there.
    """
    file = page / "experiment.yaml"
    found = _read(file)
    if begin := found.pop("begin", None):
        first = _read(page / begin)
        found |= {name: {**first[name], **(found.get(name) or {})} for name in first}
    smaller = found.pop("small", None)
    if small:
        found |= smaller or {}
    known = {each.name for each in fields(Experiment)} - {"page"}
    if unknown := found.keys() - known:
        raise ValueError(f"{file}: unknown key {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    try:
        if tune := found.pop("tune", None):
            found["tune"] = Tuning(**tune)
        made = Experiment(page=page, **found)
    except TypeError as error:
        raise ValueError(f"{file}: {error}") from None
    for claim in made.claims:
        if "not_testable" not in claim:
            _check(file, claim, made)
    if made.tune is not None:
        _check_expected(f"{file}: tune", made.tune.expected)
        if unknown := {*made.tune.arms} - made.arms.keys():
            raise ValueError(f"{file}: tune has {', '.join(sorted(unknown))}, which is no arm")
    return made


def _read(file: Path) -> dict[str, Any]:
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{file} is not a mapping")
    return found


def _check(file: Path, claim: Mapping[str, Any], made: Experiment) -> None:
    for key in ("arm", "against"):
        if claim.get(key) not in made.arms:
            raise ValueError(f"{file}: the claim {claim['text']!r} has {key} {claim.get(key)}, which is no arm")
    if claim.get("figure") not in made.figures:
        raise ValueError(f"{file}: the claim {claim['text']!r} is about {claim.get('figure')}, which is no figure")
    _check_expected(f"{file}: the claim {claim['text']!r}", claim.get("expected"))


def _check_expected(place: str, expected: object) -> None:
    if expected not in ("higher", "lower"):
        raise ValueError(f"{place} expects neither higher nor lower")
