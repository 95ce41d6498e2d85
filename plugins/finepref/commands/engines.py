"""What the commands that ask a model share: the names of the engines, and an engine from the options."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finepref.synth.engines import Engine


class EngineName(StrEnum):
    """What answers."""

    hf = "hf"
    openai = "openai"
    rules = "rules"


def engine_of(name: EngineName, *, model: str, base_url: str, batch_size: int, concurrency: int) -> Engine | None:
    """The engine that the options name, not started yet; None for rules.

    Raises:
        ValueError: the remote engine has no address, or none that is one.
    """
    if name is EngineName.rules:
        return None
    if name is EngineName.openai:
        if not base_url:
            raise ValueError("--engine openai needs --base-url (or OPENAI_BASE_URL), such as http://localhost:8000/v1")
        from finepref.synth.engine_openai import OpenAIEngine

        return OpenAIEngine(model, base_url=base_url, concurrency=concurrency)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from finepref.synth.engine_hf import HfEngine

    return HfEngine(model, batch_size=batch_size)
