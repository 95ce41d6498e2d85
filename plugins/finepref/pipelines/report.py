"""Tables and lists of commands for the reports of all pipelines."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from finepref.pipelines.steps import Pipeline


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; floats with four decimals, None as a dash."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def commands(run: Pipeline) -> str:
    """The commands of all steps with the seconds that each took, as Markdown."""
    seconds = [float(str(step["seconds"])) for step in run.steps.values()]
    words: list[list[str]] = [step["command"] for step in run.steps.values()]  # type: ignore[misc]
    shown = "\n".join(f"{shlex.join(each)}    # {taken} s" for each, taken in zip(words, seconds, strict=True))
    return f"{len(words)} commands, {sum(seconds) / 60:.1f} minutes:\n\n```\n{shown}\n```"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
