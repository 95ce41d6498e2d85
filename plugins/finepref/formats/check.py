"""Check a data file: every row, then the file as a whole. Reports all problems, in constant memory."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

from finepref.formats.bad_rows import BadRows
from finepref.formats.checked_rows import Checked, rejected_row
from finepref.formats.jsonl import CHUNK, Chunk, RawRow, read_chunks, read_rows, rows_of, write_jsonl
from finepref.formats.pool import ordered_map
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
"""Column keys of the host's own formats; they are never read as error types."""


@dataclass(frozen=True, slots=True)
class FileReport:
    """The result of checking one file.

    Attributes:
        file, formatting: as given.
        rows: number of rows read; `rows - rejected` are good.
        rejected: number of rows with a problem.
        problems: problems of the whole file, then the first problems of rows, by line.
        total_problems: number of all problems.
        sha256: hex digest of the file's bytes, "" if it cannot be read.
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
        """Whether the file as a whole has no problem and at most a share `max_bad` of its rows is rejected."""
        return not any(p.line == 0 for p in self.problems) and self.rejected <= max_bad * self.rows


class Found(NamedTuple):
    """The content of a chunk of lines: (line, id, label) of good rows, bad rows, counts of unread columns."""

    good: list[tuple[int, str, bool | None]]
    bad: list[RawRow]
    ignored: Counter[str]


ParseRow = Callable[..., Record | list[Problem]]
"""`records.parse` or a released row's reader with its options bound: (value, line=) -> record or problems."""


def parse_rows(rows: Iterable[RawRow], parse_row: ParseRow) -> Iterator[Checked]:
    """Parse each row."""
    for raw in rows:
        if raw.value is None:
            yield Checked(raw, (), raw.problems)
        elif isinstance(parsed := parse_row(raw.value, line=raw.line), list):
            yield Checked(raw, (), parsed)
        else:
            yield Checked(raw, (parsed,), [])


def parse_chunk(chunk: Chunk, *, parse_row: ParseRow, known: set[str] | None) -> Found:
    """Parse a chunk of lines, keeping only what the check needs."""
    good: list[tuple[int, str, bool | None]] = []
    bad: list[RawRow] = []
    ignored: Counter[str] = Counter()
    for raw in rows_of(chunk):
        line, _, value, _ = raw
        if value is None:
            bad.append(raw)
            continue
        if known is not None and not value.keys() <= known:
            ignored.update(value.keys() - known)
        parsed = parse_row(value, line=line)
        if isinstance(parsed, list):
            bad.append(raw._replace(value=None, problems=parsed))
        else:
            good.append((line, parsed.id, parsed.label if isinstance(parsed, Feedback) else None))
    return Found(good, bad, ignored)


def check_file(
    path: str | os.PathLike[str],
    formatting: str,
    *,
    columns: Mapping[str, str] | None = None,
    error_type: str | None = None,
    error_types: Collection[str] | None = None,
    limit: int = SHOWN,
    rejected_path: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    chunk_size: int = CHUNK,
) -> FileReport:
    """Check every row of a file and the file as a whole; never raises for bad data.

    Args:
        path: JSON Lines or a JSON array.
        formatting, columns, error_type, error_types: as for `records.parse`.
        limit: number of row problems that the report keeps.
        rejected_path: where to write rejected rows: {file, line, problems: [{field, code, message}], and their text as
            `row`, or as `row_base64` if it is not UTF-8}. Written even if there are none.
        jobs: number of processes for a large file of lines, see `pool.ordered_map`; the result does not depend on it.
        chunk_size: bytes of lines that a process takes at a time.

    Raises:
        WorkerDied: a worker process was killed.
    """
    name = os.fspath(path)
    wrong_columns = check_columns(formatting, columns or {}, file=name)
    if wrong_columns:
        return FileReport(name, formatting, 0, 0, tuple(wrong_columns), len(wrong_columns), digest(path))

    parse_row = partial(
        parse, formatting=formatting, columns=columns, file=name, error_type=error_type, error_types=error_types
    )
    check = FileCheck(name, formatting, columns=columns or {}, limit=limit)
    rejected = check.rejected_in_file(path, parse_row, jobs=jobs, chunk_size=chunk_size)
    if rejected_path is None:
        deque(rejected, maxlen=0)
    else:
        write_jsonl(rejected_path, rejected)
    return check.report()


def read_records(
    path: str | os.PathLike[str],
    formatting: str,
    *,
    bad_rows: BadRows | None = None,
    check: Callable[[Record, int], list[Problem]] = lambda record, line: [],
) -> list[Record]:
    """All good records of a file.

    Args:
        path: JSON Lines or a JSON array.
        formatting: as for `records.parse`.
        bad_rows: collects the other rows and decides about them; None = each is an error.
        check: gives further problems of a record, from the record and its line.

    Raises:
        BadData: there are bad rows and `bad_rows` does not accept them, or the file as a whole has a problem.
    """
    name, bad = os.fspath(path), BadRows() if bad_rows is None else bad_rows
    whole = FileCheck(name, formatting, columns={})
    rows = whole.walk(parse_rows(read_rows(path), partial(parse, formatting=formatting, file=name)))
    records: list[Record] = []
    for row in bad.good(name, rows):
        if found := [problem for record in row.records for problem in check(record, row.raw.line)]:
            bad.refuse(name, row.raw, found)
        else:
            records += row.records
    bad.problems += [problem for problem in whole.of_file if problem not in bad.problems]
    bad.settle()
    return records


def check_columns(
    formatting: str, columns: Mapping[str, object], *, file: str, field: str = "columns"
) -> list[Problem]:
    """The problems of a column mapping {our field: the column in the file}."""
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
    """One pass over the rows of a file, by one of the generator methods; `report` then returns the result.

    Args:
        file: its name, for the problems.
        formatting: the format of the records.
        columns: our field -> the column in the file; None for released files.
        limit: number of row problems to keep.

    Attributes:
        sha256: hex digest of the file's bytes, set by the methods that read the file.
    """

    def __init__(
        self, file: str, formatting: str, *, columns: Mapping[str, str] | None = None, limit: int = SHOWN
    ) -> None:
        self.file = file
        self.formatting = formatting
        self.limit = limit
        self.sha256 = ""
        self.known: set[str] | None = None
        if columns is not None:
            taken = set(columns.values())
            self.known = {name for name in FIELDS[formatting] if name not in columns and name not in taken} | taken
        self.rows = self.rejected = self.total = 0
        self.desirable = self.undesirable = 0
        self.of_file: list[Problem] = []
        self.of_rows: list[Problem] = []
        self.ignored: Counter[str] = Counter()

    def rejected_in_file(
        self,
        path: str | os.PathLike[str],
        parse_row: ParseRow,
        *,
        jobs: int = 1,
        chunk_size: int = CHUNK,
        progress: Callable[[int], object] = int,
    ) -> Iterator[dict[str, object]]:
        """Check JSON Lines or a JSON array and yield the bad rows in the form that `check_file` writes.

        Args:
            path: the file.
            parse_row: reads a row.
            jobs, chunk_size: as for `check_file`.
            progress: called with the number of rows checked since its last call.
        """
        digest = hashlib.sha256()
        chunks = read_chunks(path, size=chunk_size, tee=digest.update)
        first = next(chunks, Chunk(self.file, 1))
        if first.array:
            yield from self.rejected_rows(parse_rows(rows_of(first), parse_row))
            progress(self.rows)
            deque(chunks, maxlen=0)  # nothing left to check, but the digest covers the whole file
        else:
            yield from self._rejected_in_chunks(chain((first,), chunks), parse_row, jobs, progress)
        if not any(problem.code == "FP001" for problem in self.of_file):
            self.sha256 = digest.hexdigest()

    def _rejected_in_chunks(
        self, chunks: Iterable[Chunk], parse_row: ParseRow, jobs: int, progress: Callable[[int], object]
    ) -> Iterator[dict[str, object]]:
        parse_lines = partial(parse_chunk, parse_row=parse_row, known=self.known)
        with SeenIds() as seen:
            for chunk, (good, bad, ignored) in ordered_map(parse_lines, chunks, jobs=jobs):
                count = len(good) + sum(raw.line > 0 for raw in bad)
                lines: list[bytes] = []
                for line, record_id, label in good:
                    if problems := self._against_earlier(line, record_id, label, seen):
                        lines = lines or chunk.content.split(b"\n")
                        bad.append(RawRow(line, lines[line - chunk.line], None, problems))
                bad.sort(key=attrgetter("line"))
                for raw in bad:
                    self._note(raw.line, raw.problems)
                    if raw.line:
                        yield rejected_row(self.file, raw)
                self.rows += count
                self.ignored.update(ignored)
                progress(count)
        self._note(0, self._set_problems())

    def rejected_rows(self, rows: Iterable[Checked]) -> Iterator[dict[str, object]]:
        """Check all rows and yield the bad ones in the form that `check_file` writes."""
        for row in self.walk(rows):
            if row.problems and row.raw.line:
                yield rejected_row(self.file, row.raw._replace(problems=row.problems))

    def walk(self, rows: Iterable[Checked]) -> Iterator[Checked]:
        """Check rows one by one and yield each."""
        with SeenIds() as seen:
            for row in rows:
                line, _, value, _ = row.raw
                if self.known is not None and value is not None:
                    self.ignored.update(value.keys() - self.known)
                for record in row.records:
                    label = record.label if isinstance(record, Feedback) else None
                    if problems := self._against_earlier(line, record.id, label, seen):
                        row = Checked(row.raw, (), problems)
                        break
                self.rows += line > 0
                self._note(line, row.problems)
                yield row
        self._note(0, self._set_problems())

    def _against_earlier(self, line: int, record_id: str, label: bool | None, seen: SeenIds) -> list[Problem]:
        first = seen.line_of(record_id, line)
        if first is not None:
            return [Problem(self.file, line, "id", "FP060", f"{record_id!a} is the id of line {first} too")]
        if label is not None:
            self.desirable += label
            self.undesirable += not label
        return []

    def _set_problems(self) -> list[Problem]:
        if self.rows == 0 and not self.of_file:
            return [Problem(self.file, 0, "", "FP002", "the file has no record")]
        labelled = self.desirable + self.undesirable
        if labelled and labelled in (self.desirable, self.undesirable):
            only = "true" if self.desirable else "false"
            return [Problem(self.file, 0, "label", "FP061", f"all {labelled} good rows are labelled {only}")]
        return []

    def _note(self, line: int, problems: Sequence[Problem]) -> None:
        self.rejected += line > 0 and len(problems) > 0
        self.total += len(problems)
        for problem in problems:
            if problem.line == 0:
                self.of_file.append(problem)
            elif len(self.of_rows) < self.limit:
                self.of_rows.append(problem)

    def report(self) -> FileReport:
        """The result so far."""
        problems = (*self.of_file, *self.of_rows)
        ignored = dict(sorted(self.ignored.items()))
        return FileReport(
            self.file, self.formatting, self.rows, self.rejected, problems, self.total, self.sha256, ignored
        )


class SeenIds:
    """The first line that used each id. Above 100,000 ids, a temporary file keeps memory constant."""

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
        """The earlier line that used the id; None if there is none, and `line` is then recorded as the first."""
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
    """The sha256 of a file's bytes in hex, "" if it cannot be read (which `check_file` reports as FP001)."""
    if not os.path.isfile(path):
        return ""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
