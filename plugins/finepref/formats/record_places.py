"""Problems of records, found after their file was closed, as problems of a file and a line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from finepref.formats import records
from finepref.formats.jsonl import ArrayLine
from finepref.formats.problems import Problem

_MARK = "record "
_CONTENT_ID = re.compile("[0-9a-f]{16}")


def record_mark(record_id: str) -> str:
    """What stands for a file name until `at` or `pinpoint` has put the record's file in its place."""
    return f"{_MARK}{record_id}"


def at(problems: Iterable[Problem], place: str) -> list[Problem]:
    """The problems of one record with its file and line; `place` is FILE:LINE."""
    file, line = place_of(place)
    return [_located(problem, file, line) if _is_marked(problem) else problem for problem in problems]


def place_of(text: str) -> tuple[str, int]:
    """File and line of a place as messages print it, FILE:LINE."""
    file, _, line = text.rpartition(":")
    return file, ArrayLine.read(line)


def _is_marked(problem: Problem) -> bool:
    return problem.file.startswith(_MARK) and not problem.line


def _located(problem: Problem, file: str, line: int) -> Problem:
    """A problem of a record with the record's file and line; an id that the data gives is kept."""
    given = problem.file.removeprefix(_MARK)
    return replace(problem, file=file, line=line, record="" if _CONTENT_ID.fullmatch(given) else given)


def pinpoint(problems: Iterable[Problem], sources: Iterable[tuple[str, int, records.Record]]) -> list[Problem]:
    """The problems with file and line of their records, by the (file, line, record) of the run's files."""
    places: dict[str, tuple[str, int]] = {}
    for file, line, record in sources:
        for record_id in (record.id, records.content_id(record.prompt)):
            places.setdefault(record_mark(record_id), (file, line))
    return [_located(problem, *places[problem.file]) if problem.file in places else problem for problem in problems]
