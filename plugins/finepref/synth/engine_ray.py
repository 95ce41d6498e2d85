"""Another engine's work shared among processes, on one machine or a cluster: Ray Data over groups of requests.

Each worker is an actor with the engine in it. It is given whole groups as the engine itself would form them, so that
the answers are those of one process, and each group is journalled when it comes back. Ray's own `ray.data.llm` would
form batches of its own and knows vLLM only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from finepref.formats.records import Message
from finepref.synth.engines import Completion, Divisible, Request


class RayEngine:
    """An engine in several processes; for a cluster, RAY_ADDRESS says where it is.

    Args:
        engine: what each worker has. The model must be found under the same name on every node.
        workers: how many.
        cpus, gpus: of each worker, which is placed where they are free.
    """

    def __init__(self, engine: Divisible, *, workers: int, cpus: float = 1, gpus: float = 0) -> None:
        self.engine, self.workers, self.cpus, self.gpus = engine, workers, cpus, gpus
        self.model = engine.model

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """Start the workers, give each one group at a time and yield what comes back, in any order.

        Raises:
            ChildProcessError: the engine failed in a worker.
        """
        import ray

        if not (groups := self.engine.groups(requests)):
            return
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"requests": json.dumps([asdict(request) for request in group])} for group in groups]
        answered = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Worker,
            fn_constructor_args=[self.engine],
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=self.workers),
            num_cpus=self.cpus,
            num_gpus=self.gpus,
        )
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it has set itself up by now
        for row in answered.iter_rows():
            if row["failure"]:
                raise ChildProcessError(f"a worker of Ray failed: {row['failure']}")
            yield [Completion(**each) for each in json.loads(row["completions"])]


class _Worker:
    """What an actor holds: one row of requests as JSON in, one row of their completions as JSON out."""

    def __init__(self, engine: Divisible) -> None:
        self.engine = engine

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, list[str]]:
        (text,) = rows["requests"]
        requests = [
            Request(**{**each, "messages": tuple(Message(*message) for message in each["messages"])})
            for each in json.loads(text)
        ]
        try:
            completions = [asdict(each) for together in self.engine.generate(requests) for each in together]
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            return {"completions": [""], "failure": [f"{type(error).__name__}: {error}"]}
        return {"completions": [json.dumps(completions)], "failure": [""]}
