"""The probabilities of the options of a question, from one forward pass and without sampling.

    by letters   P("B") as the first token of the answer: the sum over the tokens that write B there, "B" and, where
                 the template lets a space follow, " B"
    by options   P("Paris"), that the answer begins with the text of option B: what small models know, which cannot
                 answer with letters

An engine that can give them has a method `letters(requests)`, whose completions `read` reads. As an engine of its own
(`Letters`) it has a journal, resumes, and is divided among workers like any other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from finepref.formats.choices import LETTERS
from finepref.formats.problems import Problem
from finepref.formats.records import Message
from finepref.synth.engines.protocol import Completion, Divisible, Engine, Request, prompt_problems
from finepref.synth.engines.ray import RayEngine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ReadsLetters(Divisible, Protocol):
    """An engine that gives the probabilities of letters."""

    def letters(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """See `HfEngine.letters`."""
        ...


class Letters:
    """The letters of an engine, as an engine whose answers are read by `read`."""

    def __init__(self, engine: ReadsLetters) -> None:
        self.engine, self.model = engine, f"{engine.model}:letters"

    def prompt_problems(self, messages: Sequence[Message], *, file: str, line: int) -> list[Problem]:
        """See `protocol.prompt_problems`."""
        return prompt_problems(self.engine, messages, file=file, line=line)

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """See `Engine`."""
        return self.engine.letters(requests)

    def groups(self, requests: Iterable[Request]) -> list[list[Request]]:
        """See `Divisible`."""
        return self.engine.groups(requests)


def letters_of(engine: Engine, name: str, needs: str) -> Engine:
    """The engine that gives an engine's letters.

    Args:
        engine: in this process, or in workers.
        name: of the engine, for the message.
        needs: what needs which engine, for the message.

    Raises:
        ValueError: it does not give probabilities.
    """
    inner = engine.engine if isinstance(engine, RayEngine) else engine
    if not hasattr(inner, "letters"):
        raise ValueError(f"{needs}: {name} does not give the probabilities of given answers")
    own = Letters(inner)
    return RayEngine(own, engine.workers) if isinstance(engine, RayEngine) else own


def letter_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> dict[str, list[int]]:
    """Letter -> the single tokens that write it after a prompt, with or without a space before it.

    The prompt's text is tokenised with each spelling: one that changes the tokens of the prompt cannot follow it.
    """
    tail = [*prompt[-8:]]
    text = tokenizer.decode(tail, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    alone = tokenizer(text, add_special_tokens=False)["input_ids"]
    found: dict[str, list[int]] = {}
    for letter in LETTERS:
        own = []
        for spelling in (letter, f" {letter}"):
            ids = tokenizer(text + spelling, add_special_tokens=False)["input_ids"]
            if len(ids) == len(alone) + 1 and ids[:-1] == alone and ids[-1] not in own:
                own.append(ids[-1])
        if own:
            found[letter] = own
    return found


def tokens_after(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], text: str) -> list[int]:
    """The tokens of a text that follows a prompt; its own ones if it would change those of the prompt."""
    before = tokenizer.decode([*prompt[-8:]], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    alone = tokenizer(before, add_special_tokens=False)["input_ids"]
    ids = tokenizer(before + text, add_special_tokens=False)["input_ids"]
    if ids[: len(alone)] == alone and len(ids) > len(alone):
        return ids[len(alone) :]
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def completion(request_id: str, logps: Mapping[str, float], *, prompt_tokens: int) -> Completion:
    """The answer of an engine of letters: log-probabilities as JSON, null for minus infinity."""
    if not logps:
        return Completion(request_id, prompt_tokens=prompt_tokens, error="no letter is one token after this template")
    told = {letter: float(f"{p:.9g}") if math.isfinite(p) else None for letter, p in logps.items()}
    return Completion(request_id, json.dumps(told), "stop", prompt_tokens, 1)


def read(text: str, options: Iterable[str]) -> tuple[dict[str, float], float] | str:
    """The distribution over the letters of the options, and the probability outside them; or why there is none.

    Args:
        text: of the completion.
        options: the letters.
    """
    found, names = json.loads(text), [*options]
    if missing := [letter for letter in names if letter not in found]:
        return f"the letter {missing[0]} is not one token of the model"
    given = [found[letter] for letter in names if found[letter] is not None]
    if not given:
        return "no option has any probability"
    best = max(given)
    shares = {letter: 0.0 if found[letter] is None else math.exp(found[letter] - best) for letter in names}
    whole = sum(shares.values())
    return {letter: share / whole for letter, share in shares.items()}, max(0.0, 1 - whole * math.exp(best))
