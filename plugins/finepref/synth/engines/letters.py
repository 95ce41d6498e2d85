"""The probabilities of letters as the first token of an answer, from one forward pass and without sampling.

    P("B") is the sum over the tokens that write B there: "B", and " B" where the template lets a space follow.

An engine that can give them has a method `letters(requests)`, whose completions `read` reads. As an engine of its own
(`Letters`) it has a journal, resumes, and is divided among workers like any other.
"""

from __future__ import annotations

import json
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


def letters_of(engine: Engine, name: str) -> Engine:
    """The engine that gives an engine's letters.

    Args:
        engine: in this process, or in workers.
        name: of the engine, for the message.

    Raises:
        ValueError: it does not give the probabilities of the next token.
    """
    inner = engine.engine if isinstance(engine, RayEngine) else engine
    if not hasattr(inner, "letters"):
        raise ValueError(
            f"--by letters needs --engine hf: {name} does not give the probabilities of the answer's first token. "
            "With it, sample answers (--by text --n 10 --temperature 1) and judge them with --same letters"
        )
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


def completion(request_id: str, probabilities: Mapping[str, float], *, prompt_tokens: int) -> Completion:
    """The answer of an engine of letters: the probabilities as JSON."""
    if not probabilities:
        return Completion(request_id, prompt_tokens=prompt_tokens, error="no letter is one token after this template")
    text = json.dumps({letter: float(f"{p:.9g}") for letter, p in probabilities.items()})
    return Completion(request_id, text, "stop", prompt_tokens, 1)


def read(text: str, options: Iterable[str]) -> tuple[dict[str, float], float] | str:
    """The distribution over the letters of the options, and the probability outside them; or why there is none.

    Args:
        text: of the completion.
        options: the letters.
    """
    found = json.loads(text)
    names = [*options]
    if missing := [letter for letter in names if letter not in found]:
        return f"the letter {missing[0]} is not one token of the model"
    inside = sum(found[letter] for letter in names)
    if inside <= 0:
        return "no letter of an option has any probability"
    return {letter: found[letter] / inside for letter in names}, max(0.0, 1 - inside)
