"""Checking of a data file: every row, then the set as a whole; all problems at once, in constant memory."""

from __future__ import annotations

import base64
import hashlib
import os
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from finepref.formats.jsonl import RawRow, read_jsonl, read_rows, write_jsonl
from finepref.formats.problems import CODES, SHOWN, BadData, Problem
from finepref.formats.records import FIELDS, Feedback, Record, parse

__all__ = [
    "CODES",
    "BadData",
    "Checked",
    "FileCheck",
    "FileReport",
    "Problem",
    "check_columns",
    "check_file",
    "read_records",
]

HOST_COLUMNS = frozenset({"query", "history", "tools", "images", "videos", "audios", "kto_tag", "response", "label"})
"""Column keys of the host's own formats; none of them may be taken for an error type."""


@dataclass(frozen=True, slots=True)
class FileReport:
    """What was found in one file.

    Attributes:
        file, formatting: as given.
        rows: how many were read; `rows - rejected` are good.
        rejected: how many have a problem.
        problems: those of the whole file first, then the first ones of rows, by line.
        total_problems: how many there are in all.
        sha256: hex digest of the file's bytes, "" when it cannot be read.
        ignored: column -> number of rows that have it, for columns that the format does not read.
    """

    file: str
    formatting: str
    rows: int
    rejected: int
    problems: tuple[Problem, ...]
    total_problems: int
    sha256: str
    ignored: Mapping[str, int] = field(default_factory=dict)

    def passes(self, max_bad: float = 0.0) -> bool:
        """Whether there is no problem of the whole file and at most the share `max_bad` of the rows is rejected."""
        return not any(p.line == 0 for p in self.problems) and self.rejected <= max_bad * self.rows


class Checked(NamedTuple):
    """A row as read, and its record (several in some released files) or what is wrong with it."""

    raw: RawRow
    records: Sequence[Record]
    problems: list[Problem]


def parse_rows(rows: Iterable[RawRow], parse_row: Callable[..., Record | list[Problem]]) -> Iterator[Checked]:
    """Rows with their records, by `records.parse` or the reader of a released row, with its options bound."""
    for raw in rows:
        if raw.value is None:
            yield Checked(raw, (), raw.problems)
        elif isinstance(parsed := parse_row(raw.value, line=raw.line), list):
            yield Checked(raw, (), parsed)
        else:
            yield Checked(raw, (parsed,), [])


def check_file(
    path: str | os.PathLike[str],
    formatting: str,
    *,
    columns: Mapping[str, str] | None = None,
    error_type: str | None = None,
    error_types: Collection[str] | None = None,
    limit: int = SHOWN,
    rejected_path: str | os.PathLike[str] | None = None,
) -> FileReport:
    """Check every row of a file and the set of them; never raises for bad data.

    Args:
        path: JSON Lines or a JSON array.
        formatting, columns, error_type, error_types: as for `records.parse`.
        limit: how many problems of rows the report keeps.
        rejected_path: where to write rejected rows: {file, line, problems: [{field, code, message}], and their text as
            `row`, or as `row_base64` when it is not UTF-8}. Written even if there are none.
    """
    name = os.fspath(path)
    wrong_columns = check_columns(formatting, columns or {}, file=name)
    if wrong_columns:
        return FileReport(name, formatting, 0, 0, tuple(wrong_columns), len(wrong_columns), digest(path))

    def parse_row(value: object, line: int) -> Record | list[Problem]:
        return parse(
            value, formatting, columns=columns, file=name, line=line, error_type=error_type, error_types=error_types
        )

    check = FileCheck(name, formatting, columns=columns or {}, limit=limit)
    rejected = check.rejected_rows(parse_rows(read_rows(path), parse_row))
    if rejected_path is None:
        deque(rejected, maxlen=0)
    else:
        write_jsonl(rejected_path, rejected)
    return check.report(digest(path))


def read_records(path: str | os.PathLike[str], formatting: str) -> list[Record]:
    """All records of a file.

    Raises:
        BadData: with the problems of the whole file.
    """
    report = check_file(path, formatting)
    if report.total_problems:
        raise BadData(report.problems, report.total_problems)
    parsed = (parse(row, formatting, line=line) for line, row in read_jsonl(path, problems=None))
    return [record for record in parsed if not isinstance(record, list)]


def check_columns(
    formatting: str, columns: Mapping[str, object], *, file: str, field: str = "columns"
) -> list[Problem]:
    """What is wrong with a column mapping of our field name -> the name in the file."""
    if formatting not in FIELDS:
        return [Problem(file, 0, "formatting", "FP016", f"{formatting[:80]!a} is not one of {', '.join(FIELDS)}")]
    problems = []
    users: dict[object, str] = {}
    for name, column in columns.items():
        place = f"{field}.{name}"
        if type(column) is not str or not column:
            problems.append(Problem(file, 0, place, "FP017", "expected the name of a column"))
        elif name not in FIELDS[formatting] and (formatting != "negatives" or name in HOST_COLUMNS):
            known = ", ".join(FIELDS[formatting])
            problems.append(Problem(file, 0, place, "FP017", f"{formatting} has no such field; it has {known}"))
        elif users.setdefault(column, name) != name:
            problems.append(
                Problem(file, 0, place, "FP017", f"{users[column]} and {name} are both read from {column}")
            )
    return problems


class FileCheck:
    """One pass over the rows of a file: `walk` hands on good and bad ones, `report` then sums up.

    Args:
        file: its name, for the problems.
        formatting: the format of the records.
        columns: our field name -> the name in the file; None for released files.
        limit: how many problems of rows to keep.
    """

    def __init__(
        self, file: str, formatting: str, *, columns: Mapping[str, str] | None = None, limit: int = SHOWN
    ) -> None:
        self.file = file
        self.formatting = formatting
        self.limit = limit
        self.known: set[str] | None = None
        if columns is not None:
            taken = set(columns.values())
            self.known = {name for name in FIELDS[formatting] if name not in columns and name not in taken} | taken
        self.rows = self.rejected = self.total = 0
        self.desirable = self.undesirable = 0
        self.of_file: list[Problem] = []
        self.of_rows: list[Problem] = []
        self.ignored: Counter[str] = Counter()

    def rejected_rows(self, rows: Iterable[Checked]) -> Iterator[dict[str, object]]:
        """Walk over all rows and hand on the bad ones, as `check_file` writes them."""
        return (_rejected_row(self.file, row) for row in self.walk(rows) if row.problems and row.raw.line)

    def walk(self, rows: Iterable[Checked]) -> Iterator[Checked]:
        """Check rows one by one; what is wrong with the whole file comes as a last row with line 0."""
        known = self.known
        with SeenIds() as seen:
            for row in rows:
                line, _, value, _ = row.raw
                if known is not None and value is not None and not value.keys() <= known:
                    self.ignored.update(value.keys() - known)
                if row.records:
                    row = self._against_earlier(row, seen)
                self.rows += line > 0
                if row.problems:
                    self.rejected += line > 0
                    self._note(row.problems)
                yield row
        of_set = self._set_problems()
        if of_set:
            self._note(of_set)
            yield Checked(RawRow(0, b"", None, of_set), (), of_set)

    def _against_earlier(self, row: Checked, seen: SeenIds) -> Checked:
        line = row.raw.line
        for record in row.records:
            first = seen.line_of(record.id, line)
            if first is not None:
                message = f"{record.id!a} is the id of line {first} too"
                return Checked(row.raw, (), [Problem(self.file, line, "id", "FP060", message)])
            if isinstance(record, Feedback):
                self.desirable += record.label
                self.undesirable += not record.label
        return row

    def _set_problems(self) -> list[Problem]:
        if self.rows == 0 and not self.of_file:
            return [Problem(self.file, 0, "", "FP002", "the file has no record")]
        labelled = self.desirable + self.undesirable
        if labelled and labelled in (self.desirable, self.undesirable):
            only = "true" if self.desirable else "false"
            return [Problem(self.file, 0, "label", "FP061", f"all {labelled} good rows are labelled {only}")]
        return []

    def _note(self, problems: list[Problem]) -> None:
        self.total += len(problems)
        for problem in problems:
            if problem.line == 0:
                self.of_file.append(problem)
            elif len(self.of_rows) < self.limit:
                self.of_rows.append(problem)

    def report(self, sha256: str) -> FileReport:
        """The sum of what `walk` saw."""
        problems = (*self.of_file, *self.of_rows)
        return FileReport(
            self.file, self.formatting, self.rows, self.rejected, problems, self.total, sha256, dict(self.ignored)
        )


class SeenIds:
    """Which line used an id first. Above 100,000 ids they move to a temporary file, so memory stays constant."""

    def __init__(self, in_memory: int = 100_000) -> None:
        self.in_memory = in_memory
        self.lines: dict[str, int] = {}
        self.table: sqlite3.Connection | None = None

    def __enter__(self) -> SeenIds:
        return self

    def __exit__(self, *error: object) -> None:
        if self.table is not None:
            self.table.close()

    def line_of(self, record_id: str, line: int) -> int | None:
        """The line that used the id before, else None, and `line` has it from now on."""
        if self.table is None:
            first = self.lines.setdefault(record_id, line)
            if len(self.lines) > self.in_memory:
                self._spill()
            return None if first == line else first
        if self.table.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (record_id, line)).rowcount:
            return None
        row: tuple[int] = self.table.execute("SELECT line FROM seen WHERE id = ?", (record_id,)).fetchone()
        return row[0]

    def _spill(self) -> None:
        self.table = sqlite3.connect("", isolation_level=None)  # "" is a private file that vanishes on close
        self.table.execute("PRAGMA journal_mode = OFF")
        self.table.execute("PRAGMA synchronous = OFF")
        self.table.execute("PRAGMA cache_size = -32768")
        self.table.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID")
        self.table.execute("BEGIN")
        self.table.executemany("INSERT INTO seen VALUES (?, ?)", self.lines.items())
        self.lines = {}


def digest(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's bytes in hex, "" when it cannot be read (which `check_file` reports as FP001)."""
    if not os.path.isfile(path):
        return ""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _rejected_row(file: str, checked: Checked) -> dict[str, object]:
    problems = [{"field": p.field, "code": p.code, "message": p.message} for p in checked.problems]
    row: dict[str, object] = {"file": file, "line": checked.raw.line, "problems": problems}
    raw = checked.raw.raw.removesuffix(b"\n")
    try:
        return row | {"row": raw.decode()}
    except UnicodeDecodeError:
        return row | {"row_base64": base64.b64encode(raw).decode()}
