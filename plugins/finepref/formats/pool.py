"""A map over several processes, in order and in constant memory."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

FEW = 16
"""Up to this many items, mapping in this process is faster than starting others."""


class WorkerDied(RuntimeError):  # noqa: N818 (the name is public)
    """A worker process was killed."""


def ordered_map(function: Callable[[T], R], items: Iterable[T], *, jobs: int) -> Iterator[tuple[T, R]]:
    """(item, function(item)) of each item, in order; at most FEW + 2 * jobs items are held at a time.

    Args:
        function: a function of a module or a `partial` of one, since it goes to other processes.
        items: consumed lazily, as results are yielded.
        jobs: number of processes; 1 = run in this process. They start from a fork server and import the main script,
            which must do nothing when imported.

    Raises:
        WorkerDied: a process was killed, as the kernel does when memory is full.
    """
    items = iter(items)
    first = list(islice(items, FEW if jobs > 1 else 0))
    if len(first) < FEW:
        for item in chain(first, items):
            yield item, function(item)
        return
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("forkserver"), initializer=_start)
    running: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in chain(first, items):
            running.append((item, pool.submit(function, item)))
            if len(running) > 2 * jobs:
                item, future = running.popleft()
                yield item, future.result()
        for item, future in running:
            yield item, future.result()
    except BrokenProcessPool:
        message = "a worker process was killed, perhaps because memory ran out; --jobs 1 needs least"
        raise WorkerDied(message) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the first one ends the others
    Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    """End this process when its parent is killed."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
