"""A stream on several processes: every row is trained on once in each pass, and all processes take the same steps.

accelerate would read the stream on the first process and cut its batches for the others. It can neither cut batches
of several lengths nor those in which a row of the data is two rows of a tensor. Its other way, which the evaluation
takes, fills the last batch of a pass with rows that were there before.

Here all processes read the whole stream, in the same order, and each takes its part of every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset


def shares(rows: Iterable[Any], size: int, processes: int) -> Iterator[list[Any]]:
    """Micro-batches of a stream: the first process's, the second's, ..., the first's again.

    The rows that are left at the end are dealt evenly. If they are fewer than the processes, they are added to the
    batch before, some of whose micro-batches then have a row more.

    Args:
        rows: the stream.
        size: rows of a micro-batch.
        processes: how many there are.

    Raises:
        ValueError: the stream has fewer rows than there are processes.
    """
    source, held = iter(rows), []
    while batch := list(islice(source, size * processes)):
        if len(batch) < processes:
            held += batch
            break
        yield from _dealt(held, processes)
        held = batch
    if 0 < len(held) < processes:
        raise ValueError(
            f"{len(held)} rows of the stream are left for a data-loader worker of each of {processes} processes: use "
            "fewer `dataloader_num_workers`, or turn `streaming` off"
        )
    yield from _dealt(held, processes)


def _dealt(batch: list[Any], processes: int) -> Iterator[list[Any]]:
    """A batch in as many parts, whose sizes differ by one at most; nothing of an empty one."""
    for part in range(processes if batch else 0):
        yield batch[len(batch) * part // processes : len(batch) * (part + 1) // processes]


class MicroBatches(IterableDataset):
    """The micro-batches of `shares` as items, of which accelerate gives every process its own.

    Args:
        rows: a stream of `datasets`. Each data-loader worker reads its part of it.
        size, processes: see `shares`.
    """

    def __init__(self, rows: Any, *, size: int, processes: int) -> None:
        self.rows, self.size, self.processes = rows, size, processes

    def set_epoch(self, epoch: int) -> None:
        """Shuffle as in this pass."""
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[Any]]:
        return shares(self.rows, self.size, self.processes)


def of_one(collator: Callable[[list[Any]], Any], items: list[list[Any]]) -> Any:
    """The batch of the only item, a micro-batch."""
    (rows,) = items
    return collator(rows)


def train_dataloader(trainer: Any) -> Any:
    """The trainer's data loader of a stream, in place of the host's."""
    args = trainer.args
    batches = MicroBatches(trainer.train_dataset, size=args.train_batch_size, processes=args.world_size)
    loader = DataLoader(
        batches,
        batch_size=1,
        collate_fn=partial(of_one, trainer.data_collator),
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
    )
    return trainer.accelerator.prepare(loader)


def read_everywhere(training_args: Any) -> bool:
    """Let all processes read the stream, unless the user chose how accelerate shares batches. Returns whether they do.

    Args:
        training_args: the host's, before the trainer is made.
    """
    config = training_args.accelerator_config
    if config.split_batches or config.dispatch_batches is not None:
        return False
    config.dispatch_batches = False
    return True
