"""Runs beside each other: which differ by what, the spread over seeds, and which differences are more than noise.

Runs that differ by their seed alone are a group. The first group is the one that the others are compared with.

Two kinds of noise have an interval each, at 95 %:

- of the records: paired bootstrap of the differences of each record's value, where the files have them;
- of the training: Student's t over the seeds, where both groups have at least two; paired if the seeds are the same.

A difference is called one only if every interval that is known excludes 0. With neither it is not shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev, variance
from typing import Any

from finepref.pipelines.run_folders import Figure, Run
from finepref.synth.intervals import NOT_SHOWN, bootstrap, shown, student

HIGHER = re.compile(
    r"accurac|exact_match|pass@|margin|win_rate|average_precision|(?<![a-z])(acc|acc_norm|f1|mc[12]|auc)(?![a-z])"
)
LOWER = re.compile(r"(?<![a-z])(loss|ece|ace|mce|perplexity)(?![a-z])")
OBJECTIVE = re.compile(r"loss\b|rewards/(chosen|rejected|margins|mean)|logps/|\bkl/")
"""Figures whose unit depends on the objective."""
ONLY_LOGS = {"tdpo_log_kl"}
"""Options that change what is logged, and no loss."""
UNNAMED = "(no receipt)"
NOT_COMPARABLE = "not comparable"
EQUAL = "equal in all runs"
SHORT = 24
"""Longest value in a group's name."""


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone.

    Attributes:
        name: how it is shown.
        runs: its runs.
        settings: what they have in common: dotted name -> value.
    """

    name: str
    runs: Sequence[Run]
    settings: Mapping[str, Any]

    @property
    def seeds(self) -> list[Any]:
        """The seed of each run; without a receipt, each run counts as a seed of its own."""
        return [seed_of(run, number) for number, run in enumerate(self.runs)]


@dataclass(frozen=True)
class Cell:
    """A figure of a group: mean over its seeds, their standard deviation (None of one), and the value of each."""

    mean: float
    spread: float | None
    values: Sequence[float]


@dataclass(frozen=True)
class Difference:
    """A figure of a group minus that of the first group.

    Attributes:
        value: the difference.
        records: its interval by the paired bootstrap over records, None if it is not known.
        number: how many records.
        seeds: its interval by Student's t over seeds, None if it is not known.
        verdict: "better", "worse", "higher", "lower", "not shown", or "not comparable".
        why: of the last two, the reason.
    """

    value: float
    records: tuple[float, float] | None
    number: int
    seeds: tuple[float, float] | None
    verdict: str
    why: str = ""


@dataclass(frozen=True)
class Comparison:
    """All of it.

    Attributes:
        groups: the first is what the others are compared with.
        differing: setting -> its value in each group.
        table: figure -> cell of each group, None where it is not known.
        differences: figure -> difference of each further group, None where one of the two is not known.
        notes: what a reader must know.
    """

    groups: Sequence[Group]
    differing: Mapping[str, Sequence[Any]]
    table: Mapping[str, Sequence[Cell | None]]
    differences: Mapping[str, Sequence[Difference | None]]
    notes: Sequence[str] = field(default_factory=list)

    @property
    def compared(self) -> int:
        """How many differences have an interval and a common unit."""
        found = (each for row in self.differences.values() for each in row if each)
        return sum((each.records or each.seeds) is not None for each in found if each.verdict != NOT_COMPARABLE)


def compare(runs: Sequence[Run], *, seed: int = 0) -> Comparison:
    """Group the runs and compare the groups. `seed`: of the bootstrap."""
    groups = grouped(runs)
    names = list(dict.fromkeys(name for run in runs for name in run.figures))
    names.sort(key=lambda name: name.startswith("train "))  # held-out figures first
    table = {name: [_cell(group, name) for group in groups] for name in names}
    differing = _differing(groups)
    differences = {name: [_difference(groups[0], group, name, seed) for group in groups[1:]] for name in names}
    return Comparison(groups, differing, table, differences, _notes(runs, groups))


def grouped(runs: Sequence[Run]) -> list[Group]:
    """The runs by the user's labels, else by their receipts; a run with neither is alone."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        known = identity(run)
        key = f"label {run.label}" if run.label else json.dumps(known, sort_keys=True, default=str)
        found.setdefault(key if run.label or known else f"{run.path} {run.name}", []).append(run)
    settings = [_common([identity(run) for run in own]) for own in found.values()]
    varying = [name for name in dict.fromkeys(name for each in settings for name in each) if _varies(name, settings)]
    short = 0 < len(varying) <= 2 and all(
        each.get(name) is not None and len(str(each[name])) <= SHORT for name in varying for each in settings
    )
    names = [_name(own, each, varying if short else ()) for own, each in zip(found.values(), settings, strict=True)]
    doubled = {name for name in names if names.count(name) > 1}
    names = [own[0].name if name in doubled else name for name, own in zip(names, found.values(), strict=True)]
    names = [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, start=1)]
    return [Group(*each) for each in zip(names, found.values(), settings, strict=True)]


def identity(run: Run) -> dict[str, Any]:
    """What a run was, apart from its seed and its place: dotted name -> value, from its receipt; {} without one."""
    receipt = run.receipt or {}
    if "stage" not in receipt:
        model, adapter = receipt.get("model") or {}, receipt.get("adapter") or {}
        known = {"model": _model(model), "adapter": _model(adapter)}
        return {name: value for name, value in known.items() if value}
    own = receipt["run"]
    reference = own.get("reference") or {}
    found: dict[str, Any] = {"stage": receipt["stage"], **receipt["settings"], "host": own.get("host")}
    found |= {
        "model": _model(own.get("model") or {}),
        "adapters": [_model(each) for each in own.get("adapters") or []],
    }
    found |= {"reference": reference.get("kind"), "reference model": _model(reference.get("model") or {})}
    for name in ("template", "chat_template_sha256", "cutoff_len", "epochs", "max_steps", "precision"):
        found[name] = own.get(name)
    for name in ("finetuning", "optimizer", "batch"):
        found |= {f"{name}.{key}": value for key, value in (own.get(name) or {}).items()}
    for each in receipt["datasets"]:
        found[f"data {each.get('name')}"] = "+".join(digest[:12] for digest in (each.get("files") or {}).values())
    return {name: value for name, value in found.items() if value not in (None, [], "")}


def seed_of(run: Run, number: int) -> Any:
    """The seed of a run; without a receipt its number."""
    receipt = run.receipt or {}
    return receipt.get("seed", (receipt.get("trained") or {}).get("seed", f"run {number}"))


def _model(found: Mapping[str, Any]) -> str:
    digest = found.get("weights_sha256")
    return f"{found.get('path', '')} {digest[:12]}" if digest else str(found.get("path") or "")


def _common(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first, *others = found
    return {name: value for name, value in first.items() if all(each.get(name) == value for each in others)}


def _varies(name: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    return len({json.dumps(each.get(name), default=str) for each in settings}) > 1


def _name(own: Sequence[Run], settings: Mapping[str, Any], varying: Sequence[str]) -> str:
    """The user's label; or the settings that differ, if they are few and short; or the name of the first run."""
    shown = ", ".join(f"{name.rpartition('.')[2]}={settings[name]}" for name in varying)
    return own[0].label or shown or own[0].name


def _differing(groups: Sequence[Group]) -> dict[str, list[Any]]:
    settings = [group.settings for group in groups]
    names = dict.fromkeys(name for each in settings for name in each)
    return {
        name: [each.get(name, UNNAMED if not each else None) for each in settings]
        for name in names
        if _varies(name, settings)
    }


def _by_seed(group: Group, name: str) -> dict[Any, list[Figure]]:
    """The figures of each seed; a seed that was run twice counts once."""
    found: dict[Any, list[Figure]] = {}
    for seed, run in zip(group.seeds, group.runs, strict=True):
        if name in run.figures:
            found.setdefault(seed, []).append(run.figures[name])
    return found


def _cell(group: Group, name: str) -> Cell | None:
    values = [fmean(each.value for each in own) for own in _by_seed(group, name).values()]
    return Cell(fmean(values), stdev(values) if len(values) > 1 else None, values) if values else None


def _records(group: Group, name: str) -> dict[str, float]:
    """Each record's mean over the runs, of the records that every run has; {} if a run has none."""
    found = [each.records for own in _by_seed(group, name).values() for each in own]
    if not found or not all(found):
        return {}
    return {key: fmean(each[key] for each in found) for key in found[0] if all(key in each for each in found)}


def _difference(first: Group, other: Group, name: str, seed: int) -> Difference | None:
    before, after = _cell(first, name), _cell(other, name)
    if before is None or after is None:
        return None
    value = after.mean - before.mean
    one, two = _records(first, name), _records(other, name)
    if one and two and one.keys() != two.keys():  # only of what both were evaluated on
        common = [key for key in one if key in two]
        if len(common) < 2:
            return Difference(value, None, len(common), None, NOT_COMPARABLE, "they were evaluated on other records")
        value = fmean(two[key] - one[key] for key in common)
    records, number = _over_records(one, two, seed)
    by_seed = _over_seeds(_by_seed(first, name), _by_seed(other, name))
    if OBJECTIVE.search(name) and (why := _other_unit(first, other, name)):
        return Difference(value, records, number, by_seed, NOT_COMPARABLE, why)
    intervals = [each for each in (records, by_seed) if each is not None]
    if not intervals:
        several = min(len(before.values), len(after.values)) > 1
        why = "no seed differs from another" if several else "no values per record, and fewer than two seeds each"
        if len({*before.values, *after.values}) == 1:
            why = EQUAL
        return Difference(value, None, 0, None, NOT_SHOWN, why)
    if len(words := {shown(*each) for each in intervals}) == 1 and NOT_SHOWN not in words:
        return Difference(value, records, number, by_seed, _word(first, name, value))
    return Difference(value, records, number, by_seed, NOT_SHOWN, "an interval holds 0")


def _other_unit(first: Group, other: Group, name: str) -> str:
    """Why a loss or a reward of two groups has no common unit, "" if it has one, as what one model gave has."""
    scorers = {run.figures[name].scored_by for group in (first, other) for run in group.runs if name in run.figures}
    if len(scorers) == 1 and "" not in scorers:
        return ""
    if first.settings.get("stage") != other.settings.get("stage"):
        return "another stage has another unit"
    both = (first.settings, other.settings)
    known = {key for group in (first, other) for key in (group.runs[0].receipt or {}).get("settings", {})}
    names = sorted(key for key in known - ONLY_LOGS if first.settings.get(key) != other.settings.get(key))
    scales = [key for key in names if re.search(r"loss\b", name) or ("rewards" in name and _scales_reward(key, both))]
    return f"its unit depends on {', '.join(scales)}" if scales else ""


def _scales_reward(key: str, both: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an option that differs is part of the reward: beta, gamma, and the KL that TDPO1's and TDPO2's has."""
    if key == "tdpo_variant":
        return "dpo" in (each.get(key) for each in both)
    return bool(re.search("beta|gamma", key))


def _word(group: Group, name: str, value: float) -> str:
    told = next((run.figures[name].higher_is_better for run in group.runs if name in run.figures), None)
    if told is None:
        told = True if HIGHER.search(name) else False if LOWER.search(name) else None
    if told is None:
        return "higher" if value > 0 else "lower"
    return "better" if (value > 0) == told else "worse"


def _over_records(
    before: Mapping[str, float], after: Mapping[str, float], seed: int
) -> tuple[tuple[float, float] | None, int]:
    keys = [key for key in before if key in after]
    if len(keys) < 2:
        return None, len(keys)
    groups = [key.partition("\0")[0] for key in keys]  # all negatives of one record together
    _, low, high = bootstrap([after[key] - before[key] for key in keys], groups=groups, seed=seed)
    return ((low, high) if low == low else None), len(keys)


def _over_seeds(
    before: Mapping[Any, Sequence[Figure]], after: Mapping[Any, Sequence[Figure]]
) -> tuple[float, float] | None:
    """Student's t interval of the difference: paired if the groups have the same seeds, else Welch's.

    None if nothing varies, as of a share of few records: that two seeds agree exactly is no measure of their noise.
    """
    one, two = ({seed: fmean(each.value for each in own) for seed, own in part.items()} for part in (before, after))
    if len(one) < 2 or len(two) < 2:
        return None
    mean = fmean(two.values()) - fmean(one.values())
    if one.keys() == two.keys() and not any(str(seed).startswith("run ") for seed in one):
        error, freedom = (variance(two[seed] - one[seed] for seed in one) / len(one)) ** 0.5, len(one) - 1
    else:
        parts = [variance(each.values()) / len(each) for each in (one, two)]
        error = sum(parts) ** 0.5
        below = sum(part**2 / (len(each) - 1) for part, each in zip(parts, (one, two), strict=True))
        freedom = int(sum(parts) ** 2 / below) if below else len(one) + len(two) - 2
    if error <= 1e-9 * max(abs(value) for value in (*one.values(), *two.values(), 1e-30)):
        return None
    width = error * student(max(freedom, 1))
    return mean - width, mean + width


def _drawn(run: Run) -> bool:
    """Whether the run's held-out records are a share of its training data, drawn by its seed."""
    command = ((run.receipt or {}).get("run") or {}).get("command") or {}
    return bool((command.get("settings") or {}).get("val_size"))


def _notes(runs: Sequence[Run], groups: Sequence[Group]) -> list[str]:
    notes = [f"{run.path}: {note}" for run in runs for note in run.notes]
    for group in groups:
        twice = sorted({str(seed) for seed in group.seeds if group.seeds.count(seed) > 1})
        if twice:
            notes.append(f"{group.name}: seed {', '.join(twice)} was run more than once; its runs count as one")
        if len({json.dumps(identity(run), sort_keys=True, default=str) for run in group.runs}) > 1:
            notes.append(f"{group.name}: its runs differ by more than the seed")
    if unnamed := [str(run.path) for run in runs if not run.receipt]:
        notes.append(f"no receipt, so what these runs were is not known: {', '.join(dict.fromkeys(unnamed))}")
    if any(len({*group.seeds}) > 1 and any(map(_drawn, group.runs)) for group in groups):
        notes.append("val_size draws the held-out records by the seed, so that those of other seeds are others")
    versions = {json.dumps(run.receipt.get("versions"), sort_keys=True) for run in runs if run.receipt}
    if len(versions) > 1:
        notes.append("the runs had different versions of packages; see their receipts")
    return notes
