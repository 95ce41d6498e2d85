"""Work divided among processes, on one machine or a cluster: Ray Data over groups.

Each worker is an actor that holds the model. It receives whole groups, as one process would form them, so that the
results are those of one process. A task of Ray is a block of many groups, as a task for each of many thousands would
cost minutes; a group's results come back when those of the next are ready, not with their whole block. Ray's own
`ray.data.llm` would form batches of its own and supports vLLM only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Work = Callable[[Iterable[list[Any]]], Iterator[list[Any]]]
"""A worker's function from groups to their results, as they are ready; all are lists of JSON values."""
BLOCKS = 64
"""Blocks per worker, if there are so many groups: with fewer, workers would be idle for longer at the end."""


def blocks(groups: int, workers: int) -> int:
    """The number of blocks for groups of work: one each up to BLOCKS per worker."""
    return min(groups, BLOCKS * workers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """Processes of Ray, on this machine or on the cluster at RAY_ADDRESS.

    Attributes:
        count: the number of processes.
        cpus, gpus: of each process; Ray places it where they are free.
    """

    count: int
    cpus: float = 1
    gpus: float = 0

    def share(self, groups: Sequence[list[Any]], start: Callable[[], Work]) -> Iterator[list[Any]]:
        """Start the workers, give each one block of groups at a time, and yield the results in any order.

        Raises:
            ChildProcessError: the work failed in a worker.
        """
        import ray

        if not groups:
            return
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"group": json.dumps(group)} for group in groups]
        shared = ray.data.from_items(rows, override_num_blocks=blocks(len(rows), self.count)).map_batches(
            _Worker,
            fn_constructor_args=[start],
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=self.count),
            num_cpus=self.cpus,
            num_gpus=self.gpus,
        )
        shared.context.target_max_block_size = 1  # byte, so that no row of results waits for the end of its block
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # after its own setup
        for row in shared.iter_rows():
            if row["failure"]:
                raise ChildProcessError(f"a worker of Ray failed: {row['failure']}")
            yield json.loads(row["found"])


class _Worker:
    """The class of an actor: a block of groups as JSON in, rows of results as JSON out."""

    def __init__(self, start: Callable[[], Work]) -> None:
        self.work = start()

    def __call__(self, rows: Mapping[str, Any]) -> Iterator[dict[str, list[str]]]:
        try:
            for found in self.work(map(json.loads, rows["group"])):
                yield {"found": [json.dumps(found)], "failure": [""]}
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            yield {"found": [""], "failure": [f"{type(error).__name__}: {error}"]}
