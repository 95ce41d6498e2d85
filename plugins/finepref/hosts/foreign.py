"""Refuses a reference model that reads other tokens than the model that is trained."""

from __future__ import annotations

from typing import Any

from finepref.hosts.model_identity import vocabulary

SHOWN = 3


def require_same_tokens(tokenizer: Any, reference: str, *, key: str) -> None:
    """Compare the model's tokenizer with the reference model's, if that has a tokenizer.json.

    Args:
        tokenizer: the tokenizer that makes the token ids of the run.
        reference: folder or name of the reference model.
        key: the option that names it.

    Raises:
        ValueError: one line: a token has another id there, or its embedding lacks some of the ids.
    """
    theirs, size = vocabulary(reference)
    ours = tokenizer.get_vocab()
    if theirs is not None:
        other = sorted((ours[token], token) for token in ours.keys() & theirs.keys() if ours[token] != theirs[token])
        if other:
            examples = ", ".join(f"{token!r} is {number} and {theirs[token]}" for number, token in other[:SHOWN])
            raise ValueError(
                f"{key} {reference} has another tokenizer than the model: {len(other)} tokens have other ids there "
                f"({examples}); a reference model has to read the same token ids"
            )
    lacking = sorted((number, token) for token, number in ours.items() if size is not None and number >= size)
    if lacking:
        examples = ", ".join(f"{token!r} ({number})" for number, token in lacking[:SHOWN])
        raise ValueError(
            f"{key} {reference} has an embedding for {size} tokens, the model's tokenizer has {len(ours)}: it lacks "
            f"{examples}; a reference model has to read the same token ids"
        )
