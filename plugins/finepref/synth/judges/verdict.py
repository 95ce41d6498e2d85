"""What a judge is, and the verdict that it gives; judges of other packages are found by their entry point.

    math       the last mathematical answer of the response equals the row's `answer` (math-verify)
    number     the last number of the response equals the row's `answer`, so that repeating the question is no answer
    letter     the letter of an option that the response gives is the row's `answer`
    gym        reasoning-gym's verifier of the row's task gives the response full marks
    contains   the response contains a text, or matches a regular expression
    entropy    n sampled answers agree, or a distribution over letters is sharp: their entropy is below a threshold
    refusal    the response refuses the request, by a list of phrases
    classifier a Hugging Face text classifier gives the labels that mean unsafe a probability below a threshold
    guard      a guard model calls the dialogue safe (Llama Guard, ShieldGemma, Granite Guardian, Qwen3Guard)
    llm        a model that is shown a rubric answers with a JSON verdict

A judge is one of three things: a rule, which is a function of a row; a `ModelJudge`, which says what to ask a model
about a row, and how to read the answer; or a `BatchJudge`, which judges many rows at a time, with a journal. An answer
that is not clear gives no verdict. Other packages add judges of every kind through the entry-point group
`finepref.judges`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Literal, NamedTuple

from finepref.formats.records import Message, Prompt

GROUP = "finepref.judges"
"""The entry-point group of judges by rule."""

Row = Mapping[str, object]


class Verdict(NamedTuple):
    """The result of a judge. `passed` is None if there is no clear verdict; `reason` then says why.

    Reports count the reasons of rows without a verdict, so such a reason must not repeat the row's texts.
    """

    passed: bool | None
    reason: str = ""
    score: float | None = None


Rule = Callable[[Row], Verdict]
Reads = Literal["response", "dialogue"]


class ModelJudge(NamedTuple):
    """A judge by a model: what to ask about (prompt, response), and how to read the answer.

    Attributes:
        ask: gives the dialogue to send.
        read: gives the verdict in the model's answer.
        version: changes with the text of the question.
        variables: of the chat template, if that template builds the question (see `checkpoint.rendered`); else None.
    """

    ask: Callable[[Prompt, str], tuple[Message, ...]]
    read: Callable[[str], Verdict]
    version: str
    variables: Mapping[str, object] | None = None


class BatchJudge(NamedTuple):
    """A judge of many rows at a time, such as a classifier; its verdicts are kept in a journal.

    Attributes:
        judge: one verdict per row, in order. It is called with at most `batch_size` rows of similar length, and loads
            what it needs when it is called first.
        version: changes whenever the verdicts or scores for the same rows do.
        batch_size: rows per call, and per append of the journal.
        threshold: a row with a `score` passes if that is below the threshold, whatever `passed` says. It is applied
            after the journal, so another threshold asks nothing again. None = `passed` counts.
        reads: the fields of a row that are checked before any work: `response`; or with "dialogue" the prompt too.
    """

    judge: Callable[[Sequence[Row]], Sequence[Verdict]]
    version: str
    batch_size: int = 32
    threshold: float | None = None
    reads: Reads = "response"

    def settled(self, verdict: Verdict) -> Verdict:
        """The verdict after the threshold."""
        if self.threshold is None or verdict.score is None or verdict.passed is None:
            return verdict
        return verdict._replace(passed=verdict.score < self.threshold)


Judge = Rule | ModelJudge | BatchJudge


def plugin(name: str) -> Judge:
    """The judge that another package registers under a name.

    Raises:
        ValueError: no package or more than one registers it, or what it registers is no judge; errors inside the
            package are not caught.
    """
    found = [*entry_points(group=GROUP, name=name)]
    if len(found) != 1:
        known = ", ".join(sorted(point.name for point in entry_points(group=GROUP))) or "none"
        raise ValueError(f"{len(found)} packages register the judge {name!r} as {GROUP} (registered: {known})")
    judge = found[0].load()
    if not isinstance(judge, ModelJudge | BatchJudge) and (isinstance(judge, type) or not callable(judge)):
        raise ValueError(f"{found[0].value} is not a judge: a function of a row, a ModelJudge or a BatchJudge")
    return judge
