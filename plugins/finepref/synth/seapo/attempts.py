"""Attempts at a negative: by a model, whose answer must pass the gates, or by a rule. Each reject has a reason."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from finepref.formats.records import Span
from finepref.formats.spans import diff_spans
from finepref.synth.engines.protocol import Completion
from finepref.synth.engines.thoughts import split
from finepref.synth.judges.by_model import read_verdict
from finepref.synth.left_out import ENGINE
from finepref.synth.seapo import error_rules
from finepref.synth.seapo.gates import Fault, fault
from finepref.synth.seapo.prompts import Source
from finepref.synth.seapo.sentences import Sentence
from finepref.synth.seapo.shots import repeats
from finepref.synth.seapo.tidy import tidy

_FENCE = re.compile(r"(```+|~~~+)(?:[^\n`]*\n)?((?:(?!^\1).)*?)\n?\1\s*", re.DOTALL | re.MULTILINE)

FEW_IN_SENTENCE = 4
"""Sentences of at most so many words have no greatest share of changed words."""


class Attempt(NamedTuple):
    """One text that should contain one error.

    If one sentence was rewritten, a usable attempt's text is the whole answer, and a rejected one's the sentence.

    Attributes:
        text: without what was taken off.
        spans: what differs from the chosen answer.
        reason: why it is not a usable negative, None if it is one.
        measured: the value that a gate measured, beside its bound.
        taken_off: what surrounded the text in the model's answer: "thought", "fence", or what `tidy` names.
        old, new: the sentence, and what it became; "" if the whole answer was rewritten.
    """

    text: str
    spans: tuple[Span, ...] = ()
    reason: str | None = None
    measured: str = ""
    taken_off: tuple[str, ...] = ()
    old: str = ""
    new: str = ""


def by_model(source: Source, answer: Completion, **gates: Any) -> Attempt:
    """A model's answer, checked by `fault`; the spans are what differs.

    Leading and trailing white space, a thought, and a code fence around the whole answer are taken off, the last two
    only if the chosen answer has none itself.
    """
    if answer.error is not None:
        return Attempt(answer.error, reason=ENGINE)
    text, taken_off = _bare(answer, source.chosen)
    found = Fault("truncated") if answer.stop_reason != "stop" else fault(source.chosen, text, **gates)
    if found:
        return Attempt(text, reason=found.gate, measured=found.measured, taken_off=taken_off)
    return Attempt(text, diff_spans(source.chosen, text), taken_off=taken_off)


def by_sentence(source: Source, error_type: str, sentence: Sentence, answer: Completion, **gates: Any) -> Attempt:
    """A model's answer in place of one sentence, checked by `fault` against that sentence; the rest is kept.

    Besides what `by_model` takes off, `tidy` takes off what small models write around a sentence. Two more reasons:
    the answer is one of the examples of the request (`example`), or repeats the request (`request`).

    Args:
        source: the question and its good answer.
        error_type: one of `ERRORS`.
        sentence: of the good answer.
        answer: to the request for this sentence.
        gates: see `fault`.
    """
    old = sentence.text
    if answer.error is not None:
        return Attempt(answer.error, reason=ENGINE, old=old)
    text, taken_off = _bare(answer, old)
    new, more = tidy(text, old, more=int(error_type == "hallucination"))
    taken_off += more
    if answer.stop_reason != "stop" and "rest" not in more:
        found: Fault | None = Fault("truncated")
    elif copied := repeats(new, error_type, old):
        found = Fault(copied)
    else:
        found = fault(old, new, few_words=FEW_IN_SENTENCE, **gates)
    if found:
        return Attempt(text, (), found.gate, found.measured, taken_off, old, new)
    whole = source.chosen[: sentence.start] + new + source.chosen[sentence.end :]
    spans = tuple(
        Span(sentence.start + each.start, sentence.start + each.end, each.weight) for each in diff_spans(old, new)
    )
    return Attempt(whole, spans, None, "", taken_off, old, new)


def _bare(answer: Completion, chosen: str) -> tuple[str, tuple[str, ...]]:
    """The text of an answer without a thought and a fence that the chosen text has not, and what was taken off."""
    text, taken_off = answer.text, ()
    if answer.thought and split(chosen)[0] and not split(text)[0]:
        text = answer.thought + text
    elif answer.thought:
        taken_off = ("thought",)
    text = text.strip()
    if (fenced := _FENCE.fullmatch(text)) and not _FENCE.fullmatch(chosen.strip()):
        text, taken_off = fenced[2].strip(), (*taken_off, "fence")
    return text, taken_off


def by_rule(source: Source, error_type: str, *, seed: int) -> Attempt:
    """A rule's text and its exact span; gates are not needed, because the rule is known to be right."""
    name, _, number = error_type.partition("-")
    chance = f"{source.id}/{number}" if number else source.id
    made = error_rules.inject(name, prompt=source.prompt, chosen=source.chosen, seed=seed, record_id=chance)
    return Attempt(made.text, (made.span,)) if made else Attempt("", reason="no_equation")


def checked(attempt: Attempt, answer: Completion) -> Attempt:
    """The attempt, rejected unless the answer clearly confirms the error."""
    if answer.error is not None:
        return attempt._replace(text=answer.error, spans=(), reason=ENGINE)
    verdict = read_verdict(answer.text)
    if verdict.passed:
        return attempt
    return attempt._replace(spans=(), reason="check_unread" if verdict.passed is None else "no_error")
