"""Read files of rows that are not records, most with unique ids; all problems of a file are reported at once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from finepref.formats.bad_rows import BadRows
from finepref.formats.checked_rows import Checked
from finepref.formats.jsonl import read_rows
from finepref.formats.problems import Problem
from finepref.formats.row import RowReader


class Identified(Protocol):
    """The parsed form of a row."""

    @property
    def id(self) -> str:
        """Its id, unique in the file."""
        ...


T = TypeVar("T", bound=Identified)
R = TypeVar("R")


def read_identified(
    path: str | os.PathLike[str],
    read: Callable[[RowReader], T | None],
    *,
    empty: bool = False,
    bad_rows: BadRows | None = None,
) -> list[T]:
    """Parse every row of a file with `read`; each has its own id.

    Args:
        path, read, empty, bad_rows: see `read_each`.

    Raises:
        BadData: see `read_each`; an id that is used twice is a problem of its second row.
    """
    lines: dict[str, int] = {}

    def read_once(reader: RowReader) -> T | None:
        each = read(reader)
        if each is not None and not reader.problems:
            first = lines.setdefault(each.id, reader.line)
            if first != reader.line and "id" in reader.row:
                reader.note("id", "FP060", f"{each.id} is the id of line {first}")
            elif first != reader.line:
                same = f"the row has no id, and its content gives it that of line {first}"
                reader.note("", "FP060", f"{same}: write ids, or leave it out (`finepref dedup`, bad_rows: skip)")
        return each

    return read_each(path, read_once, empty=empty, bad_rows=bad_rows)


def read_each(
    path: str | os.PathLike[str],
    read: Callable[[RowReader], R | None],
    *,
    empty: bool = True,
    bad_rows: BadRows | None = None,
) -> list[R]:
    """Parse every row of a JSON Lines file or JSON array with `read`.

    Args:
        path: the file.
        read: parses one row through its reader. If it notes a problem with the reader, its result is ignored.
        empty: whether a file without rows is allowed.
        bad_rows: collects the bad rows and decides about them; None = each is an error.

    Raises:
        BadData: there are bad rows and `bad_rows` does not accept them, or the file as a whole has a problem.
    """
    name, bad = os.fspath(path), BadRows() if bad_rows is None else bad_rows
    found: list[R] = []

    def rows() -> Iterator[Checked]:
        for raw in read_rows(path):
            if raw.value is None:
                yield Checked(raw, (), raw.problems)
                continue
            reader = RowReader(raw.value, columns={}, file=name, line=raw.line, nulls_absent=False)
            each = read(reader)
            if each is not None and not reader.problems:
                found.append(each)
            yield Checked(raw, (), reader.problems)

    read_before, problems_before = bad.read, len(bad.problems)
    deque(bad.good(name, rows()), maxlen=0)
    if bad.read == read_before and len(bad.problems) == problems_before and not empty:
        bad.problems.append(Problem(name, 0, "", "FP002", "there is no row"))
    bad.settle()
    return found
