"""Read files of rows with unique ids that are not records; all problems of a file are reported at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol, TypeVar

from finepref.formats.jsonl import read_rows
from finepref.formats.problems import BadData, Problem
from finepref.formats.row import RowReader


class Identified(Protocol):
    """The parsed form of a row."""

    @property
    def id(self) -> str:
        """Its id, unique in the file."""
        ...


T = TypeVar("T", bound=Identified)


def read_identified(
    path: str | os.PathLike[str], read: Callable[[RowReader], T | None], *, empty: bool = False
) -> list[T]:
    """Parse every row of a JSON Lines file or JSON array with `read`.

    Args:
        path: the file.
        read: parses one row through its reader. If it notes a problem with the reader, its result is ignored.
        empty: whether a file without rows is allowed.

    Raises:
        BadData: all problems of the file, duplicate ids included.
    """
    name = os.fspath(path)
    found: list[T] = []
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    for raw in read_rows(path):
        problems += raw.problems
        if raw.value is None:
            continue
        reader = RowReader(raw.value, columns={}, file=name, line=raw.line, nulls_absent=False)
        each = read(reader)
        if each is not None and not reader.problems:
            first = lines.setdefault(each.id, raw.line)
            if first != raw.line:
                reader.note("id", "FP060", f"{each.id} is the id of line {first}")
            found.append(each)
        problems += reader.problems
    if not found and not problems and not empty:
        problems.append(Problem(name, 0, "", "FP002", "there is no row"))
    if problems:
        raise BadData(problems)
    return found
