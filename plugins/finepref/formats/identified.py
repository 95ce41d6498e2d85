"""Read files of rows that are not records, most with unique ids; all problems of a file are reported at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, TypeVar

from finepref.formats.bad_rows import BadRows
from finepref.formats.checked_rows import Checked
from finepref.formats.problems import Problem
from finepref.formats.row import RowReader
from finepref.formats.row_source import Part, Source, parts_of


class Identified(Protocol):
    """The parsed form of a row."""

    @property
    def id(self) -> str:
        """Its id, unique in the file."""
        ...


T = TypeVar("T", bound=Identified)
R = TypeVar("R")


def read_identified(
    source: Source,
    read: Callable[[RowReader], T | None],
    *,
    empty: bool = False,
    bad_rows: BadRows | None = None,
) -> list[T]:
    """Parse every row of a file, or of several, with `read`; each has its own id.

    Args:
        source, read, empty, bad_rows: see `read_each`.

    Raises:
        BadData: see `read_each`; an id that is used twice is a problem of its second row.
    """
    places: dict[str, tuple[str, int]] = {}

    def read_once(reader: RowReader) -> T | None:
        each = read(reader)
        if each is not None and not reader.problems:
            file, line = places.setdefault(each.id, (reader.file, reader.line))
            where = f"line {line}" if file == reader.file else f"{file}:{line}"
            if (file, line) != (reader.file, reader.line) and "id" in reader.row:
                reader.note(reader.column("id"), "FP060", f"{each.id} is the id of {where}")
            elif (file, line) != (reader.file, reader.line):
                same = f"the row has no id, and its content gives it that of {where}"
                reader.note("", "FP060", f"{same}: write ids, or leave it out (`finepref dedup`, bad_rows: skip)")
        return each

    return read_each(source, read_once, empty=empty, bad_rows=bad_rows)


def read_each(
    source: Source,
    read: Callable[[RowReader], R | None],
    *,
    empty: bool = True,
    bad_rows: BadRows | None = None,
) -> list[R]:
    """Parse every row of a source with `read`.

    Args:
        source: a file of JSON Lines or a JSON array, or rows that are read in another way.
        read: parses one row through its reader. If it notes a problem with the reader, its result is ignored.
        empty: whether a source without rows is allowed.
        bad_rows: collects the bad rows and decides about them; None = each is an error.

    Raises:
        BadData: there are bad rows and `bad_rows` does not accept them, or a file as a whole has a problem.
    """
    bad = BadRows() if bad_rows is None else bad_rows
    found: list[R] = []
    name = ""

    def rows(part: Part) -> Iterator[Checked]:
        for raw in part.rows:
            if raw.value is None:
                yield Checked(raw, (), raw.problems)
                continue

            def parse(row: Mapping[str, object], line: int = raw.line) -> tuple[R | None] | list[Problem]:
                reader = part.reader(row, line)
                each = read(reader)
                return reader.problems or (each,)

            parsed = part.parsed(raw.value, parse)
            if isinstance(parsed, list):
                yield Checked(raw, (), parsed)
                continue
            found.extend(each for each in parsed if each is not None)  # type: ignore[attr-defined]
            yield Checked(raw, (), [])

    read_before, problems_before = bad.read, len(bad.problems)
    for part in parts_of(source):
        name = name or part.file
        deque(bad.good(part.file, rows(part)), maxlen=0)
    if bad.read == read_before and len(bad.problems) == problems_before and not empty:
        bad.problems.append(Problem(name, 0, "", "FP002", "there is no row"))
    bad.settle()
    return found
