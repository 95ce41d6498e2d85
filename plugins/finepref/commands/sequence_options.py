"""Options of commands that tokenise: the template, and what happens to sequences that are too long."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from finepref.synth.encoding import Template

TEMPLATE_NEEDS = "--template needs LLaMA-Factory"
OWN = "tokenizer"
"""The name that stands for the tokenizer's chat template."""


class OverlongPolicy(StrEnum):
    """What happens to records that are too long, see `methods.overlong`."""

    host = "host"
    keep_prompt = "keep_prompt"
    truncate_left = "truncate_left"
    skip = "skip"
    error = "error"


TemplateName = Annotated[
    str, typer.Option("--template", help="LLaMA-Factory's template of the training; default: the chat template.")
]
CutoffLen = Annotated[int, typer.Option("--cutoff-len", min=0, help="As in training; 0 = nothing is cut.")]


def template_of(name: str) -> Template:
    """A template of LLaMA-Factory; "" or "tokenizer" is the tokenizer's chat template.

    Raises:
        ModuleNotFoundError: LLaMA-Factory is not installed.
    """
    from finepref.synth.encoding import TOKENIZERS_OWN

    if name in ("", OWN):
        return TOKENIZERS_OWN
    try:
        from finepref.hosts.llamafactory.template_tokens import template
    except ModuleNotFoundError as error:
        text = f"{error}: the template {name} is LLaMA-Factory's; --template {OWN} is the tokenizer's chat template"
        raise ModuleNotFoundError(text) from None
    return template(name)
