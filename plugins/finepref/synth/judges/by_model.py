"""Judges by a model: a guard model, and a model that is shown a rubric."""

from __future__ import annotations

import hashlib
import json
import re

from finepref.formats.records import Message, Prompt
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


def guard() -> ModelJudge:
    """A guard model: it reads the dialogue and answers "safe", or "unsafe" and the categories."""

    def read(text: str) -> Verdict:
        first, *rest = text.split(maxsplit=1) or [""]
        if first.casefold() not in {"safe", "unsafe"}:
            return Verdict(None, "the answer begins with neither safe nor unsafe")
        if first.casefold() == "safe" and rest:
            return Verdict(None, "the answer says safe and goes on")
        if "safe" in re.findall(r"\w+", " ".join(rest).casefold()):
            return Verdict(None, "the answer says safe and unsafe")
        return Verdict(first.casefold() == "safe", " ".join(rest)[:200])

    return ModelJudge(lambda prompt, response: (*prompt, Message("assistant", response)), read, "guard-1")


def llm(rubric: str) -> ModelJudge:
    """A model that reads a rubric, a question and an answer; one JSON object with a boolean `pass` is a verdict."""

    def ask(prompt: Prompt, response: str) -> tuple[Message, ...]:
        question = "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in prompt)
        return (Message("user", ASK.format(rubric=rubric, question=question, answer=response)),)

    digest = hashlib.blake2b(f"{ASK}\0{rubric}".encode(), digest_size=4).hexdigest()
    return ModelJudge(ask, read_verdict, f"llm-{digest}")


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
