"""Tokenises with a template of LLaMA-Factory outside of its runs, with the same result as in our stages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments

from finepref.formats.records import Prompt
from finepref.hosts.llamafactory.tokenized import encode, located
from finepref.synth.encoding import Encode, Template, Tokens


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
