"""Requests, completions, and the protocol that every engine follows.

An engine has a `model`, a name for everything that its answers depend on (for the journal's manifest), and one method,
`generate`, which takes requests and yields lists of completions: those that finished together. A batch is one list, so
that the journal holds all of it or nothing. A request that fails gives a Completion with `error`; no other answer is
lost by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from finepref.formats.problems import Problem
from finepref.formats.records import Message


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn. `top_p` and `top_k` (0: all tokens) have an effect only if `temperature` is not 0.

    `repetition_penalty` divides the positive logits and multiplies the negative logits of all tokens that already
    occur, also in the prompt (arXiv 1909.05858, section 4.1). Not every endpoint supports it and `top_k`.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model; see `Sampling`. `seed` has an effect only if `temperature` is not 0.

    `candidates` are the answers whose probabilities are asked for, see `engines.letters`.
    """

    id: str
    messages: tuple[Message, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one request. `stop_reason`: "stop" (finished), "length" (cut off) or the endpoint's own.

    `thought` is what `thoughts.without_thought` has taken off the beginning of the text.
    """

    id: str
    text: str = ""
    stop_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None
    thought: str = ""


class Engine(Protocol):
    """See the module's docstring."""

    model: str

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """Answer every request once, in any order."""
        ...


def prompt_problems(engine: Engine | None, messages: Sequence[Message], *, file: str, line: int) -> list[Problem]:
    """The problems that an engine knows of beforehand, such as a chat template that refuses the dialogue of a row.

    Args:
        engine: an engine in this process tells them by a method of this name; no other engine knows any.
        messages: the request.
        file, line: place of the row.
    """
    check = getattr(engine, "prompt_problems", None)
    return check(messages, file=file, line=line) if check else []


class Divisible(Engine, Protocol):
    """An engine whose work can be divided: its answers to a group of requests depend on that group only."""

    def groups(self, requests: Iterable[Request]) -> list[list[Request]]:
        """Every request in exactly one group; `generate` answers the requests of a group together."""
        ...


def request_seed(seed: int, request_id: str) -> int:
    """The seed of one request: 31 bits of blake2b of "seed:id", independent of order and batch."""
    digest = hashlib.blake2b(f"{seed}:{request_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
