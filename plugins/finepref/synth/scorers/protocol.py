"""What a scorer is: a causal language model that gives the log-probability of every token of given responses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Item(NamedTuple):
    """One prompt and its responses as token ids; the responses end in the end-of-sequence token."""

    id: str
    prompt: Sequence[int]
    responses: Mapping[str, Sequence[int]]


Logps = Mapping[str, "Tensor"]
"""Response name -> log-probability of each of its tokens, float32 [R]."""
Read = Callable[[Iterable[Sequence[Item]]], Iterator[list[tuple[str, Logps]]]]
"""Scores groups of items one after another: lists of (id, log-probabilities) that are ready together."""


class Scorer(Protocol):
    """A causal language model that gives the log-probability of each token of given responses.

    Attributes:
        name: folder or hub name of the model.
        model: a name for everything that the numbers depend on, for the journal's manifest.
        batch_tokens: most tokens that are read at a time.
    """

    name: str
    model: str
    batch_tokens: int

    def logps(self, items: Iterable[Item], *, done: Iterable[str] = ()) -> Iterator[list[tuple[str, Logps]]]:
        """Load the model, then yield (id, log-probabilities) of each item, those together that are ready together.

        Which items are read together depends on the items only, also if some are `done` and need not be read.
        """
        ...


class LocalScorer(ABC):
    """A `Scorer` that loads its model in this process, and reads one group of items after another."""

    name: str
    model: str
    batch_tokens: int

    @abstractmethod
    def groups(self, items: Iterable[Item]) -> list[list[Item]]:
        """Every item in exactly one group; an item's numbers depend on its group only."""

    @abstractmethod
    def loaded(self, items: Sequence[Item]) -> AbstractContextManager[Read]:
        """Load the model, with room for the items; gives what reads groups."""

    def logps(self, items: Iterable[Item], *, done: Iterable[str] = ()) -> Iterator[list[tuple[str, Logps]]]:
        """See `Scorer`; a group is skipped if all its ids are `done`. Raises what `loaded` raises."""
        ordered, finished = [*items], {*done}
        with self.loaded(ordered) as read:
            for together in read(unfinished(self.groups(ordered), finished)):
                if new := [each for each in together if each[0] not in finished]:
                    yield new


def unfinished(groups: Iterable[list[Item]], finished: Set[str]) -> list[list[Item]]:
    """The groups that are not finished."""
    return [group for group in groups if not finished >= {item.id for item in group}]
