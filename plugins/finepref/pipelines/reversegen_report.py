"""The report of a ReverseGen run: the proposals of each round, and the target before and after.

It says no more than was done and than the figures show. A proposer or target that was not trained is called so, and
compared with nothing. Failure rates are compared among valid instructions; a change whose 95 % interval holds 0 is not
shown (`finepref.pipelines.intervals`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from finepref.formats.files import write_json
from finepref.formats.markdown_table import table
from finepref.pipelines.intervals import Change, told
from finepref.pipelines.report import commands
from finepref.pipelines.reversegen_figures import (
    Figures,
    Read,
    Repeat,
    changes_between,
    entropies,
    failing_of_valid,
    figures_of,
    invalid_of_proposed,
    labels,
    read_object,
    right_answers,
)
from finepref.pipelines.steps import Pipeline
from finepref.synth.intervals import wilson
from finepref.synth.reversegen.instructions import read_dicts

EXAMPLES = 4


def write(pipeline: Pipeline, repeats: Sequence[Repeat], *, private: bool) -> None:
    """Write report.md, results.json and rounds.png from the outputs of the steps.

    Args:
        pipeline: the run's folder.
        repeats: what each repeat trained, the first one first.
        private: show no instruction.
    """
    read = [figures_of(pipeline, each) for each in repeats]
    before, first = read_object(pipeline.path("before/eval", "eval.json")), read[0]
    held_out = pipeline.path("before/judge", "judged.jsonl")
    changes = changes_between(read, labels(held_out), entropies(held_out))
    own, *others = [_results(each) for each in read]
    results = own | {"before": before, "changes": {name: _plain(each) for name, each in changes.items()}}
    write_json(pipeline.folder / "results.json", results | ({"repeats": others} if others else {}))
    _plot(pipeline.folder / "rounds.png", read)
    rounds = len(first.done.rounds)
    several = "" if len(read) == 1 else f", {len(read)} repeats"
    parts = [
        f"# ReverseGen, {rounds} round{'s' * (rounds != 1)}{several}\n",
        lead(repeats),
        _verdict(read, changes),
        "## What the proposer found\n\n"
        "Each line is a proposer with few-shot prompts of its own. `round_1` is the one after its warm-up, each later "
        "line the one after the pairs of the round before; without pairs it is not trained, and so the same as in the "
        "line above. A valid instruction has a verdict: failing or solved. In brackets are 95 % intervals (Wilson), "
        "which take proposals as independent.\n",
        "\n\n".join(_titled(each, read, _rounds(each)) for each in read),
        "\n![rounds](rounds.png)\n",
        "Pairs for DPO, and the few-shot prompts by what their proposals were:\n",
        "\n\n".join(_titled(each, read, _pairs(each)) for each in read),
        "\nWhy proposals are invalid, unjudged or not there:\n",
        "\n\n".join(_titled(each, read, _reasons(each)) for each in read),
        "\n## The target on held-out instructions\n",
        _target(before, read),
        _untrained(read),
        _over_repeats(read, before) if len(read) > 1 else "",
        "" if private else _examples(pipeline, [*first.lines]),
        "\n## What was run\n",
        commands(pipeline),
    ]
    text = "\n".join(part for part in parts if part) + "\n"
    (pipeline.folder / "report.md").write_text(text, encoding="utf-8")


def lead(repeats: Sequence[Repeat]) -> str:
    """The first sentence: what was not trained, if anything was not."""
    proposers, targets = ([*map(any, (each.rounds for each in repeats))], [each.target for each in repeats])
    if not any(proposers) and not any(targets):
        return (
            "This loop learnt nothing: no round had enough pairs to train the proposer on, and there were not enough "
            "good answers to train the target on. Below is what was found.\n"
        )
    said = []
    if not all(targets):
        said.append(
            _which("The target was not trained", targets, "there were not enough good answers for it to learn")
        )
    if not all(proposers):
        said.append(_which("The proposer was not trained after its warm-up", proposers, "no round had enough pairs"))
    return "".join(f"{each}\n" for each in said)


def _which(what: str, trained: Sequence[bool], why: str) -> str:
    count = len(trained) - sum(trained)
    where = "" if count == len(trained) else f" in {count} of {len(trained)} repeats"
    return f"{what}{where}: {why}. Nothing is compared with it."


def _results(each: Read) -> Figures:
    trained = {"proposer": [*each.done.rounds], "target": each.done.target, "control": each.done.control}
    return {
        "rounds": each.lines,
        "pairs": each.pairs,
        "trained": trained,
        "improve": each.improve,
        "after": each.after,
        "control": each.control,
    }


def _plain(change: Change | None) -> Figures | None:
    return None if change is None else change._asdict() | {"shown": change.shown}


PROPOSERS = "From the warm-up proposer to the last trained one"
WORDS = {
    "failing of valid": (PROPOSERS, "the failure rate among valid instructions"),
    "invalid of proposed": (PROPOSERS, "the share of invalid proposals"),
    "accuracy after and before": ("From before to after", "the target's accuracy on held-out instructions"),
    "accuracy after and of the control": ("From the control to the target", "the accuracy on held-out instructions"),
    "entropy after and before": ("From before to after", "the entropy of the target's answers to these", "nats"),
}
"""What each comparison is about: between what, and which figure."""


def _verdict(read: Sequence[Read], changes: dict[str, Change | None]) -> str:
    """The comparisons, each in a sentence that the figures support."""
    said = []
    for name, change in changes.items():
        between, figure, *unit = WORDS[name]
        said.append(told(between, figure, change, *unit))
    if len(read) == 1 and read[0].last is not None:
        old, new = read[0].lines["round_1"], read[0].lines[read[0].last]
        said.append(
            f"Self-BLEU went from {_number(old['self_bleu'])} to {_number(new['self_bleu'])}, distinct texts from "
            f"{_percent(old['distinct'])} to {_percent(new['distinct'])}."
        )
    return "".join(f"- {each}\n" for each in said)


def _titled(each: Read, read: Sequence[Read], text: str) -> str:
    return text if len(read) == 1 else f"Repeat {read.index(each) + 1}:\n\n{text}"


def _rounds(each: Read) -> str:
    header = ["proposer", "trained on", "proposed", "failing", "solved", "duplicate", "invalid", "unjudged"]
    header += ["unproposed", "failing of valid", "invalid of proposed", "self-BLEU", "distinct", "entropy (nats)"]
    trained = ["warm-up"]
    for name, now in zip(each.pairs, each.done.rounds, strict=True):
        count = each.pairs[name]["pairs"]
        trained.append(f"{count} pairs of {name}" if now else f"not trained ({count} pairs in {name})")
    lines = []
    for (name, figures), how in zip(each.lines.items(), trained, strict=True):
        rates = [_share(failing_of_valid(figures)), _share(invalid_of_proposed(figures))]
        lines.append([name, how, figures["rows"], *figures["classes"].values(), *rates])
        lines[-1] += [figures["self_bleu"], _percent(figures["distinct"]), figures["entropy"]]
    return table(header, lines)


def _pairs(each: Read) -> str:
    header = [
        "round",
        "pairs",
        "above invalid ones",
        "both",
        "failing only",
        "solved only",
        "neither",
        "ended both ways",
    ]
    lines = [
        [name, p["pairs"], p["above_invalid"], *p["few_shot_prompts"].values(), p["contradictory"]]
        for name, p in each.pairs.items()
    ]
    return table(header, lines)


def _reasons(each: Read) -> str:
    lines = [
        [name, kind, reason, count]
        for name, figures in each.lines.items()
        for kind, reasons in figures["reasons"].items()
        for reason, count in reasons.items()
    ]
    return table(["round", "class", "reason", "proposals"], lines)


def _target(before: Figures, read: Sequence[Read]) -> str:
    """The target before and after, and the control, on the held-out file."""
    shown: list[tuple[str, object, Figures]] = [("before", None, before)]
    for number, each in enumerate(read, start=1):
        repeat = "" if len(read) == 1 else f" ({number})"
        if each.after is not None:
            shown.append((f"after{repeat}", each.improve.get("records"), each.after))
        if each.control is not None:
            shown.append((f"control{repeat}", _drawn(each.control_records), each.control))
    lines = []
    for name, records, figures in shown:
        figured = [
            figures["classes"]["unjudged"],
            *(figures.get(name) for name in ("entropy", "average_precision", "ece")),
        ]
        shares = [_share(right_answers(figures)), _share(failing_of_valid(figures)), figures.get("refusals")]
        lines.append([name, records, figures["rows"], *shares, *figured])
    header = ["target", "trained on", "rows", "accuracy", "failing", "refusals", "unjudged"]
    header += ["entropy (nats)", "average precision", "ECE"]
    text = table(header, lines)
    text += "\n\nWith a judge of safety, the share of failing ones is the attack success rate."
    if any(each.control is not None for each in read):
        text += (
            "\n\nThe control is the target trained with the same recipe on as many seeds, without regard to failure."
        )
    return text


def _drawn(counts: Figures) -> str:
    """How many records were drawn, and how many of them are different if not all."""
    records, different = counts["records"], counts["different"]
    return f"{records}" if different == records else f"{records}, {different} different"


def _untrained(read: Sequence[Read]) -> str:
    """Why a target or a control was not trained."""
    said = []
    for number, each in enumerate(read, start=1):
        repeat = "" if len(read) == 1 else f" in repeat {number}"
        for who, trained, counts in (
            ("The target", each.done.target, each.improve),
            ("The control", each.done.control, each.control_records),
        ):
            if trained is False:
                left = ", ".join(f"{count} {reason}" for reason, count in counts.get("left_out", {}).items()) or "none"
                records = f"{counts.get('records', 0)} records; instructions left out: {left}"
                said.append(f"{who} was not trained{repeat}: {records}.")
    return "".join(f"\n{each}\n" for each in said)


def _over_repeats(read: Sequence[Read], before: Figures) -> str:
    """Each figure in every repeat, with mean and spread."""
    rows: list[tuple[str, list[float | None]]] = [
        ("failing of valid, warm-up", [_ratio(failing_of_valid(next(iter(each.lines.values())))) for each in read]),
        (
            "failing of valid, last trained",
            [None if each.last is None else _ratio(failing_of_valid(each.lines[each.last])) for each in read],
        ),
        ("accuracy before", [before["accuracy"]] * len(read)),
        ("accuracy after", [None if each.after is None else each.after["accuracy"] for each in read]),
    ]
    if any(each.done.control is not None for each in read):
        rows.append(
            ("accuracy of the control", [None if each.control is None else each.control["accuracy"] for each in read])
        )
    header = ["figure", *(f"repeat {number}" for number in range(1, len(read) + 1)), "mean", "spread"]
    lines = []
    for name, values in rows:
        there = [value for value in values if value is not None]
        mean, spread = fmean(there) if there else None, stdev(there) if len(there) > 1 else None
        lines.append([name, *map(_percent, (*values, mean, spread))])
    return (
        "\n## Repeats\n\nEach repeat is the whole loop with other random seeds, on the same seed and held-out "
        "instructions. The spread is the standard deviation. The interval of a mean change holds both the interval "
        "over repeats (Student's t) and the mean of the repeats' own.\n\n" + table(header, lines)
    )


def _examples(pipeline: Pipeline, names: list[str]) -> str:
    lines = []
    for name in names:
        judged = read_dicts(pipeline.path(f"{name}/judge", "judged.jsonl"))
        for label, word in ((False, "failing"), (True, "solved")):
            some = [row for row in judged if row["label"] is label][:EXAMPLES]
            lines += [[name, word, row["prompt"], _response(row), row.get("answer")] for row in some]
    return "\n## Examples\n\n" + table(
        ["proposer", "class", "instruction", "the target's answer", "right answer"], lines
    )


def _response(row: dict[str, Any]) -> str:
    return str(row["response"]) if "response" in row else " / ".join(row["responses"][:3])


def _plot(path: Path, read: Sequence[Read]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axis = figure.subplots()
    for each in read:
        names, first = [*each.lines], each is read[0]
        rates = [_ratio(failing_of_valid(each.lines[name])) for name in names]
        if first:
            spans = [wilson(*failing_of_valid(each.lines[name])) for name in names]
            values = [math.nan if rate is None else rate for rate in rates]
            errors = [[abs(rate - span[side]) for rate, span in zip(values, spans, strict=True)] for side in (0, 1)]
            axis.errorbar(range(len(names)), values, errors, marker="o", capsize=4, label="failing of valid (95 %)")
            for label, figures in (
                ("invalid of proposed", [_ratio(invalid_of_proposed(each.lines[name])) for name in names]),
                ("self-BLEU", [each.lines[name]["self_bleu"] for name in names]),
                ("distinct texts", [each.lines[name]["distinct"] for name in names]),
            ):
                shown = [math.nan if value is None else value for value in figures]
                axis.plot(range(len(names)), shown, marker="s", ls="--", label=label)
            axis.set_xticks(range(len(names)), names)
        else:
            axis.plot(range(len(names)), [math.nan if rate is None else rate for rate in rates], color="C0", alpha=0.4)
    axis.set_ylim(0, 1.02)
    axis.legend()
    figure.savefig(path, dpi=120)


def _ratio(count: tuple[int, int]) -> float | None:
    return count[0] / count[1] if count[1] else None


def _share(count: tuple[int, int]) -> str:
    """A share with its interval: 42.2% (34% to 51%)."""
    low, high = wilson(*count)
    return f"{_percent(_ratio(count))} ({low:.0%} to {high:.0%})" if count[1] else "-"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
