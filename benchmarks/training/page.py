"""Write the tables of benchmarks/README.md from the files in benchmarks/results: between the two marks, nothing else.

python benchmarks/training/page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

FOLDER = Path(__file__).parents[1]
BEGIN, END = "<!-- made by benchmarks/training/page.py from results/ -->", "<!-- end of what is made -->"
ROWS = {"tiny-128k": "V 128k", "smollm2": "SmolLM2", "smollm2-long": "SmolLM2, long prompts"}


def claims_table(claims: list[dict[str, Any]]) -> list[str]:
    """Lines of a table in Markdown: every claim of a run."""
    lines = [
        "| claim | model | ours / peer | time | goal | bound | memory | goal | over the limit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for claim in claims:
        start = f"| `{claim['name']}` | {ROWS[claim['setting']]} | {claim['ours']} / {claim['peer']} |"
        if "skipped" in claim:
            lines.append(f"{start} not measured: {claim['skipped']} | | | | | |")
            continue
        limits = f"{claim['over_limit_ours']:.1f}, {claim['over_limit_peer']:.1f}"
        time, memory = claim["cpu"], claim["MiB"]
        lines.append(
            f"{start} {_spread(time)} | {_goal(time)} | {claim['bound']:.2f} | {_spread(memory)} | {_goal(memory)} | "
            f"{limits} |"
        )
    return lines


def _spread(part: dict[str, float]) -> str:
    return f"{part['ratio']:.2f} ({part['low']:.2f} to {part['high']:.2f})"


def _goal(part: dict[str, Any]) -> str:
    if part["goal"] is None:
        return ""
    return f"{part['goal']:g}, {'met' if part['ratio'] <= part['goal'] else 'missed'}"


def arms_table(arms: list[dict[str, Any]]) -> list[str]:
    """Lines of a table in Markdown: the medians of every arm, without those that were skipped."""
    lines = ["| model | arm | CPU s | s | MiB above the model |", "|---|---|---|---|---|"]
    for arm in arms:
        if "cpu" in arm["runs"][0]:
            cpu, wall, memory = (median(run[part] for run in arm["runs"]) for part in ("cpu", "wall", "MiB"))
            lines.append(f"| {ROWS[arm['setting']]} | {arm['arm']} | {cpu:.1f} | {wall:.1f} | {memory:.0f} |")
    return lines


def training_text(result: dict[str, Any]) -> list[str]:
    """The claims of a run, with where and how it was measured."""
    machine, settings = result["machine"], result["settings"]
    rows = "; ".join(
        f"{ROWS[name]}: {each['records']} records in micro-batches of {each['batch']}, on average "
        f"{each['tokens']['prompt']:.0f} tokens of prompt, {each['tokens']['chosen']:.0f} chosen, "
        f"{each['tokens']['rejected']:.0f} rejected, {each['tokens']['negative']:.0f} with an error"
        for name, each in settings.items()
    )
    load = f"{min(machine['load']):.1f} to {max(machine['load']):.1f}"
    return [
        f"Commit {result['commit']}, {result['when']}; {machine['cores']} cores ({machine['device']}), "
        f"{result['threads']} threads, load {load}, rounds: {result['rounds']}. {rows}.",
        "",
        *claims_table(result["claims"]),
        "",
        *arms_table(result["arms"]),
    ]


def growth_text(result: dict[str, Any]) -> list[str]:
    """Growth curves: a table per curve."""
    lines = []
    for curve in dict.fromkeys(each["curve"] for each in result["curves"]):
        found = [each for each in result["curves"] if each["curve"] == curve]
        sizes = found[0]["sizes"]
        lines += [
            f"Memory above the model in MiB against {curve}:",
            "",
            f"| arm | {' | '.join(f'{size:,}' for size in sizes)} | exponent |",
            f"|---|{'---|' * len(sizes)}---|",
        ]
        for each in found:
            memory = " | ".join(f"{value:.0f}" for value in each["MiB"])
            lines.append(f"| {each['arm']} | {memory} | {each['exponent']:.2f} |")
        lines.append("")
    return lines[:-1]


def memory_text(result: dict[str, Any]) -> list[str]:
    """Peaks for large models."""
    lines = [
        f"GiB of the head and the loss ({result['with']}), 4 x 2,048 positions, bfloat16:",
        "",
        "| model | loss | forward | backward | possible |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        possible = "" if row["possible"] is None else "{:.1f}, {:.1f}".format(*row["possible"])
        lines.append("| {} | {} | {:.2f} | {:.2f} | {} |".format(row["model"], row["loss"], *row["GiB"], possible))
    return lines


PARTS = {
    "training": training_text,
    "growth": growth_text,
    "memory": memory_text,
    "training-gpu": training_text,
    "growth-gpu": growth_text,
}
"""File in results/ -> its text."""


def page(old: str, results: dict[str, Any]) -> str:
    """The page with what is between the marks made anew.

    Raises:
        ValueError: the page lacks a mark.
    """
    before, began, rest = old.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (began and ended):
        raise ValueError(f"the page needs the lines {BEGIN!r} and {END!r}")
    made = [line for name, text in PARTS.items() if name in results for line in (*text(results[name]), "")]
    return "\n".join([before + BEGIN, "", *made, END]) + after


def main() -> None:
    """Write benchmarks/README.md."""
    files = {path.stem: json.loads(path.read_text()) for path in (FOLDER / "results").glob("*.json")}
    path = FOLDER / "README.md"
    path.write_text(page(path.read_text(encoding="utf-8"), files), encoding="utf-8")


if __name__ == "__main__":
    main()
