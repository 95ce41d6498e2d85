"""Random draws of shape "unpaired": one response of a record per epoch, and another prompt's response for KTO's KL.

A record is a `Negatives`, or a single row (`Feedback`), of which nothing is drawn.

SeaPO (arXiv 2509.24781) draws "at random", but no released script does so. Here a draw depends only on seed,
epoch and record id. It does not depend on row order, workers, ranks, resuming or caches.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from hashlib import blake2b

from finepref.formats import negatives, records
from finepref.formats.problems import BadData, Problem

DIGESTS = 1 << 62  # digests of draws are below this
EVALUATION_EPOCH = 0  # evaluation always draws as in the first epoch, so that its values are comparable


def good_and_bad(record: records.Negatives | records.Feedback) -> tuple[dict[str, str], dict[str, str]]:
    """The desirable and the undesirable responses of a record, by the name that a draw gives them.

    These are "chosen" and the error types. An undesirable row without an error type is "undesirable".
    """
    if isinstance(record, records.Negatives):
        return {"chosen": record.chosen}, dict(record.negatives)
    if record.label:
        return {"chosen": record.response}, {}
    return {}, {record.error_type or "undesirable": record.response}


def error_types_of(record: records.Negatives | records.Feedback) -> set[str]:
    """The error types that a record names."""
    if isinstance(record, records.Negatives):
        return set(record.negatives)
    return {record.error_type} if record.error_type and not record.label else set()


def responses_of(record: records.Negatives | records.Feedback) -> set[str]:
    """The texts of all responses of a record."""
    good, bad = good_and_bad(record)
    return {*good.values(), *bad.values()}


def prompt_key(record: records.Record) -> str:
    """Hash of a prompt with its system text, 32 hex digits. Equal prompts have equal keys."""
    return blake2b(json.dumps(record.prompt, ensure_ascii=False).encode(), digest_size=16).hexdigest()


def partners(
    keyed: Sequence[tuple[str, str]], texts: Sequence[Collection[str]] | None = None, *, name: str = "dataset"
) -> list[int]:
    """Each row's partner: a row with another prompt, whose responses are its mismatched completions for the KL.

    LLaMA-Factory shifts the completions by one row, which pairs adjacent rows of the same prompt. Here the distinct
    prompts form a ring, sorted by key, and a row's partner is the record with the smallest id of the next prompt. So
    neither row order nor repeated prompts matter. Prompts whose record has a response that is also one of the row's
    own are passed over, because such a response is not mismatched; if there are only such prompts, none is.

    Args:
        keyed: (prompt key, record id) of every row.
        texts: the responses of every row; None to compare none.
        name: of the data, for messages.

    Returns:
        The index of each row's partner.

    Raises:
        BadData: all rows have the same prompt.
    """
    first: dict[str, tuple[str, int]] = {}
    for index, (key, record_id) in enumerate(keyed):
        if key not in first or record_id < first[key][0]:
            first[key] = (record_id, index)
    ring = sorted(first)
    if len(ring) < 2:
        raise BadData([Problem(name, 0, "prompt", "FP205", "KTO needs two different prompts for its KL term")])
    heads = [first[key][1] for key in ring]
    place = {key: i for i, key in enumerate(ring)}
    texts = texts or [()] * len(keyed)
    owners: dict[str, str] = {}
    shared = {
        text for (key, _), own in zip(keyed, texts, strict=True) for text in own if owners.setdefault(text, key) != key
    }

    @cache
    def without(own: frozenset[str]) -> list[int]:
        """Places in the ring of the prompts whose record has none of these responses."""
        return [i for i, head in enumerate(heads) if own.isdisjoint(texts[head])]

    def partner(key: str, own: frozenset[str]) -> int:
        free = without(own) if own else range(len(ring))
        after = bisect_left(free, place[key] + 1)
        turn = [*free[after : after + 1], *free[:1], (place[key] + 1) % len(ring)]
        return heads[next(i for i in turn if i != place[key])]

    return [partner(key, frozenset(shared.intersection(own))) for (key, _), own in zip(keyed, texts, strict=True)]


def draw_digest(epoch: int, record_id: str, name: str) -> int:
    """62-bit hash of one draw. The sum over a run identifies its draws, independently of order and ranks."""
    return int.from_bytes(blake2b(f"{epoch}:{record_id}:{name}".encode(), digest_size=8).digest(), "big") >> 2


def sum_digests(digests: Iterable[int]) -> int:
    """The number that identifies all draws of a run, or of several ranks."""
    return sum(digests) % DIGESTS


def digest_text(digest: int) -> str:
    """A digest as the receipt has it."""
    return f"{digest:016x}"


def draw_index(
    names: Sequence[str], record_id: str, *, seed: int, epoch: int, types: Collection[str] | None = None
) -> int:
    """Draw the alternative that a row trains on in an epoch.

    Args:
        names: error types of the alternatives, or ["chosen"].
        record_id, seed, epoch: what the draw depends on.
        types: error types to draw from, None for all; "chosen" is always allowed.

    Returns:
        An index into `names`. The drawn type does not depend on their order.

    Raises:
        ValueError: the record has no alternative of these types.
    """
    allowed = sorted(name for name in names if name == "chosen" or not types or name in types)
    if not allowed:
        raise ValueError(f"record {record_id} has no negative of type {', '.join(sorted(types or ()))}")
    return names.index(allowed[negatives.pick(len(allowed), seed=seed, epoch=epoch, record_id=record_id)])
