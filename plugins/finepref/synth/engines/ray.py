"""The work of an engine or a scorer shared among processes, on one machine or a cluster: Ray Data over groups.

Each worker is an actor with the model in it. It is given whole groups as one process would form them, so that the
results are those of one process, and each group is journalled when it comes back. Ray's own `ray.data.llm` would form
batches of its own and knows vLLM only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from finepref.formats.records import Message
from finepref.synth.engines.protocol import Completion, Divisible, Request
from finepref.synth.scorers.hf import Item, LocalScorer, Logps, Read, unfinished

Work = Callable[[list[Any]], list[Any]]
"""What a worker does to one group; both lists are JSON values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """Processes of Ray; for a cluster, RAY_ADDRESS says where it is.

    Attributes:
        count: how many.
        cpus, gpus: of each, which is placed where they are free.
    """

    count: int
    cpus: float = 1
    gpus: float = 0

    def share(self, groups: Sequence[list[Any]], start: Callable[[], Work]) -> Iterator[list[Any]]:
        """Start the workers, give each one group at a time and yield what comes back, in any order.

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
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it has set itself up by now
        for row in shared.iter_rows():
            if row["failure"]:
                raise ChildProcessError(f"a worker of Ray failed: {row['failure']}")
            yield json.loads(row["found"])


class _Worker:
    """What an actor holds: one row of a group as JSON in, one row of what was made of it as JSON out."""

    def __init__(self, start: Callable[[], Work]) -> None:
        self.work = start()

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, list[str]]:
        (text,) = rows["group"]
        try:
            found = self.work(json.loads(text))
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            return {"found": [""], "failure": [f"{type(error).__name__}: {error}"]}
        return {"found": [json.dumps(found)], "failure": [""]}


class RayEngine:
    """An engine in several processes. Its model must be found under the same name on every node."""

    def __init__(self, engine: Divisible, workers: Workers) -> None:
        self.engine, self.workers, self.model = engine, workers, engine.model

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """See `Engine` and `Workers.share`."""
        groups = [[asdict(request) for request in group] for group in self.engine.groups(requests)]
        for found in self.workers.share(groups, partial(_answering, self.engine)):
            yield [Completion(**each) for each in found]


def _answering(engine: Divisible) -> Work:
    def work(group: list[Any]) -> list[Any]:
        requests = [
            Request(**{**each, "messages": tuple(Message(*message) for message in each["messages"])}) for each in group
        ]
        return [asdict(each) for together in engine.generate(requests) for each in together]

    return work


class RayScorer:
    """A scorer in several processes. Its model must be found under the same name on every node."""

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
    """Loads the model at the first group; it is there as long as the worker."""
    opened, readers = ExitStack(), list[Read]()

    def work(group: list[Any]) -> list[Any]:
        items = [Item(*each) for each in group]
        if not readers:
            readers.append(opened.enter_context(scorer.loaded(items)))
        return [
            (name, {side: values.tolist() for side, values in sides.items()})
            for together in readers[0](items)
            for name, sides in together
        ]

    return work
