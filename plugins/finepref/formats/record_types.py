"""The seven record types, named by shape, and the fields of their rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from finepref.formats import choices
from finepref.formats.row import TOOLS, Message, Span
from finepref.formats.tool_calls import FunctionCall

Prompt = tuple[Message, ...]
"""The turns before a response. Tools are the first of them, with the role `row.TOOLS` (`split_tools`)."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A better and a worse response to one prompt; `margin` is the difference, in the unit of its source."""

    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class SpanPair:
    """A pair with annotated character spans. A response without spans counts as a whole.

    `side` is the one-sided form of the granular fork: 1 uses only the chosen response, -1 only the rejected, 0 both.
    """

    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    chosen_spans: tuple[Span, ...] = ()
    rejected_spans: tuple[Span, ...] = ()
    side: Literal[-1, 0, 1] = 0


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A pair with a score per token, by which SePO selects tokens, and TGDPO, TIS-DPO and cDPO weigh them.

    `score_kind` is "log_ratio" for log-probabilities of one model minus those of another, in nats, or "contrast" for
    cDPO's s_t, which lies in [0, 1].
    `tokenizer` is the fingerprint of the tokenizer (see `finepref.formats.scores`). There is one score per response
    token, and optionally one for the end token. The optional offsets are the characters of each scored token, by which
    scores are mapped to other tokenizers. `template` names the template that the prompt was written with, and
    `prompt_digest` is that of its tokens (see `finepref.formats.scores`); "" if the file does not tell.
    """

    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    tokenizer: str
    chosen_scores: tuple[float, ...]
    rejected_scores: tuple[float, ...]
    chosen_offsets: tuple[tuple[int, int], ...] = ()
    rejected_offsets: tuple[tuple[int, int], ...] = ()
    template: str = ""
    prompt_digest: str = ""
    score_kind: Literal["log_ratio", "contrast"] = "log_ratio"


@dataclass(frozen=True, slots=True)
class Ranked:
    """Two or more scored responses to one prompt; scores may be negative. Kind "apo": golden answer above samples."""

    id: str
    prompt: Prompt
    responses: tuple[str, ...]
    scores: tuple[float, ...]
    kind: Literal["human", "apo"] = "human"


@dataclass(frozen=True, slots=True)
class Feedback:
    """One response and whether it is desirable; an undesirable one may name its type of error."""

    id: str
    prompt: Prompt
    response: str
    label: bool
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class Negatives:
    """A good response and, per error type, the same response with that error injected (SeaPO).

    `spans` holds, per error type, the characters of the negative that contain the error; `rejected` is the original
    rejected response of the source data.
    """

    id: str
    prompt: Prompt
    chosen: str
    negatives: Mapping[str, str]
    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    rejected: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A multiple-choice question, its options in order, and the letter of the right one, "" if it is not known."""

    id: str
    question: str
    options: tuple[str, ...]
    answer: str = ""
    subject: str = ""

    @property
    def prompt(self) -> Prompt:
        """The question with its lettered options, as it is asked."""
        return (Message("user", choices.text(self.question, self.options)),)


Record = Pair | SpanPair | ScoredPair | Ranked | Feedback | Negatives | Choice

FORMATS: dict[str, type[Record]] = {
    "pair": Pair,
    "span_pair": SpanPair,
    "scored_pair": ScoredPair,
    "ranked": Ranked,
    "feedback": Feedback,
    "negatives": Negatives,
    "choice": Choice,
}

COMMON_FIELDS = ("id", "prompt", "query", "input", "history", "system", "messages", "tools")
"""Fields of every format but `choice`: `messages`, or `prompt` with an optional `system`, `query`, `input` and
`history`; `tools`.

As in the hosts, `query`, or `input`, is joined to the prompt in a new line; `history` holds earlier turns, [user,
assistant] each.
"""

FIELDS: dict[str, tuple[str, ...]] = {
    "pair": (*COMMON_FIELDS, "chosen", "rejected", "margin"),
    "span_pair": (*COMMON_FIELDS, "chosen", "rejected", "chosen_spans", "rejected_spans", "side"),
    "scored_pair": (
        *COMMON_FIELDS,
        "chosen",
        "rejected",
        "tokenizer",
        "chosen_scores",
        "rejected_scores",
        "chosen_offsets",
        "rejected_offsets",
        "template",
        "prompt_digest",
        "score_kind",
    ),
    "ranked": (*COMMON_FIELDS, "responses", "scores", "kind"),
    "feedback": (*COMMON_FIELDS, "response", "label", "error_type"),
    "negatives": (*COMMON_FIELDS, "chosen", "negatives", "spans", "rejected"),
    "choice": ("id", "question", "options", "answer", "subject"),
}
"""The fields of each format, in the order of `to_row`."""


def split_tools(prompt: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """The JSON of the tools of a prompt, "" if it has none, and its other turns."""
    if prompt and prompt[0].role == TOOLS:
        return prompt[0].content, prompt[1:]
    return "", prompt


def as_turn(response: str) -> Message:
    """A response as a turn of the assistant or a function call."""
    return Message("function_call" if isinstance(response, FunctionCall) else "assistant", str(response))


def content_id(prompt: Prompt, *texts: object) -> str:
    """16 hex digits: blake2b over the canonical JSON of the prompt and the texts."""
    named = [text if type(text) is str else _named(text) for text in texts]
    canonical = json.dumps([[list(turn) for turn in prompt], *named], ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def _named(text: object) -> object:
    """A text that differs from others if it is a call of functions."""
    if type(text) is FunctionCall:
        return as_turn(text)
    if isinstance(text, list | tuple) and text and isinstance(text[0], str):
        return [_named(each) for each in text]
    return text
