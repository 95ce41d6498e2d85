"""Tables of separated values (.csv, .tsv), whose cells are all texts.

The first line names the columns. An empty cell is an absent key. A cell that is a JSON list of messages is that list;
all others stay texts until a layout wants something else, see `cell_value`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from finepref.formats.jsonl import MAX_LINE, RawRow, dumps
from finepref.formats.layout import is_message
from finepref.formats.problems import Problem

WANTS_NO_TEXT = frozenset({"FP011", "FP046", "FP080", "FP096", "FP104"})
"""Codes of problems of a text where the layout wants a number, a boolean, a list or an object."""

_WORDS = {"true": True, "false": False}


def read_table(file: BinaryIO, name: str, *, delimiter: str = ",") -> Iterator[RawRow]:
    """The rows of a table, good or bad; the line of a row is the one where it starts.

    Args:
        file: its bytes, UTF-8.
        name: of the file, for the problems.
        delimiter: between two cells.

    Raises:
        OSError: the file cannot be read.
    """
    limit = csv.field_size_limit(MAX_LINE)
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    line = 1
    try:
        columns = next(rows, None) or []
        if problem := _of_columns(columns, name):
            yield RawRow(0, b"", None, [problem])
            return
        line = rows.line_num + 1
        for cells in rows:
            if cells and len(cells) != len(columns):
                text = f"{len(cells)} cells, but the first line names {len(columns)} columns"
                row = dict(zip(columns, cells, strict=False))
                yield RawRow(line, dumps(row).encode(), None, [Problem(name, line, "", "FP083", text)])
            elif any(cells):
                given = {column: _messages(cell) for column, cell in zip(columns, cells, strict=True) if cell}
                yield RawRow(line, dumps(given).encode(), given, [])
            line = rows.line_num + 1
    except UnicodeDecodeError as error:
        text = f"byte 0x{error.object[error.start]:02x}, in line {line} or later, is not UTF-8"
        yield RawRow(0, b"", None, [Problem(name, 0, "", "FP003", text)])
    except csv.Error as error:
        text = f"{error}; the rows from here on are not read"
        yield RawRow(0, b"", None, [Problem(name, 0, f"line {line}", "FP083", text)])
    finally:
        csv.field_size_limit(limit)


def _of_columns(columns: Sequence[str], name: str) -> Problem | None:
    """What is wrong with the names of the columns."""
    twice = next((column for i, column in enumerate(columns) if column in columns[:i]), None)
    if twice is not None:
        return Problem(name, 0, "", "FP006", f"the column {twice[:80]!a} is there twice")
    return None if columns else Problem(name, 0, "", "FP002", "the first line names no column")


def _messages(cell: str) -> object:
    """A cell, decoded if it is a JSON list of messages."""
    if cell.startswith("[{") and cell.endswith("}]"):
        value = cell_value(cell)
        if isinstance(value, list) and all(map(is_message, value)):
            return value
    return cell


def cell_value(cell: object) -> object:
    """The number, boolean, list or object that a cell holds; the cell itself if it holds none."""
    if type(cell) is not str:
        return cell
    text = cell.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        value: object = json.loads(text, parse_constant=lambda name: cell)
    except (ValueError, RecursionError):
        return cell
    return cell if value is None or isinstance(value, str) else value


def typed(row: Mapping[str, object]) -> dict[str, object]:
    """A row with the value of each cell, to recognise its layout."""
    return {column: cell_value(cell) for column, cell in row.items()}


def wanted(row: Mapping[str, object], problems: Sequence[Problem]) -> dict[str, object]:
    """The cells that a layout wants otherwise than as texts, by the problems of the row: column -> value."""
    fields = [problem.field for problem in problems if problem.code in WANTS_NO_TEXT]
    found = {}
    for column, cell in row.items():
        if any(field == column or field.startswith((f"{column}[", f"{column}.")) for field in fields):
            value = cell_value(cell)
            if value is not cell:
                found[column] = value
    return found
