"""Requests as token ids, and token ids as completions; the same for the engines hf and vllm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from finepref.synth.engines.checkpoint import prompt_ids
from finepref.synth.engines.protocol import Completion, Request
from finepref.synth.engines.thoughts import decoded

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


class Planned(NamedTuple):
    """A request, the token ids of its prompt, and the most tokens that may follow: 0 if the prompt is too long."""

    request: Request
    prompt: list[int]
    limit: int


def plan(
    request: Request,
    tokenizer: PreTrainedTokenizerBase,
    *,
    room: int,
    merge_system: bool = False,
    variables: Mapping[str, object] | None = None,
) -> Planned:
    """A request with its prompt as tokens, for a model with a context of `room` tokens.

    Args:
        request: the request.
        tokenizer: of the model.
        room: its context.
        merge_system, variables: see `checkpoint.rendered`.

    Raises:
        RefusedByTemplateError: see `checkpoint.rendered`.
    """
    prompt = prompt_ids(tokenizer, request.messages, merge_system=merge_system, variables=variables)
    return Planned(request, prompt, max(0, min(request.max_new_tokens, room - len(prompt))))


def too_long(plan: Planned, room: int) -> Completion:
    """The failure of a request whose prompt leaves no room in the model's context."""
    reason = f"the prompt has {len(plan.prompt)} tokens and the model room for {room}"
    return Completion(plan.request.id, prompt_tokens=len(plan.prompt), error=reason)


def completion(
    plan: Planned, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase, *, ends: Sequence[int]
) -> Completion:
    """The completion from generated tokens, up to the first end token, which is counted but not part of the text."""
    end = next((i for i, token in enumerate(tokens[: plan.limit]) if token in ends), None)
    answer = tokens[: plan.limit if end is None else end]
    return Completion(
        id=plan.request.id,
        text=decoded(tokenizer, answer),
        stop_reason="length" if end is None else "stop",
        prompt_tokens=len(plan.prompt),
        completion_tokens=len(answer) + (end is not None),
    )


def end_tokens(defaults: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The end tokens of the tokenizer and of a model's generation defaults."""
    own = defaults.eos_token_id
    return sorted({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})
