"""A scorer whose groups of items are divided among processes of Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from finepref.synth.ray_workers import Work, Workers
from finepref.synth.scorers.protocol import Item, LocalScorer, Logps, Read, unfinished


class RayScorer:
    """A scorer in several processes. Every node must have its model under the same name."""

    def __init__(self, scorer: LocalScorer, workers: Workers) -> None:
        self.scorer, self.workers = scorer, workers
        self.name, self.model, self.batch_tokens = scorer.name, scorer.model, scorer.batch_tokens

    def logps(self, items: Iterable[Item], *, done: Iterable[str] = ()) -> Iterator[list[tuple[str, Logps]]]:
        """See `Scorer` and `Workers.share`."""
        import torch

        finished = {*done}
        groups = unfinished(self.scorer.groups(items), finished)
        for found in self.workers.share(groups, partial(_reading, self.scorer)):
            yield [
                (name, {side: torch.tensor(values, dtype=torch.float32) for side, values in sides.items()})
                for name, sides in found
                if name not in finished
            ]


def _reading(scorer: LocalScorer) -> Work:
    """Loads the model at the first block and keeps it as long as the worker lives."""
    opened, readers = ExitStack(), list[Read]()

    def work(groups: Iterable[list[Any]]) -> Iterator[list[Any]]:
        block = [[Item(*each) for each in group] for group in groups]
        if not readers:
            readers.append(opened.enter_context(scorer.loaded([item for group in block for item in group])))
        for together in readers[0](block):
            yield [(name, {side: values.tolist() for side, values in sides.items()}) for name, sides in together]

    return work
