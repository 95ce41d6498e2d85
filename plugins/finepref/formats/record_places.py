"""Problems of records, found after their file was closed, as problems of a file and a line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from finepref.formats import records
from finepref.formats.problems import Problem

_MARK = "record "


def record_mark(record_id: str) -> str:
    """What stands for a file name until `at` or `pinpoint` has put the record's file in its place."""
    return f"{_MARK}{record_id}"


def at(problems: Sequence[Problem], place: str) -> list[Problem]:
    """The problems of one record with its file and line; `place` is FILE:LINE."""
    file, _, line = place.rpartition(":")
    marked = (problem.file.startswith(_MARK) and not problem.line for problem in problems)
    return [
        replace(problem, file=file, line=int(line)) if mark else problem
        for problem, mark in zip(problems, marked, strict=True)
    ]


def pinpoint(problems: Iterable[Problem], sources: Iterable[tuple[str, int, records.Record]]) -> list[Problem]:
    """The problems with file and line of their records, by the (file, line, record) of the run's files."""
    places: dict[str, tuple[str, int]] = {}
    for file, line, record in sources:
        for record_id in (record.id, records.content_id(record.prompt)):
            places.setdefault(record_mark(record_id), (file, line))
    found = []
    for problem in problems:
        file, line = places.get(problem.file, (problem.file, problem.line))
        found.append(replace(problem, file=file, line=line))
    return found
