"""Where the rows of a job come from: a file of JSON, or files of other kinds and layouts that another module reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol, TypeVar

from finepref.formats import tables
from finepref.formats.jsonl import RawRow, read_rows
from finepref.formats.problems import Problem
from finepref.formats.row import RowReader

T = TypeVar("T")


class Part(NamedTuple):
    """The rows of one file, with our names of the fields.

    Attributes:
        file: its name, for the problems.
        rows: of the file.
        columns: our field -> the column in the file, for the problems.
        cells: the rows are those of a table, whose values are texts until a number or a list is wanted.
    """

    file: str
    rows: Iterable[RawRow]
    columns: Mapping[str, str] = {}
    cells: bool = False

    def reader(self, row: Mapping[str, object], line: int) -> RowReader:
        """The reader of a row."""
        values = {**row} if self.columns else None
        return RowReader(row, columns=self.columns, file=self.file, line=line, nulls_absent=False, values=values)

    def parsed(self, row: Mapping[str, object], parse: Callable[[Mapping[str, object]], T | list[Problem]]) -> object:
        """What `parse` makes of a row; a list is its problems. Cells are decoded where more than a text is wanted."""
        found = parse(row)
        while self.cells and isinstance(found, list) and (values := tables.wanted(row, found)):
            row = {**row, **values}
            found = parse(row)
        return found


class RowSource(Protocol):
    """The rows of one or more files."""

    def parts(self) -> Iterable[Part]:
        """The files in order."""
        ...


Source = str | os.PathLike[str] | RowSource
"""A file of JSON Lines or a JSON array, or rows that are read in another way."""


def parts_of(source: Source) -> Iterable[Part]:
    """The files of a source."""
    if isinstance(source, str | os.PathLike):
        return [Part(os.fspath(source), read_rows(source))]
    return source.parts()
