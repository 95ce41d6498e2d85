"""A function's results one after the other, computed in a thread while the caller works with the ones before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

ROOM = 2
"""Results that wait at most for the caller."""


def ahead(function: Callable[[T], R], things: Iterable[T], *, room: int = ROOM) -> Iterator[R]:
    """`map(function, things)`, with the calls in one other thread, in order, and at most `room` results waiting.

    What the function raises is raised here, in the place of its result. If the caller stops (close, or an exception
    such as KeyboardInterrupt), no further call begins, and a call under way is waited for.

    Args:
        function: called in the other thread, one call at a time.
        things: read in the caller's thread.
        room: 1 or more.
    """
    waiting: deque[Future[R]] = deque()
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
    try:
        for thing in things:
            waiting.append(thread.submit(function, thing))
            if len(waiting) > room:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)
