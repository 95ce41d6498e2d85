"""An experiment: what its YAML file says.

    paper      what is tested
    seeds      how many, 1 to N, unless the command says another number
    begin      another YAML file, whose steps and datasets come first
    datasets   name -> further keys of its entry in dataset_info.json; the file is data/NAME.jsonl in the run's folder
    steps      name -> a command line, or the keys of a training; done once, in this order
    train      recipe and keys of every arm's training
    arms       arm -> keys on top, or `untrained`, a model that is only measured; plots compare with the first arm
    measures   name -> a command line that writes figures for one run into a folder
    derived    figure -> two curves of the log; it is the first minus the second
    facts      step -> a sentence with the values of the JSON file that the step wrote
    figures    figure -> what it is, for the page
    claims     list of {text, paper, figure, arm, against, expected: higher or lower}, or {text, paper, not_testable}
    again      arm and seed of the run that is done a second time
    small      keys in place of those above, for a run in seconds on a model of random weights

In texts, {folder} is the folder of the whole experiment, {output} what a step has to write, {run} the folder that the
training of an arm wrote, {arm} and {seed} its own.
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
    measures: Mapping[str, str] = field(default_factory=dict)
    derived: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    again: Mapping[str, Any] | None = None


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
        made = Experiment(page=page, **found)
    except TypeError as error:
        raise ValueError(f"{file}: {error}") from None
    for claim in made.claims:
        if "not_testable" not in claim:
            _check(file, claim, made)
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
    if claim.get("expected") not in ("higher", "lower"):
        raise ValueError(f"{file}: the claim {claim['text']!r} expects neither higher nor lower")
