"""An engine whose groups of requests are divided among processes of Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from finepref.formats.problems import Problem
from finepref.formats.records import Message
from finepref.synth.engines.protocol import Completion, Divisible, Request, prompt_problems
from finepref.synth.ray_workers import Work, Workers


class RayEngine:
    """An engine in several processes. Every node must have its model under the same name."""

    def __init__(self, engine: Divisible, workers: Workers) -> None:
        self.engine, self.workers, self.model = engine, workers, engine.model

    def prompt_problems(self, messages: Sequence[Message], *, file: str, line: int) -> list[Problem]:
        """See `protocol.prompt_problems`."""
        return prompt_problems(self.engine, messages, file=file, line=line)

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """See `Engine` and `Workers.share`."""
        groups = [[asdict(request) for request in group] for group in self.engine.groups(requests)]
        for found in self.workers.share(groups, partial(_answering, self.engine)):
            yield [Completion(**each) for each in found]


def _answering(engine: Divisible) -> Work:
    def work(groups: Iterable[list[Any]]) -> Iterator[list[Any]]:
        for group in groups:
            requests = [
                Request(**{**each, "messages": tuple(Message(*message) for message in each["messages"])})
                for each in group
            ]
            yield [asdict(each) for together in engine.generate(requests) for each in together]

    return work
