"""Work divided among processes, on one machine or a cluster: Ray Data over groups.

Each worker is an actor that holds the model. It receives whole groups, as one process would form them, so that the
results are those of one process; each group is journalled when it comes back. Ray's own `ray.data.llm` would form
batches of its own and supports vLLM only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Work = Callable[[list[Any]], list[Any]]
"""A worker's function from one group to its results; both are lists of JSON values."""


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
        """Start the workers, give each one group at a time, and yield the results in any order.

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
        shared = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Worker,
            fn_constructor_args=[start],
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=self.count),
            num_cpus=self.cpus,
            num_gpus=self.gpus,
        )
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # after its own setup
        for row in shared.iter_rows():
            if row["failure"]:
                raise ChildProcessError(f"a worker of Ray failed: {row['failure']}")
            yield json.loads(row["found"])


class _Worker:
    """The class of an actor: one row with a group as JSON in, one row with its results as JSON out."""

    def __init__(self, start: Callable[[], Work]) -> None:
        self.work = start()

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, list[str]]:
        (text,) = rows["group"]
        try:
            found = self.work(json.loads(text))
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            return {"found": [""], "failure": [f"{type(error).__name__}: {error}"]}
        return {"found": [json.dumps(found)], "failure": [""]}
