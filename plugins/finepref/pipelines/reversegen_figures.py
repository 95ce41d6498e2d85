"""What the steps of a ReverseGen run found, and the changes between them.

A proposer or target that was not trained is compared with nothing. Failure rates are those among valid
instructions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finepref.pipelines.intervals import Change, independent, over_repeats, paired, paired_means
from finepref.pipelines.steps import Pipeline
from finepref.synth.reversegen.given_answers import answered_right
from finepref.synth.reversegen.instructions import read_dicts

Figures = dict[str, Any]


class Repeat(NamedTuple):
    """What one repeat of the loop trained.

    Attributes:
        folder: of its steps, "" for the first repeat or such as "repeat_2/".
        rounds: of each round, whether the proposer was trained on its pairs.
        target: whether the target was trained.
        control: the same of the control; None = none was asked for.
    """

    folder: str
    rounds: tuple[bool, ...]
    target: bool
    control: bool | None = None


class Read(NamedTuple):
    """The figures of one repeat.

    Attributes:
        done: what it trained.
        lines: the proposer's name -> figures of its proposals.
        pairs: a round's name -> counts of `finepref reversegen pair`.
        after, control: figures on the held-out file; None = not trained.
        improve, control_records: counts of `finepref reversegen improve`.
        answers: of the target before and after, and before and of the control: held-out id -> whether it was right.
        entropies: the same: held-out id -> entropy in nats, of the judge `entropy`.
    """

    done: Repeat
    lines: dict[str, Figures]
    pairs: dict[str, Figures]
    after: Figures | None
    control: Figures | None
    improve: Figures
    control_records: Figures
    answers: dict[str, dict[str, bool]]
    entropies: dict[str, dict[str, float]]

    @property
    def last(self) -> str | None:
        """The last line whose proposer was trained by the round before it; None if no round trained it."""
        trained = [name for name, now in zip([*self.lines][1:], self.done.rounds, strict=True) if now]
        return trained[-1] if trained else None


def figures_of(pipeline: Pipeline, done: Repeat) -> Read:
    """Read what the steps of a repeat wrote."""

    def path(step: str, name: str) -> Path:
        return pipeline.path(f"{done.folder}{step}", name)

    numbered = [f"round_{number}" for number in range(1, len(done.rounds) + 1)]
    arms = {"after": ("after", done.target), "control": ("control/after", bool(done.control))}
    answers = {
        name: labels(path(f"{step}/judge", "judged.jsonl")) for name, (step, trained) in arms.items() if trained
    }
    evaluated = {
        name: read_object(path(f"{step}/eval", "eval.json")) if trained else None
        for name, (step, trained) in arms.items()
    }
    chosen = path("control/records", "improve.report.json")
    return Read(
        done,
        lines={name: read_object(path(f"{name}/eval", "eval.json")) for name in (*numbered, "final")},
        pairs={name: read_object(path(f"{name}/pair", "pairs.report.json")) for name in numbered},
        improve=read_object(path("improve/records", "improve.report.json")),
        control_records=read_object(chosen) if done.control is not None and chosen.exists() else {},
        answers=answers,
        entropies={
            name: entropies(path(f"{step}/judge", "judged.jsonl")) for name, (step, trained) in arms.items() if trained
        },
        **evaluated,
    )


def changes_between(
    read: Sequence[Read], before: dict[str, bool], entropy: dict[str, float]
) -> dict[str, Change | None]:
    """All comparisons that the report makes, by name; what was not trained is in none."""
    found: dict[str, Change | None] = {}
    trained = [(each.lines["round_1"], each.lines[each.last]) for each in read if each.last is not None]
    for name, count in (("failing of valid", failing_of_valid), ("invalid of proposed", invalid_of_proposed)):
        if trained:
            found[name] = _mean(independent(count(old), count(new)) for old, new in trained)
    for name, old, new in (
        ("accuracy after and before", None, "after"),
        ("accuracy after and of the control", "control", "after"),
    ):
        there = [each for each in read if {new, old or new} <= each.answers.keys()]
        if there:
            found[name] = _mean(
                _same(before if old is None else each.answers[old], each.answers[new]) for each in there
            )
    if entropy and (there := [each for each in read if each.entropies.get("after")]):
        found["entropy after and before"] = _mean(
            paired_means([(nats, new[name]) for name, nats in entropy.items() if name in new])
            for new in (each.entropies["after"] for each in there)
        )
    return found


def _mean(changes: Iterator[Change | None]) -> Change | None:
    there = [each for each in changes if each is not None]
    return over_repeats(there) if there else None


def _same(old: dict[str, bool], new: dict[str, bool]) -> Change | None:
    """The change over the questions that have a verdict in both."""
    return paired([(label, new[name]) for name, label in old.items() if name in new])


def failing_of_valid(each: Figures) -> tuple[int, int]:
    return each["classes"]["failing"], each["classes"]["failing"] + each["classes"]["solved"]


def invalid_of_proposed(each: Figures) -> tuple[int, int]:
    return each["classes"]["invalid"], each["rows"]


def read_object(path: Path) -> Figures:
    found: Figures = json.loads(path.read_bytes())
    return found


def labels(path: Path) -> dict[str, bool]:
    return {str(row["id"]): answered_right(row) for row in read_dicts(path)}


def entropies(path: Path) -> dict[str, float]:
    verdicts = {str(row["id"]): row.get("verdict") for row in read_dicts(path)}
    return {
        name: float(each["score"])
        for name, each in verdicts.items()
        if isinstance(each, dict) and each.get("judge") == "entropy"
    }


def right_answers(figures: Figures) -> tuple[int, int]:
    """(right answers, rows whose answer is known); with the judge `entropy` these are not the solved ones."""
    if calibration := figures.get("calibration"):
        return round(figures["accuracy"] * calibration["n"]), calibration["n"]
    return figures["classes"]["solved"], failing_of_valid(figures)[1]
