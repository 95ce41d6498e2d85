"""Attempts at a negative: by a model, whose answer must pass the gates, or by a rule. Each reject has a reason."""

from __future__ import annotations

from typing import NamedTuple

from finepref.formats.records import Span
from finepref.formats.spans import diff_spans
from finepref.synth.engines.protocol import Completion
from finepref.synth.judges.by_model import read_verdict
from finepref.synth.left_out import ENGINE
from finepref.synth.seapo import error_rules
from finepref.synth.seapo.gates import fault
from finepref.synth.seapo.prompts import Source


class Attempt(NamedTuple):
    """One text that should contain one error. `reason` says why it is not a usable negative, None if it is one."""

    text: str
    spans: tuple[Span, ...] = ()
    reason: str | None = None


def by_model(source: Source, answer: Completion, **gates: float) -> Attempt:
    """A model's answer, without leading and trailing white space, checked by `fault`; the spans are what differs."""
    text = answer.text.strip()
    if answer.error is not None:
        return Attempt(answer.error, reason=ENGINE)
    reason = "truncated" if answer.stop_reason != "stop" else fault(source.chosen, text, **gates)
    return Attempt(text, reason=reason) if reason else Attempt(text, diff_spans(source.chosen, text))


def by_rule(source: Source, error_type: str, *, seed: int) -> Attempt:
    """A rule's text and its exact span; gates are not needed, because the rule is known to be right."""
    name, _, number = error_type.partition("-")
    chance = f"{source.id}/{number}" if number else source.id
    made = error_rules.inject(name, prompt=source.prompt, chosen=source.chosen, seed=seed, record_id=chance)
    return Attempt(made.text, (made.span,)) if made else Attempt("", reason="no_equation")


def checked(attempt: Attempt, answer: Completion) -> Attempt:
    """The attempt, rejected unless the answer clearly confirms the error."""
    if answer.error is not None:
        return Attempt(answer.error, reason=ENGINE)
    verdict = read_verdict(answer.text)
    if verdict.passed:
        return attempt
    return Attempt(attempt.text, reason="check_unread" if verdict.passed is None else "no_error")
