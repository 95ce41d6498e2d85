"""A prompt and a response as the token ids of a template, with the place of each token in the response's text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from finepref.formats.problems import Problem
from finepref.formats.records import FunctionCall, Prompt, as_turn
from finepref.methods.pair_rows import CHAT_TEMPLATE, offsets_in
from finepref.synth.engines.checkpoint import RefusedByTemplateError, ToolsRefusedError, prompt_ids, rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Tokens(NamedTuple):
    """A prompt and one response to it.

    Attributes:
        prompt: token ids of the prompt.
        response: token ids of the response, with what the template writes around its text.
        start: index in `response` of the first token of the text, -1 if its tokens are not there in one piece.
        offsets: half-open character range in the text of each token from there on, those after the text left out.
    """

    prompt: list[int]
    response: list[int]
    start: int
    offsets: list[tuple[int, int]]


Encode = Callable[[Prompt, str], Tokens]


class Template(NamedTuple):
    """A template: its name, as files and messages have it, and what makes a function of a tokenizer that encodes."""

    name: str
    encoder: Callable[[PreTrainedTokenizerBase], Encode]


class ChangedByTemplateError(ValueError):
    """The template writes the turns before a response differently when the response follows."""

    def __init__(self) -> None:
        super().__init__("the chat template changes the turns before a response when the response is added")


def by_chat_template(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Tokens by the tokenizer's chat template, prompt and response each on its own, as in our OpenRLHF stages.

    The function raises RefusedByTemplateError and ChangedByTemplateError.
    """

    def encode(prompt: Prompt, response: str) -> Tokens:
        before = rendered(tokenizer, prompt)
        both = rendered(tokenizer, [*prompt, as_turn(response)], answer=False)
        if not both.startswith(before):
            raise ChangedByTemplateError
        written = both[len(before) :]
        encoded = tokenizer(written, add_special_tokens=False, return_offsets_mapping=True)
        ids, place = encoded["input_ids"], written.find(response)
        offsets = offsets_in(response, encoded["offset_mapping"], before=place) if place >= 0 else []
        first = next((i for i, (start, end) in enumerate(offsets) if start < end), 0)
        start = first if place >= 0 else -1
        return Tokens(tokenizer(before, add_special_tokens=False)["input_ids"], ids, start, offsets[first:])

    return encode


def by_prompt_and_end_token(tokenizer: PreTrainedTokenizerBase, *, merge_system: bool = False) -> Encode:
    """The prompt by the tokenizer's chat template; the response is its text on its own and the end token.

    `merge_system`: see `checkpoint.rendered`.

    The function raises RefusedByTemplateError; a response that calls functions has no such form.
    """

    def encode(prompt: Prompt, response: str) -> Tokens:
        if isinstance(response, FunctionCall):
            raise ToolsRefusedError("the response calls functions, which only a chat template can write", "chosen")
        encoded = tokenizer(response, add_special_tokens=False, return_offsets_mapping=True)
        ids = [*encoded["input_ids"], tokenizer.eos_token_id]
        before = prompt_ids(tokenizer, prompt, merge_system=merge_system)
        return Tokens(before, ids, 0, [*map(tuple, encoded["offset_mapping"])])

    return encode


TOKENIZERS_OWN = Template(CHAT_TEMPLATE, by_chat_template)


def encoding_problem(error: RefusedByTemplateError | ChangedByTemplateError, *, file: str, line: int) -> Problem:
    """FP240, FP242 or FP231: what a template cannot write, at the row's place."""
    if isinstance(error, RefusedByTemplateError):
        return Problem(file, line, error.field, error.code, str(error))
    return Problem(file, line, "prompt", "FP231", str(error))
