"""Tokenises with a template of LLaMA-Factory outside of its runs, with the same result as in our stages."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments

from finepref.formats.records import Prompt
from finepref.hosts.llamafactory.tokenized import encode


def encoder(name: str) -> Callable[[Any], Callable[[Prompt, str], tuple[list[int], list[int]]]]:
    """A function of a tokenizer, which returns a function (prompt, response) -> their token ids by template `name`.

    The tokenizer gets the template's end token, as in the host's runs.
    """

    def for_tokenizer(tokenizer: Any) -> Callable[[Prompt, str], tuple[list[int], list[int]]]:
        template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name))
        processor = SimpleNamespace(template=template, tokenizer=tokenizer)
        return lambda prompt, response: encode(processor, prompt, response)

    return for_tokenizer
