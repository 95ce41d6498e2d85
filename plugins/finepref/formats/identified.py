"""Files of rows that have ids, of other shapes than the records': all problems of a file at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol, TypeVar

from finepref.formats.jsonl import read_rows
from finepref.formats.problems import BadData, Problem
from finepref.formats.row import RowReader


class Identified(Protocol):
    """What is made of a row."""

    @property
    def id(self) -> str:
        """Its id, which no other row of the file has."""
        ...


T = TypeVar("T", bound=Identified)


def read_identified(
    path: str | os.PathLike[str], read: Callable[[RowReader], T | None], *, empty: bool = False
) -> list[T]:
    """What `read` makes of every row of JSON Lines or a JSON array.

    Args:
        path: the file.
        read: takes a row by its reader; None, or anything, where it notes a problem with the reader.
        empty: whether a file may have no row.

    Raises:
        BadData: with all problems of the file, such as an id that is there twice.
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
