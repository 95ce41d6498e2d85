"""What a model answered to a row, how sure it was, and whether it was right."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from finepref.formats.choices import options_of
from finepref.formats.row import is_text
from finepref.synth.dedup import normalised
from finepref.synth.judges.by_rule import as_text
from finepref.synth.judges.letters import letter_of
from finepref.synth.reversegen.instructions import Row


class Given(NamedTuple):
    """An answer.

    Attributes:
        text: the letter of a multiple-choice question; else the most frequent of the responses.
        confidence: its probability, or its share of all responses.
        right: whether it is the row's `answer`; None if the row has none.
    """

    text: str
    confidence: float
    right: bool | None


def given_answer(row: Row) -> Given | None:
    """The most probable of a row's `letters`, or the most frequent of its `responses`; None if it has neither.

    The responses to a row with `options` are compared by their letters; those without one count in the confidence of
    the others. Other responses are compared as texts, and right if they begin with the words of `answer`.
    """
    options, gold = options_of(row), row.get("answer")
    letters = row.get("letters")
    if isinstance(letters, dict) and letters:
        best = max(letters, key=lambda letter: letters[letter])
        return _by_letter(best, float(letters[best]), row)
    responses = row.get("responses")
    if not isinstance(responses, list) or not responses:
        return None
    if options is not None:
        counts = Counter(filter(None, (letter_of(str(text), options).letter for text in responses)))
        if not counts:
            return None
        best, count = counts.most_common(1)[0]
        return _by_letter(best, count / len(responses), row)
    text = majority(responses) or ""
    share = sum(normalised(each) == normalised(text) for each in responses) / len(responses)
    if not is_text(gold):
        return Given(text, share, None)
    words = as_text(gold)
    return Given(text, share, as_text(text)[: len(words)] == words)


def _by_letter(letter: str, confidence: float, row: Row) -> Given:
    gold = row.get("answer")
    wanted = letter_of(gold, options_of(row)).letter if is_text(gold) else ""
    return Given(letter, confidence, letter == wanted if wanted else None)


def majority(responses: object) -> str | None:
    """The most frequent of several responses, the first one on a tie; None without responses."""
    if not isinstance(responses, list) or not responses:
        return None
    first: dict[str, str] = {}
    counts = Counter(normalised(each) for each in responses)
    for each in responses:
        first.setdefault(normalised(each), each)
    return first[counts.most_common(1)[0][0]]
