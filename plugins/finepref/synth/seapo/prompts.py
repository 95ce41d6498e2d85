"""The prompts for SeaPO negatives (arXiv 2509.24781): a good answer, rewritten with one error of a given type.

The prompt texts are our own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finepref.formats.records import Message, Prompt
from finepref.synth.engines.protocol import Request, request_seed

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
"""Error type -> its description in the prompts."""

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
"""The text of a request for an error: one user turn."""

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
"""The text of a request to check that the error is present."""

CHECK_VERSION = "check-" + hashlib.blake2b(CHECK.encode(), digest_size=4).hexdigest()
PROMPT_VERSION = "seapo-" + hashlib.blake2b("\0".join([ASK, *ERRORS.values()]).encode(), digest_size=4).hexdigest()
"""Changes with the texts above, so that no journal mixes answers to different prompts."""


@dataclass(frozen=True, slots=True)
class Source:
    """A question with a good answer, and the input row that it comes from."""

    id: str
    prompt: Prompt
    chosen: str
    row: Mapping[str, object]


def request(source: Source, error_type: str, *, max_new_tokens: int, temperature: float, seed: int) -> Request:
    """The request for one error in one answer.

    Args:
        source: the question and its good answer.
        error_type: one of `ERRORS`, or a variant such as logic-2.
        max_new_tokens: longest answer.
        temperature: 0 is greedy.
        seed: of the job, see `request_seed`.
    """
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
    """The request to check that a text contains the error."""
    asked = CHECK.format(
        error=ERRORS[kind(error_type)], question=_question(source), answer=source.chosen, rewritten=text
    )
    return Request(f"{source.id}/{error_type}", (Message("user", asked),), max_new_tokens)


def variants(types: Sequence[str], count: int) -> list[str]:
    """The names of `count` negatives of each type: logic, logic-2, logic-3, ..."""
    return [name if number == 1 else f"{name}-{number}" for name in types for number in range(1, count + 1)]


def kind(name: str) -> str:
    """The error type of a variant, such as logic for logic-2."""
    return name.partition("-")[0]


def number_of(name: str) -> int:
    """The number of a variant, such as 2 for logic-2, and 1 for logic."""
    return int(name.partition("-")[2] or 1)


def _question(source: Source) -> str:
    if len(source.prompt) == 1:
        return source.prompt[0].content
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in source.prompt)
