"""Judges by a model: a guard model, and a model that is shown a rubric."""

from __future__ import annotations

import hashlib
import json
import re
from functools import partial

from finepref.formats.records import Message, Prompt
from finepref.synth.judges.guards import Guard, policy_variables, read
from finepref.synth.judges.verdict import ModelJudge, Verdict

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


def guard(kind: Guard = "llama-guard", *, policy: str = "", controversial: bool | None = None) -> ModelJudge:
    """A guard model: its chat template asks about the dialogue, whose last turn is the response.

    Args:
        kind: the form of its answers.
        policy: see `guards.policy_variables`.
        controversial: see `guards.read`.

    Raises:
        ValueError: see `guards.policy_variables`.
    """
    variables = policy_variables(kind, policy)
    version = "guard-1" if kind == "llama-guard" else f"{kind}-{_digest(json.dumps(variables, sort_keys=True))}"

    def answered(prompt: Prompt, response: str) -> tuple[Message, ...]:
        return (*prompt, Message("assistant", response))

    return ModelJudge(answered, partial(read, kind, controversial=controversial), version, variables)


def llm(rubric: str) -> ModelJudge:
    """A model that reads a rubric, a question and an answer; one JSON object with a boolean `pass` is a verdict."""

    def ask(prompt: Prompt, response: str) -> tuple[Message, ...]:
        question = "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in prompt)
        return (Message("user", ASK.format(rubric=rubric, question=question, answer=response)),)

    return ModelJudge(ask, read_verdict, f"llm-{_digest(ASK, rubric)}")


def _digest(*texts: str) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=4).hexdigest()


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
