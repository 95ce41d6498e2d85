"""The report of a ReverseGen run: the proposals of each round, and the target before and after."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from finepref.formats.files import write_json
from finepref.pipelines.report import commands, table
from finepref.pipelines.steps import Pipeline
from finepref.synth.reversegen.instructions import read_dicts

EXAMPLES = 4


def write(pipeline: Pipeline, *, rounds: int, private: bool) -> None:
    """Write report.md, results.json and rounds.png from the outputs of the steps."""
    names = [*(f"round_{number}" for number in range(1, rounds + 1)), "final"]
    found = {name: _read(pipeline.path(f"{name}/eval", "eval.json")) for name in (*names, "before", "after")}
    prompts = {name: _read(pipeline.path(f"{name}/pair", "pairs.report.json")) for name in names if name != "final"}
    results = {"rounds": {name: found[name] for name in names}, "pairs": prompts}
    results |= {"before": found["before"], "after": found["after"]}
    write_json(pipeline.folder / "results.json", results)
    _plot(pipeline.folder / "rounds.png", names, found)
    parts = [
        f"# ReverseGen, {rounds} rounds\n",
        _verdict(found[names[0]], found["final"]),
        "## What the proposer found\n\n"
        "`round_1` is the proposer after its warm-up, each later line the proposer after one more round of DPO, "
        "`final` after the last. Each has few-shot prompts of its own. The failure rate is failing over all "
        "proposed, in brackets its 95 % interval (Wilson).\n",
        _rounds(names, found),
        "\n![rounds](rounds.png)\n",
        "Pairs for DPO, and the few-shot prompts by what their proposals were:\n",
        table(
            ["round", "pairs", "both", "failing only", "solved only", "neither", "judged both ways"],
            [[name, p["pairs"], *p["few_shot_prompts"].values(), p["contradictory"]] for name, p in prompts.items()],
        ),
        "\nWhy proposals are invalid, unjudged or not there:\n",
        table(
            ["round", "class", "reason", "proposals"],
            [
                [name, kind, reason, count]
                for name in names
                for kind, reasons in found[name]["reasons"].items()
                for reason, count in reasons.items()
            ],
        ),
        "\n## The target on held-out instructions\n",
        _target(found),
        "" if private else _examples(pipeline, names),
        "\n## What was run\n",
        commands(pipeline),
    ]
    text = "\n".join(part for part in parts if part) + "\n"
    (pipeline.folder / "report.md").write_text(text, encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes())


def interval(part: int, whole: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if not whole:
        return 0.0, 1.0
    z, share = 1.96, part / whole
    centre, spread = share + z * z / (2 * whole), z * math.sqrt(share * (1 - share) / whole + (z / whole / 2) ** 2)
    return max(0.0, (centre - spread) / (1 + z * z / whole)), min(1.0, (centre + spread) / (1 + z * z / whole))


def _verdict(first: dict[str, Any], last: dict[str, Any]) -> str:
    """Whether the failure rates rose, in a sentence that the figures support."""
    said = [
        change("per proposed instruction", [(each["classes"]["failing"], each["rows"]) for each in (first, last)]),
        change("of the instructions with a verdict", [_judged(each) for each in (first, last)]),
        f"Self-BLEU went from {_number(first['self_bleu'])} to {_number(last['self_bleu'])}, distinct texts from "
        f"{_percent(first['distinct'])} to {_percent(last['distinct'])}.",
    ]
    return "\n".join(f"- {each}" for each in said) + "\n"


def _judged(each: dict[str, Any]) -> tuple[int, int]:
    return each["classes"]["failing"], each["classes"]["failing"] + each["classes"]["solved"]


def change(what: str, counts: list[tuple[int, int]]) -> str:
    """A sentence on the change from the warm-up proposer to the last; `counts` are (failing, all) of each."""
    (old, before), (new, after) = ((part / whole if whole else 0.0, interval(part, whole)) for part, whole in counts)
    if after[0] > before[1]:
        rose = "rose, and the 95 % intervals are apart"
    else:
        rose = "rose, but the 95 % intervals overlap" if new > old else "did not rise"
    shown = (f"{share:.1%} ({low:.0%} to {high:.0%})" for share, (low, high) in ((old, before), (new, after)))
    return f"The failure rate {what} {rose}: from {' for the warm-up proposer to '.join(shown)} for the last."


def _rounds(names: list[str], found: dict[str, dict[str, Any]]) -> str:
    header = ["proposer", "proposed", "failing", "solved", "duplicate", "invalid", "unjudged", "unproposed"]
    header += ["failure rate", "of judged", "self-BLEU", "distinct", "entropy (nats)"]
    lines = []
    for name in names:
        each = found[name]
        low, high = interval(each["classes"]["failing"], each["rows"])
        rate = f"{_percent(each['failure_rate'])} ({low:.0%} to {high:.0%})"
        figures = [_percent(each["failure_rate_judged"]), each["self_bleu"], _percent(each["distinct"])]
        lines.append([name, each["rows"], *each["classes"].values(), rate, *figures, each["entropy"]])
    return table(header, lines)


def _target(found: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name in ("before", "after"):
        each = found[name]
        low, high = interval(each["classes"]["solved"], each["classes"]["solved"] + each["classes"]["failing"])
        accuracy = f"{_percent(each['accuracy'])} ({low:.0%} to {high:.0%})"
        lines.append(
            [name, each["rows"], accuracy, each["classes"]["unjudged"], each["entropy"], each["average_precision"]]
        )
    return table(["target", "rows", "accuracy", "unjudged", "entropy (nats)", "average precision"], lines)


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


def _plot(path: Path, names: list[str], found: dict[str, dict[str, Any]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axis = figure.subplots()
    places = range(len(names))
    rates = [found[name]["failure_rate"] or 0.0 for name in names]
    spans = [interval(found[name]["classes"]["failing"], found[name]["rows"]) for name in names]
    errors = [[r - low for r, (low, _) in zip(rates, spans, strict=True)]]
    errors += [[high - r for r, (_, high) in zip(rates, spans, strict=True)]]
    axis.errorbar(places, rates, yerr=errors, marker="o", capsize=4, label="failing over proposed (95 %)")
    for field, label in (("self_bleu", "self-BLEU"), ("distinct", "distinct texts")):
        axis.plot(places, [found[name][field] or math.nan for name in names], marker="s", ls="--", label=label)
    axis.set_xticks(places, names)
    axis.set_ylim(0, 1.02)
    axis.legend()
    figure.savefig(path, dpi=120)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
