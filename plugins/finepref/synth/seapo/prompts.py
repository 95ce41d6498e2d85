"""SeaPO negatives (arXiv 2509.24781): the good answer to a question, rewritten with one error of a given type.

A model is asked for each error, or a rule puts it into worked arithmetic (`rules`). The prompt texts are our own. The
released code keeps whatever the model says; here gates reject what is no usable negative, and every rejected text is
listed with its reason.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from finepref.formats.records import Message, Prompt, Span
from finepref.formats.spans import diff_spans
from finepref.synth.engines.protocol import Completion, Request, request_seed
from finepref.synth.judges.by_rule import read_verdict
from finepref.synth.seapo import error_rules as rules

ERRORS = {
    "correctness": (
        "a factual error: a fact, date, name, calculation, translation, formula or use of a tool that was right "
        "becomes wrong"
    ),
    "logic": (
        "an error of reasoning: a contradiction, a conclusion that does not follow from what comes before it, a "
        "circular argument, or steps in an order that cannot work"
    ),
    "hallucination": (
        "made-up information: a source, event, quantity, quotation or detail that does not exist, told with "
        "confidence as if it were well known"
    ),
}
"""Error type -> what the model is told it is."""

ASK = """\
Below are a question and a good answer to it. Rewrite the answer so that it contains exactly one clear error of this \
kind: {error}.

- The error must be plain to someone who knows the subject, and it must make the answer worse.
- Change only what the error needs. Keep everything else word for word, with the same layout, language and length.
- Do not mark, explain or hint at the error, and write no note before or after the answer.
- Reply with the rewritten answer and nothing else.

### Question
{question}

### Good answer
{answer}

### Rewritten answer
"""
"""The text of a request: one user turn."""

CHECK = """\
Below are a question, a good answer to it, and a rewritten answer that should contain an error of this kind: {error}.

### Question
{question}

### Good answer
{answer}

### Rewritten answer
{rewritten}

### Verdict
Does the rewritten answer contain such an error, which the good answer does not? Reply with one JSON object and \
nothing else: {{"pass": true or false, "reason": "one short sentence"}}
"""
"""The text of the question whether the error is there."""

CHECK_VERSION = "check-" + hashlib.blake2b(CHECK.encode(), digest_size=4).hexdigest()
PROMPT_VERSION = "seapo-" + hashlib.blake2b("\0".join([ASK, *ERRORS.values()]).encode(), digest_size=4).hexdigest()
"""Changes with the texts above, so that no journal mixes answers to different texts."""

_REFUSAL = re.compile(
    r"\W*(i[’']?m (?:sorry|unable|not able)|i am (?:sorry|unable|not able)|sorry\b|i apologi[sz]e|i can(?:not|[’']t)\b"
    r"|i won[’']t\b|i must decline|as an ai\b|抱歉|很抱歉|对不起|我不能|我无法|作为(?:一个|一名)?(?:AI|人工智能))",
    re.IGNORECASE,
)
_COMMENTARY = re.compile(
    r"^\W*(here (?:is|are)\b|here[’']s\b|sure\b|certainly\b|of course\b|below is\b|#* ?(?:rewritten|revised|modified"
    r"|incorrect|good) (?:answer|response|version)|note:|explanation:|error:|the (?:error|mistake|change) (?:is|was)\b"
    r"|i(?: have|[’']ve)? (?:changed|introduced|altered|modified|inserted|replaced|made)\b|以下是|修改后|改写后"
    r"|注[:：]|说明[:：]|错误[:：])"
    r"|^#+ *(?:question|good answer|explanation|note|error)\b"
    r"|\b(?:deliberate(?:ly)?|intentional(?:ly)?) (?:error|mistake|wrong|incorrect|introduced)\b"
    r"|[(（](?:incorrect|wrong|错误)[)）]",
    re.IGNORECASE | re.MULTILINE,
)
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Source:
    """A question with a good answer, and the input row that it came in."""

    id: str
    prompt: Prompt
    chosen: str
    row: Mapping[str, object]


class Attempt(NamedTuple):
    """One text that should carry one error. `reason` says why it is no usable negative, None if it is one."""

    text: str
    spans: tuple[Span, ...] = ()
    reason: str | None = None


def request(source: Source, error_type: str, *, max_new_tokens: int, temperature: float, seed: int) -> Request:
    """What a model is asked for one error in one answer."""
    text = ASK.format(error=ERRORS[kind(error_type)], question=_question(source), answer=source.chosen)
    request_id = f"{source.id}/{error_type}"
    return Request(
        id=request_id,
        messages=(Message("user", text),),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=request_seed(seed, request_id),
    )


def check_request(source: Source, error_type: str, text: str, *, max_new_tokens: int) -> Request:
    """What a model is asked to find out whether the error is there."""
    asked = CHECK.format(
        error=ERRORS[kind(error_type)], question=_question(source), answer=source.chosen, rewritten=text
    )
    return Request(f"{source.id}/{error_type}", (Message("user", asked),), max_new_tokens)


def checked(attempt: Attempt, answer: Completion) -> Attempt:
    """The attempt, rejected unless the answer says clearly that the error is there."""
    if answer.error is not None:
        return Attempt(answer.error, reason="engine")
    verdict = read_verdict(answer.text)
    if verdict.passed:
        return attempt
    return Attempt(attempt.text, reason="check_unread" if verdict.passed is None else "no_error")


def variants(types: Sequence[str], count: int) -> list[str]:
    """Names under which `count` negatives of each type are kept: logic, logic-2, logic-3, ..."""
    return [name if number == 1 else f"{name}-{number}" for name in types for number in range(1, count + 1)]


def kind(name: str) -> str:
    """The error type of a variant: logic of logic-2."""
    return name.partition("-")[0]


def by_model(source: Source, answer: Completion, **gates: float) -> Attempt:
    """A model's answer, without white space at its ends, judged by `fault`; the spans are found by comparison."""
    text = answer.text.strip()
    if answer.error is not None:
        return Attempt(answer.error, reason="engine")
    reason = "truncated" if answer.stop_reason != "stop" else fault(source.chosen, text, **gates)
    return Attempt(text, reason=reason) if reason else Attempt(text, diff_spans(source.chosen, text))


def by_rule(source: Source, error_type: str, *, seed: int) -> Attempt:
    """A rule's text and its exact span; the gates are not needed, as the rule knows what it did."""
    name, _, number = error_type.partition("-")
    chance = f"{source.id}/{number}" if number else source.id
    made = rules.inject(name, prompt=source.prompt, chosen=source.chosen, seed=seed, record_id=chance)
    return Attempt(made.text, (made.span,)) if made else Attempt("", reason="no_equation")


def _question(source: Source) -> str:
    if len(source.prompt) == 1:
        return source.prompt[0].content
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in source.prompt)


def fault(
    chosen: str,
    text: str,
    *,
    min_edit: float = 0.001,
    max_edit: float = 0.7,
    min_length_ratio: float = 0.5,
    max_length_ratio: float = 2.0,
) -> str | None:
    """The first gate that a rewritten answer fails, None if it passes all.

    empty, unchanged (but for white space), refusal, commentary (text about the answer), edit_small and edit_large (the
    share of words that differ, 1 - 2 M / (a + b) with a and b words in the two texts and M of them in common runs),
    short and long (characters over those of the chosen answer).
    """
    if not text:
        return "empty"
    if text.split() == chosen.split():
        return "unchanged"
    if _REFUSAL.match(text) and not _REFUSAL.match(chosen):
        return "refusal"
    if _COMMENTARY.search(text) and not _COMMENTARY.search(chosen):
        return "commentary"
    edit = 1 - difflib.SequenceMatcher(None, _WORD.findall(chosen), _WORD.findall(text), autojunk=False).ratio()
    if not min_edit <= edit <= max_edit:
        return "edit_small" if edit < min_edit else "edit_large"
    length_ratio = len(text) / len(chosen)
    if not min_length_ratio <= length_ratio <= max_length_ratio:
        return "short" if length_ratio < min_length_ratio else "long"
    return None
