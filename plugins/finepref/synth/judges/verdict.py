"""What a judge is, and the verdict that it gives; judges of other packages are found by their entry point.

    math       the last mathematical answer of the response equals the row's `answer` (math-verify)
    number     the last number of the response equals the row's `answer`, so that repeating the question is no answer
    letter     the letter of an option that the response gives is the row's `answer`
    gym        reasoning-gym's verifier of the row's task gives the response full marks
    contains   the response contains a text, or matches a regular expression
    entropy    n sampled answers agree, or a distribution over letters is sharp: their entropy is below a threshold
    guard      a guard model calls the dialogue safe (Llama Guard and models with the same output)
    llm        a model that is shown a rubric answers with a JSON verdict

A judge is a rule, which is a function of a row, or a model, which is a pair of functions: what to ask about a row, and
how to read the answer. An answer that is not clear gives no verdict. Other packages add rules through the entry-point
group `finepref.judges`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import NamedTuple

from finepref.formats.records import Message, Prompt

GROUP = "finepref.judges"
"""The entry-point group of judges by rule."""

Row = Mapping[str, object]


class Verdict(NamedTuple):
    """The result of a judge. `passed` is None if there is no clear verdict; `reason` then says why."""

    passed: bool | None
    reason: str = ""
    score: float | None = None


Rule = Callable[[Row], Verdict]


class ModelJudge(NamedTuple):
    """A judge by a model: what to ask about (prompt, response), and how to read the answer.

    `version` changes with the text of the question.
    """

    ask: Callable[[Prompt, str], tuple[Message, ...]]
    read: Callable[[str], Verdict]
    version: str


def plugin(name: str) -> Rule:
    """The judge that another package registers under a name.

    Raises:
        ValueError: no package or more than one registers it; errors inside the package are not caught.
    """
    found = [*entry_points(group=GROUP, name=name)]
    if len(found) != 1:
        known = ", ".join(sorted(point.name for point in entry_points(group=GROUP))) or "none"
        raise ValueError(f"{len(found)} packages register the judge {name!r} as {GROUP} (registered: {known})")
    rule: Rule = found[0].load()
    return rule
