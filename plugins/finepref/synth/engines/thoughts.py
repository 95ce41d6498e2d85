"""Thoughts at the beginning of answers: reasoning models write them, and an endpoint may not parse them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from finepref.synth.engines.protocol import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ONLY_REASONING = "the model gave only reasoning and no answer; raise --max-new-tokens"
"""The error of a completion without anything after its thought."""

_NAMES = "think|thinking|thought|thoughts|reasoning|seed:think"
_OPEN = re.compile(rf"\s*(?:<({_NAMES})>|\[(THINK)\])", re.IGNORECASE)
_TAG = re.compile(rf"</?(?:{_NAMES})>|\[/?THINK\]", re.IGNORECASE)
_CLOSE = re.compile(r"((?!<think>).)*?</think>", re.IGNORECASE | re.DOTALL)


def split(text: str) -> tuple[str, str]:
    """An answer as (thought, rest): the thought is `<think>...</think>` at its beginning, with the white space around.

    Only one block is a thought. Without an opening tag everything up to a first `</think>` is one, because some chat
    templates write the opening tag themselves. A block that is not closed is a thought without a rest.
    """
    if opened := _OPEN.match(text):
        name = opened[1] or opened[2]
        close = re.compile(re.escape(f"</{name}>" if opened[1] else f"[/{name}]"), re.IGNORECASE)
        closed = close.search(text, opened.end())
    else:
        closed = _CLOSE.match(text)
        if closed is None:
            return "", text
    end = len(text) if closed is None else closed.end()
    rest = text[end:]
    return text[: len(text) - len(rest.lstrip())], rest.lstrip()


def decoded(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of generated tokens without special tokens, but with the tags of a thought, which may be special."""
    tags = {
        token: text
        for text, token in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        if _TAG.fullmatch(text)
    }
    if tags.keys().isdisjoint(tokens):
        return tokenizer.decode(tokens, skip_special_tokens=True)
    parts, start = [], 0
    for place, token in enumerate(tokens):
        if token in tags:
            parts += [tokenizer.decode(tokens[start:place], skip_special_tokens=True), tags[token]]
            start = place + 1
    return "".join([*parts, tokenizer.decode(tokens[start:], skip_special_tokens=True)])


def without_thought(answer: Completion) -> Completion:
    """The completion without the thought at the beginning of its text, or a failure if there is nothing else."""
    if answer.error is not None or answer.thought:
        return answer
    thought, text = split(answer.text)
    if not thought:
        return answer
    if not text.strip():
        return replace(answer, text="", thought=thought, error=ONLY_REASONING)
    return replace(answer, text=text, thought=thought)
