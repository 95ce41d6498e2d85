"""What asks and what answers: requests, completions, and the protocol behind which every engine stands.

An engine has a `model` (a name for what its answers depend on, for the journal's manifest) and one method, `generate`,
which takes requests and yields lists of completions: those that finished together. A batch is one list, so that the
journal holds it whole or not at all. A request that fails gives a Completion with `error`; no answer is lost by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from tqdm import tqdm

from finepref.formats.records import Message
from finepref.synth.journal import Journal

UNANSWERED = "engine: "
"""How the reason begins why there is nothing of a row that the engine failed on."""


@dataclass(frozen=True, slots=True)
class Request:
    """One thing to ask. `seed`, `top_p` and `top_k` (0: all tokens) act only when `temperature` is not 0.

    `repetition_penalty` divides the positive and multiplies the negative logits of tokens that are there already,
    in the prompt too (arXiv 1909.05858, section 4.1). Of endpoints only some know it and `top_k`.
    """

    id: str
    messages: tuple[Message, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one request. `stop_reason`: "stop" (it ended), "length" (it was cut) or the endpoint's own."""

    id: str
    text: str = ""
    stop_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None


class Engine(Protocol):
    """See the module's docstring."""

    model: str

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """Answer every request once, in any order."""
        ...


class Divisible(Engine, Protocol):
    """An engine whose work can be shared out: what it answers to a group of requests depends on the group alone."""

    def groups(self, requests: Iterable[Request]) -> list[list[Request]]:
        """Every request in one group, in groups as `generate` answers them together."""
        ...


def ask(requests: Iterable[Request], *, engine: Engine, journal: Journal) -> Iterator[Completion]:
    """Every request's completion as it gets known: first those that the journal holds, then the engine's answers.

    An answer is on the disk before it is yielded. Failures are not journalled, so the next run asks them again.
    """
    left: list[Request] = []
    for request in requests:
        if request.id in journal.done:
            yield Completion(**journal.done[request.id])  # type: ignore[arg-type]
        else:
            left.append(request)
    if left:
        for together in engine.generate(left):
            journal.append(asdict(completion) for completion in together if completion.error is None)
            yield from together


def ask_all(requests: Sequence[Request], *, engine: Engine, journal: Journal) -> dict[str, Completion]:
    """Every request's completion by id, see `ask`, with a progress bar named after the journal's job."""
    answers = ask(requests, engine=engine, journal=journal)
    name = str(journal.manifest["job"])
    shown = tqdm(answers, total=len(requests), desc=name, unit="answer", disable=None, smoothing=0.05)
    return {each.id: each for each in shown}


def request_seed(seed: int, request_id: str) -> int:
    """The seed of one request: 31 bits of blake2b of "seed:id", whatever the order or the batch."""
    digest = hashlib.blake2b(f"{seed}:{request_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
