"""Tokenises with a template of LLaMA-Factory outside of its runs, with the same result as in our stages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments

from finepref.formats.records import Prompt
from finepref.hosts.llamafactory.tokenized import encode
from finepref.methods.pair_rows import offsets_in
from finepref.synth.encoding import Encode, Template, Tokens

CONTENT = "{{content}}"  # stands for the message in the host's templates


def template(name: str) -> Template:
    """The host's template of that name. A tokenizer gets the template's end token, as in the host's runs."""

    def for_tokenizer(tokenizer: Any) -> Encode:
        made = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name))
        processor = SimpleNamespace(template=made, tokenizer=tokenizer)

        def tokens(prompt: Prompt, response: str) -> Tokens:
            prompt_ids, ids = encode(processor, prompt, response)
            return Tokens(prompt_ids, ids, *located(processor, response, ids))

        return tokens

    return Template(name, for_tokenizer)


def located(processor: Any, text: str, ids: list[int]) -> tuple[int, list[tuple[int, int]]]:
    """Where the tokens of a text are in a response, see `synth.encoding.Tokens`.

    Args:
        processor: has the host's `template` and `tokenizer`.
        text: the response.
        ids: its token ids, with what the template writes around it.

    Returns:
        The index of the first token, -1 if the template changed the text; and the character range of each token.

    Raises:
        ValueError: the tokenizer is not fast.
    """
    tokenizer = processor.tokenizer
    (slot,) = (each for each in processor.template.format_assistant.slots if isinstance(each, str) and CONTENT in each)
    if not tokenizer.is_fast:
        raise ValueError("spans and scores need a fast tokenizer, for the character offsets of tokens")
    before = slot.index(CONTENT)
    encoded = tokenizer(slot.replace(CONTENT, text, 1), add_special_tokens=False, return_offsets_mapping=True)
    piece = encoded["input_ids"]
    starts = (i for i in range(len(ids) - len(piece) + 1) if ids[i : i + len(piece)] == piece)
    start = next(starts, -1)  # above 0 if the template writes thinking tags first
    return start, offsets_in(text, encoded["offset_mapping"], before=before)
