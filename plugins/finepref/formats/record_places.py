"""Problems of records, found after their file was closed, as problems of a file and a line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from finepref.formats import records
from finepref.formats.problems import Problem

_MARK = "record "
_CONTENT_ID = re.compile("[0-9a-f]{16}")


def record_mark(record_id: str) -> str:
    """What stands for a file name until `pinpoint` has found the record."""
    return f"{_MARK}{record_id}"


def pinpoint(problems: Iterable[Problem], sources: Iterable[tuple[str, int, records.Record]]) -> list[Problem]:
    """The problems with file and line of their records, by the (file, line, record) of the run's files."""
    places: dict[str, tuple[str, int]] = {}
    for file, line, record in sources:
        for record_id in (record.id, records.content_id(record.prompt)):
            places.setdefault(record_mark(record_id), (file, line))
    found = []
    for problem in problems:
        file, line = places.get(problem.file, (problem.file, problem.line))
        given = problem.file.removeprefix(_MARK) if problem.file in places else ""
        found.append(replace(problem, file=file, line=line, record="" if _CONTENT_ID.fullmatch(given) else given))
    return found
