"""Draws of shape "unpaired": one of a record's responses per epoch, another prompt's responses for KTO's KL.

SeaPO (arXiv 2509.24781) says "at random", and no released script does it. Here a draw depends on seed, epoch and
record id only, not on row order, workers, ranks, resume or caches.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from hashlib import blake2b

from finepref.formats import negatives, records
from finepref.formats.problems import BadData, Problem

EVALUATION_EPOCH = 0  # evaluation always draws as in the first epoch, so that its curves compare like with like


def prompt_key(record: records.Negatives) -> str:
    """Identity of a prompt, system text included."""
    return blake2b(json.dumps(record.prompt, ensure_ascii=False).encode(), digest_size=16).hexdigest()


def partners(keyed: Sequence[tuple[str, str]]) -> list[int]:
    """For every row the index of a row of another prompt, whose responses become its mismatched KL completions.

    LLaMA-Factory rotates completions by one, which pairs rows of one prompt when they sit side by side. Here the
    distinct prompts form a ring in the order of their keys, and a row's partner is the first record of the next
    prompt, so that neither row order nor repeated prompts matter.

    Args:
        keyed: (prompt key, record id) of every row.

    Raises:
        BadData: all rows have the same prompt.
    """
    first: dict[str, tuple[str, int]] = {}
    for index, (key, record_id) in enumerate(keyed):
        if key not in first or record_id < first[key][0]:
            first[key] = (record_id, index)
    ring = sorted(first)
    if len(ring) < 2:
        raise BadData([Problem("dataset", 0, "prompt", "FP205", "KTO needs two different prompts for its KL term")])
    following = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    return [first[following[key]][1] for key, _ in keyed]


def draw_digest(epoch: int, record_id: str, name: str) -> int:
    """A 62-bit number per draw; their sum identifies what a run has drawn, whatever the order or the rank."""
    return int.from_bytes(blake2b(f"{epoch}:{record_id}:{name}".encode(), digest_size=8).digest(), "big") >> 2


def draw_index(
    names: Sequence[str], record_id: str, *, seed: int, epoch: int, types: Collection[str] | None = None
) -> int:
    """Which of a row's alternatives an epoch trains on.

    Args:
        names: their error types, or ["chosen"].
        record_id, seed, epoch: what the draw depends on.
        types: the error types to draw from, all by default; "chosen" is always among them.

    Returns:
        An index into `names`; which type it is does not depend on their order.

    Raises:
        ValueError: none of the types asked for is there.
    """
    allowed = sorted(name for name in names if name == "chosen" or not types or name in types)
    if not allowed:
        raise ValueError(f"record {record_id} has no negative of type {', '.join(sorted(types or ()))}")
    return names.index(allowed[negatives.pick(len(allowed), seed=seed, epoch=epoch, record_id=record_id)])
