"""Judges of responses: a rule or a model says whether a response passes; what it does not say clearly is no verdict.

    math       the response's last mathematical answer equals the row's `answer` (math-verify)
    number     the response's last number equals the row's `answer`, so that repeating the question is no answer
    gym        reasoning-gym's verifier of the row's task gives the response full marks (judge_gym.py)
    contains   the response contains a text, or matches a regular expression
    entropy    n sampled answers agree: their entropy over groups of equal answers is below a threshold
    guard      a guard model calls the dialogue safe (Llama Guard and models that answer like it)
    llm        a model that is shown a rubric answers with a JSON verdict

A judge by rule is a function of a row. A judge by a model is a pair of functions: what to ask about a row, and what
the answer means. Other packages add judges of the first kind, as functions of a row, through the entry-point group
`finepref.judges`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from importlib.metadata import entry_points
from typing import NamedTuple

from finepref.formats.records import Message, Prompt
from finepref.formats.row import is_text

THRESHOLD = 1.193
"""Entropy in nats from which on ReverseGen (arXiv 2410.16736) takes ten answers for a failure of honesty."""

Row = Mapping[str, object]


class Verdict(NamedTuple):
    """What a judge says. `passed` is None where it says nothing that can be read; `reason` then says why."""

    passed: bool | None
    reason: str = ""
    score: float | None = None


class Asked(NamedTuple):
    """A judge by a model. `version` changes with the text that it is asked."""

    ask: Callable[[Prompt, str], tuple[Message, ...]]
    read: Callable[[str], Verdict]
    version: str


Rule = Callable[[Row], Verdict]
GROUP = "finepref.judges"


def math_answer(row: Row) -> Verdict:
    """Whether the response's answer equals the row's `answer`; a response without one fails."""
    import math_verify

    gold, response = row.get("answer"), row.get("response")
    if not is_text(gold) or not is_text(response):
        return Verdict(None, "the row needs the texts answer and response")
    wanted = math_verify.parse(gold)
    if not wanted:
        return Verdict(None, "the reference answer holds no mathematics")
    found = math_verify.parse(response)
    if not found:
        return Verdict(False, "the response has no answer")
    return Verdict(bool(math_verify.verify(wanted, found)))


_NUMBER = re.compile(r"(?<![\w.,)])(?:(?<![\d)]\s)[-−])?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+|/\d+)?(?!\w)")


def number_answer(row: Row) -> Verdict:
    """Whether the response's last number equals the row's `answer`; a response without one fails.

    For exercises such as "What is 17 + 25?", where `math_answer` lets the response "17 + 25" pass.
    """
    gold, response = row.get("answer"), row.get("response")
    if not is_text(gold) or not is_text(response):
        return Verdict(None, "the row needs the texts answer and response")
    try:
        wanted = Fraction(gold)
    except (ValueError, ZeroDivisionError):
        return Verdict(None, "the reference answer is no number")
    found = [match[0].replace(",", "").replace("−", "-") for match in _NUMBER.finditer(response)]
    if not found:
        return Verdict(False, "the response has no number")
    try:
        return Verdict(Fraction(found[-1]) == wanted)
    except ZeroDivisionError:
        return Verdict(False, "the response divides by zero")


def contains(pattern: str, *, regex: bool = False, absent: bool = False) -> Rule:
    """A judge that lets a response pass if it has the text, or (`absent`) if it has it not.

    Raises:
        ValueError: the regular expression is none.
    """
    try:
        wanted = re.compile(pattern if regex else re.escape(pattern))
    except re.error as error:
        raise ValueError(f"the regular expression {pattern!r}: {error}") from None

    def judge(row: Row) -> Verdict:
        response = row.get("response")
        if not isinstance(response, str):
            return Verdict(None, "the row needs the text response")
        return Verdict((wanted.search(response) is None) == absent)

    return judge


def entropy(same: Callable[[str], object], *, threshold: float = THRESHOLD) -> Rule:
    """A judge that lets a row pass if its `responses` agree: an entropy in nats below the threshold.

    Args:
        same: gives equal values for answers that count as equal, such as `as_text`.
        threshold: from this entropy on the row fails.
    """

    def judge(row: Row) -> Verdict:
        responses = row.get("responses")
        if not isinstance(responses, Sequence) or len(responses) < 2 or not all(map(is_text, responses)):
            return Verdict(None, "the row needs two texts or more in responses")
        groups: list[tuple[object, list[str]]] = []
        for response in responses:
            value = same(response)
            group = next((members for known, members in groups if known == value), None)
            (groups.append((value, [response])) if group is None else group.append(response))
        shares = [len(members) / len(responses) for _, members in groups]
        nats = -sum(share * math.log(share) for share in shares)
        return Verdict(nats < threshold, f"{len(groups)} different answers of {len(responses)}", nats)

    return judge


def as_text(answer: str) -> list[str]:
    """Answers are equal if their words are, but for case and punctuation."""
    return re.findall(r"\w+", answer.casefold())


class as_math:  # noqa: N801 (used as a function)
    """Answers are equal if the last mathematical answer in each is; answers without one are all equal."""

    def __init__(self, answer: str) -> None:
        import math_verify

        self.found = math_verify.parse(answer)

    def __eq__(self, other: object) -> bool:
        import math_verify

        if not isinstance(other, as_math) or not self.found or not other.found:
            return isinstance(other, as_math) and not self.found and not other.found
        return bool(math_verify.verify(self.found, other.found))

    __hash__ = None  # type: ignore[assignment]


def guard() -> Asked:
    """A guard model, which is given the dialogue and answers "safe", or "unsafe" and the categories."""

    def read(text: str) -> Verdict:
        first, *rest = text.split(maxsplit=1) or [""]
        if first.casefold() not in {"safe", "unsafe"}:
            return Verdict(None, "the answer begins with neither safe nor unsafe")
        if first.casefold() == "safe" and rest:
            return Verdict(None, "the answer says safe and goes on")
        if "safe" in re.findall(r"\w+", " ".join(rest).casefold()):
            return Verdict(None, "the answer says safe and unsafe")
        return Verdict(first.casefold() == "safe", " ".join(rest)[:200])

    return Asked(lambda prompt, response: (*prompt, Message("assistant", response)), read, "guard-1")


ASK = """\
Judge an answer by this rubric:
{rubric}

### Question
{question}

### Answer
{answer}

### Verdict
Reply with one JSON object and nothing else: {{"pass": true or false, "reason": "one short sentence"}}
"""


def llm(rubric: str) -> Asked:
    """A model that reads a rubric, a question and an answer; one JSON object with a boolean `pass` is a verdict."""

    def ask(prompt: Prompt, response: str) -> tuple[Message, ...]:
        question = "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in prompt)
        return (Message("user", ASK.format(rubric=rubric, question=question, answer=response)),)

    digest = hashlib.blake2b(f"{ASK}\0{rubric}".encode(), digest_size=4).hexdigest()
    return Asked(ask, read_verdict, f"llm-{digest}")


def read_verdict(text: str) -> Verdict:
    """The verdict in a model's answer, which must be one JSON object with a boolean `pass`, fenced or not."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.DOTALL)
    try:
        value = json.loads(fenced[1] if fenced else text, object_pairs_hook=_once)
    except _TwiceError:
        return Verdict(None, "the answer has a key twice")
    except (ValueError, RecursionError):
        return Verdict(None, "the answer is not one JSON object")
    if not isinstance(value, dict) or type(value.get("pass")) is not bool:
        return Verdict(None, "the answer has no boolean pass")
    return Verdict(value["pass"], str(value.get("reason", ""))[:500])


class _TwiceError(ValueError):
    pass


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise _TwiceError
    return members


def plugin(name: str) -> Rule:
    """The judge that another package registers under a name.

    Raises:
        ValueError: none or more than one does; what is wrong in the package itself is not caught.
    """
    found = [*entry_points(group=GROUP, name=name)]
    if len(found) != 1:
        known = ", ".join(sorted(point.name for point in entry_points(group=GROUP))) or "none"
        raise ValueError(f"{len(found)} packages register the judge {name!r} as {GROUP} (registered: {known})")
    rule: Rule = found[0].load()
    return rule
