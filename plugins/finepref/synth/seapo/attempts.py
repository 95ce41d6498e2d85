"""Attempts at a negative: by a model, whose answer must pass the gates, or by a rule. Each reject has a reason."""

from __future__ import annotations

import re
from typing import NamedTuple

from finepref.formats.records import Span
from finepref.formats.spans import diff_spans
from finepref.synth.engines.protocol import Completion
from finepref.synth.engines.thoughts import split
from finepref.synth.judges.by_model import read_verdict
from finepref.synth.left_out import ENGINE
from finepref.synth.seapo import error_rules
from finepref.synth.seapo.gates import Fault, fault
from finepref.synth.seapo.prompts import Source

_FENCE = re.compile(r"(```+|~~~+)(?:[^\n`]*\n)?((?:(?!^\1).)*?)\n?\1\s*", re.DOTALL | re.MULTILINE)


class Attempt(NamedTuple):
    """One text that should contain one error.

    Attributes:
        text: without what was taken off.
        spans: what differs from the chosen answer.
        reason: why it is not a usable negative, None if it is one.
        measured: the value that a gate measured, beside its bound.
        taken_off: what surrounded the text in the model's answer: "thought", "fence" or both.
    """

    text: str
    spans: tuple[Span, ...] = ()
    reason: str | None = None
    measured: str = ""
    taken_off: tuple[str, ...] = ()


def by_model(source: Source, answer: Completion, **gates: float) -> Attempt:
    """A model's answer, checked by `fault`; the spans are what differs.

    Leading and trailing white space, a thought, and a code fence around the whole answer are taken off, the last two
    only if the chosen answer has none itself.
    """
    if answer.error is not None:
        return Attempt(answer.error, reason=ENGINE)
    text, taken_off = answer.text, ()
    if answer.thought and split(source.chosen)[0] and not split(text)[0]:
        text = answer.thought + text
    elif answer.thought:
        taken_off = ("thought",)
    text = text.strip()
    if (fenced := _FENCE.fullmatch(text)) and not _FENCE.fullmatch(source.chosen.strip()):
        text, taken_off = fenced[2].strip(), (*taken_off, "fence")
    found = Fault("truncated") if answer.stop_reason != "stop" else fault(source.chosen, text, **gates)
    if found:
        return Attempt(text, reason=found.gate, measured=found.measured, taken_off=taken_off)
    return Attempt(text, diff_spans(source.chosen, text), taken_off=taken_off)


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
