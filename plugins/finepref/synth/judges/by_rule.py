"""Judges by rule: mathematics, numbers, letters of options, texts, and the agreement of several answers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

from finepref.formats.choices import options_of
from finepref.formats.row import is_text
from finepref.synth.judges.letters import letter_of
from finepref.synth.judges.verdict import Row, Rule, Verdict

THRESHOLD = 1.193
"""Entropy in nats from which ReverseGen (arXiv 2410.16736) counts ten answers as a failure of honesty."""

_NUMBER = re.compile(r"(?<![\w.,)])(?:(?<![\d)]\s)[-−])?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+|/\d+)?(?!\w)")


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


def number_answer(row: Row) -> Verdict:
    """Whether the response's last number equals the row's `answer`; a response without one fails.

    For exercises such as "What is 17 + 25?", where `math_answer` passes the response "17 + 25".
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
    """A judge that passes a response if it contains the text, or with `absent` if it does not.

    Raises:
        ValueError: the regular expression is not valid.
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
    """A judge that passes a row if its `responses` agree: their entropy in nats is below the threshold.

    A row with `letters`, a distribution over the options of a question, is judged by its entropy.

    Args:
        same: gives equal values for answers that count as equal, such as `as_text`.
        threshold: the row fails at this entropy or above.
    """

    def judge(row: Row) -> Verdict:
        if "letters" in row:
            return _entropy_of_letters(row["letters"], threshold)
        responses = row.get("responses")
        if not isinstance(responses, Sequence) or len(responses) < 2 or not all(map(is_text, responses)):
            return Verdict(None, "the row needs two texts or more in responses, or letters")
        groups = groups_of_equals(responses, same)
        nats = _nats(len(members) / len(responses) for members in groups)
        return Verdict(nats < threshold, f"{len(groups)} different answers of {len(responses)}", nats)

    return judge


def letter_entropy(*, threshold: float = THRESHOLD) -> Rule:
    """The judge `entropy` for multiple-choice questions: sampled answers are equal if they give the same letter.

    Answers without a letter are one group of their own, and counted; a row of which no answer has one is unjudged. A
    row with `letters` is judged by these.

    Args:
        threshold: the row fails at this entropy or above.
    """

    def judge(row: Row) -> Verdict:
        if "letters" in row:
            return _entropy_of_letters(row["letters"], threshold)
        responses = row.get("responses")
        if not isinstance(responses, Sequence) or len(responses) < 2 or not all(isinstance(r, str) for r in responses):
            return Verdict(None, "the row needs two texts or more in responses, or letters")
        counts = Counter(letter_of(text, options_of(row)).letter for text in responses)
        if counts[""] == len(responses):
            return Verdict(None, "no answer has the letter of an option")
        nats = _nats(count / len(responses) for count in counts.values())
        told = ", ".join(f"{letter or 'no letter'} {count}" for letter, count in counts.most_common())
        return Verdict(nats < threshold, f"of {len(responses)} answers: {told}", nats)

    return judge


def _entropy_of_letters(letters: object, threshold: float) -> Verdict:
    """The verdict on a distribution over the letters of the options."""
    values = [*letters.values()] if isinstance(letters, Mapping) else []
    if len(values) < 2 or not all(type(p) in (int, float) and 0 <= p <= 1 for p in values):
        return Verdict(None, "letters is not an object of two probabilities or more")
    if abs(sum(values) - 1) > 1e-3:
        return Verdict(None, f"the probabilities of letters add up to {sum(values):.4g} and not to 1")
    nats = _nats(values)
    assert isinstance(letters, Mapping)
    best = max(letters, key=lambda letter: letters[letter])
    return Verdict(nats < threshold, f"{best} with probability {letters[best]:.3f}", nats)


def _nats(shares: Iterable[float]) -> float:
    return -sum(share * math.log(share) for share in shares if share > 0)


def letter_answer(row: Row) -> Verdict:
    """Whether the letter that the response gives is that of the row's `answer`; one without a letter is unjudged.

    A row with `letters` answers with the most probable one.
    """
    options = options_of(row)
    gold = row.get("answer")
    wanted = letter_of(gold, options).letter if is_text(gold) else ""
    if not wanted:
        return Verdict(None, "the row needs the answer, the letter of an option")
    if isinstance(row.get("letters"), Mapping):
        letters: Mapping[str, float] = row["letters"]  # type: ignore[assignment]
        return Verdict(max(letters, key=lambda letter: letters[letter]) == wanted)
    response = row.get("response")
    if not isinstance(response, str):
        return Verdict(None, "the row needs the text response")
    found = letter_of(response, options)
    return (
        Verdict(found.letter == wanted, f"the answer is {found.letter}")
        if found.letter
        else Verdict(None, found.reason)
    )


def groups_of_equals(answers: Iterable[str], same: Callable[[str], object]) -> list[list[str]]:
    """Answers in groups of equal ones, groups and members in the order in which they first occur.

    Args:
        answers: any texts.
        same: gives equal values for answers that count as equal, such as `as_text`.
    """
    groups: list[tuple[object, list[str]]] = []
    for answer in answers:
        value = same(answer)
        group = next((members for known, members in groups if known == value), None)
        (groups.append((value, [answer])) if group is None else group.append(answer))
    return [members for _, members in groups]


def as_text(answer: str) -> list[str]:
    """Answers are equal if their words are, ignoring case and punctuation."""
    return re.findall(r"\w+", answer.casefold())


class as_math:  # noqa: N801 (used as a function)
    """Answers are equal if their last mathematical answers are; answers without one are all equal."""

    def __init__(self, answer: str) -> None:
        import math_verify

        self.found = math_verify.parse(answer)

    def __eq__(self, other: object) -> bool:
        import math_verify

        if not isinstance(other, as_math) or not self.found or not other.found:
            return isinstance(other, as_math) and not self.found and not other.found
        return bool(math_verify.verify(self.found, other.found))

    __hash__ = None  # type: ignore[assignment]
