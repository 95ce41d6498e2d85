"""Tries at a negative: what a gate rejects is asked for again, with another sentence or temperature, a bounded number
of times.

Each try is a job with a journal of its own (`try-2`, `try-3`, ... in the folder of the first), so that another number
of tries, or other gates, use the answers that are there. Which sentence a try takes does not depend on the gates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from finepref.synth.left_out import ENGINE
from finepref.synth.seapo.attempts import Attempt
from finepref.synth.seapo.prompts import Source

NO_SENTENCE = "no_sentence"
"""The reason if an answer has no sentence for an error of the type."""

Attempts = Mapping[str, Sequence[Attempt]]
"""The attempts for one source, in their order, by error type or variant; only the last one can be usable."""

Asked = tuple[Source, str]
"""A source, and the error type or variant that it needs."""


def in_tries(
    sources: Sequence[Source],
    names: Sequence[str],
    attempt: Callable[[Sequence[Asked], int], Iterable[Attempt]],
    *,
    tries: int,
) -> list[Attempts]:
    """The attempts for every source and error type, until one is usable or there were `tries` of them.

    A text that another error type of the same source has already is rejected (`same_as_another`). What the engine
    failed on, or has no sentence, is not tried again in this run.

    Args:
        sources: the questions.
        names: error types and variants.
        attempt: makes one attempt for each of what is asked, in the try of the given number, from 1.
        tries: the most attempts for one source and error type.
    """
    made: list[dict[str, list[Attempt]]] = [{name: [] for name in names} for _ in sources]
    places = {source.id: place for place, source in enumerate(sources)}
    asked: list[Asked] = [(source, name) for source in sources for name in names]
    for number in range(1, tries + 1):
        left: list[Asked] = []
        for (source, name), found in zip(asked, attempt(asked, number), strict=True):
            own = made[places[source.id]]
            if found.reason is None and found.text in usable(own).values():
                found = found._replace(spans=(), reason="same_as_another")
            own[name].append(found)
            if found.reason not in (None, ENGINE, NO_SENTENCE):
                left.append((source, name))
        asked = left
        if not asked:
            break
    return [*made]


def usable(attempts: Attempts) -> dict[str, str]:
    """The usable texts of a source by error type or variant."""
    return {name: tries[-1].text for name, tries in attempts.items() if tries and tries[-1].reason is None}
