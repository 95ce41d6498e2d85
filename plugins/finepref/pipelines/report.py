"""The list of commands in the reports of all pipelines."""

from __future__ import annotations

import shlex

from finepref.pipelines.steps import Pipeline


def commands(run: Pipeline) -> str:
    """The commands of all steps with the seconds that each took, as Markdown."""
    seconds = [float(str(step["seconds"])) for step in run.steps.values()]
    words: list[list[str]] = [step["command"] for step in run.steps.values()]  # type: ignore[misc]
    shown = "\n".join(f"{shlex.join(each)}    # {taken} s" for each, taken in zip(words, seconds, strict=True))
    return f"{len(words)} commands, {sum(seconds) / 60:.1f} minutes:\n\n```\n{shown}\n```"
