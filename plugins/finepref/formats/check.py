"""Check a data file: every row, then the file as a whole. Reports all problems, in constant memory."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from operator import attrgetter
from typing import NamedTuple

from finepref.formats import layouts
from finepref.formats.bad_rows import BadRows
from finepref.formats.checked_rows import Checked, rejected_row
from finepref.formats.jsonl import CHUNK, ArrayLine, Chunk, RawRow, read_chunks, rows_of, write_jsonl
from finepref.formats.layouts import Noted, ParseRow, check_columns
from finepref.formats.pool import ordered_map
from finepref.formats.problems import CODES, LEFT_OUT, SHOWN, BadData, Group, Groups, Problem
from finepref.formats.records import FORMATS, Feedback, Record
from finepref.formats.row_source import Source, parts_of

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
        layout: of the rows, where it is not the format itself.
        groups: all problems, equal ones together.
        notes: what of good rows has no place in their records, equal ones together; no problems.
    """

    file: str
    formatting: str
    rows: int
    rejected: int
    problems: tuple[Problem, ...]
    total_problems: int
    sha256: str
    ignored: Mapping[str, int] = field(default_factory=dict)
    layout: str = ""
    groups: tuple[Group, ...] = ()
    notes: tuple[Group, ...] = ()

    def passes(self, max_bad: float = 0.0, *, allowed: Collection[str] = ()) -> bool:
        """Whether the file as a whole has no problem and at most a share `max_bad` of its rows is rejected.

        Args:
            max_bad: the share.
            allowed: codes of the whole file that are no problem.
        """
        of_file = [p for p in self.problems if p.line == 0 and p.code not in allowed]
        return not of_file and self.rejected <= max_bad * self.rows


class Found(NamedTuple):
    """The content of a chunk of lines: (line, id, label) of good records, bad rows, counts of unread columns, the
    number of records beyond one a row, and notes of good rows.
    """

    good: list[tuple[int, str, bool | None]]
    bad: list[RawRow]
    ignored: Counter[str]
    more: int
    notes: list[Problem]


def parse_rows(rows: Iterable[RawRow], parse_row: ParseRow) -> Iterator[Checked]:
    """Parse each row."""
    for raw in rows:
        if raw.value is None:
            yield Checked(raw, (), raw.problems)
        elif isinstance(parsed := parse_row(raw.value, line=raw.line), list):
            yield Checked(raw, (), parsed)
        else:
            records = parsed if isinstance(parsed, tuple) else (parsed,)
            yield Checked(raw, records, [], parsed.notes if isinstance(parsed, Noted) else ())


def parse_chunk(chunk: Chunk, *, parse_row: ParseRow, known: set[str] | None) -> Found:
    """Parse a chunk of lines, keeping only what the check needs."""
    good: list[tuple[int, str, bool | None]] = []
    bad: list[RawRow] = []
    ignored: Counter[str] = Counter()
    notes: list[Problem] = []
    more = 0
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
        elif isinstance(parsed, tuple):
            good += [(line, record.id, record.label if isinstance(record, Feedback) else None) for record in parsed]
            more += len(parsed) - 1
            if isinstance(parsed, Noted):
                notes += parsed.notes
        else:
            good.append((line, parsed.id, parsed.label if isinstance(parsed, Feedback) else None))
    return Found(good, bad, ignored, more, notes)


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
        formatting: a layout whose rows are read one by one, such as our formats.
        columns, error_type, error_types: as for `layouts.reader`.
        limit: number of row problems that the report keeps.
        rejected_path: where to write rejected rows: {file, line, problems: [{field, code, message}], `index` if the
            row shares its line in an array, and their text as `row`, or as `row_base64` if it is not UTF-8}. Written
            even if there are none.
        jobs: number of processes for a large file of lines, see `pool.ordered_map`; the result does not depend on it.
        chunk_size: bytes of lines that a process takes at a time.

    Raises:
        WorkerDied: a worker process was killed.
    """
    name = os.fspath(path)
    wrong_columns = check_columns(formatting, columns or {}, file=name)
    if wrong_columns:
        groups = tuple(Groups(wrong_columns))
        total = len(wrong_columns)
        return FileReport(name, formatting, 0, 0, tuple(wrong_columns), total, digest(path), groups=groups)
    parse_row = layouts.reader(formatting, columns=columns, file=name, error_type=error_type, error_types=error_types)
    check = FileCheck(name, formatting, columns=columns or {}, limit=limit)
    rejected = check.rejected_in_file(path, parse_row, jobs=jobs, chunk_size=chunk_size)
    if rejected_path is None:
        deque(rejected, maxlen=0)
    else:
        write_jsonl(rejected_path, rejected)
    return check.report()


def read_records(
    source: Source,
    formatting: str,
    *,
    bad_rows: BadRows | None = None,
    check: Callable[[Record, int], list[Problem]] = lambda record, line: [],
) -> list[Record]:
    """All good records of a file, or of several that are one data set.

    Args:
        source: JSON Lines or a JSON array, or rows that are read in another way.
        formatting: as for `records.parse`.
        bad_rows: collects the other rows and decides about them; None = each is an error.
        check: gives further problems of a record, from the record and its line; their file is that of the record.

    Raises:
        BadData: there are bad rows and `bad_rows` does not accept them, or a file as a whole has a problem.
    """
    bad = BadRows() if bad_rows is None else bad_rows
    records: list[Record] = []
    files: list[FileCheck] = []
    with SeenIds() as seen:
        for part in parts_of(source):
            whole = FileCheck(part.file, formatting, columns={}, seen=seen)
            files.append(whole)
            parse_row = layouts.reader(formatting, file=part.file, cells=part.cells)
            for row in bad.good(part.file, whole.walk(parse_rows(part.rows, parse_row))):
                found = [
                    replace(problem, file=part.file)
                    for record in row.records
                    for problem in check(record, row.raw.line)
                ]
                if found:
                    bad.refuse(part.file, row.raw, found)
                else:
                    records += row.records
    if files:
        files[0].add_of_set(one_label(files[0].file, files))
    of_files = [problem for whole in files for problem in whole.of_file if problem not in bad.problems]
    without = [problem for problem in of_files if problem.code == "FP002"]  # one of several may be empty
    bad.problems += [problem for problem in of_files if problem.code != "FP002"]
    if not any(whole.rows for whole in files):
        bad.problems += without[:1]
    bad.settle()
    return records


class FileCheck:
    """One pass over the rows of a file, by one of the generator methods; `report` then returns the result.

    Args:
        file: its name, for the problems.
        layout: of the rows.
        columns: our field -> the column in the file; None: unread columns are not counted.
        limit: number of row problems to keep.
        seen: the ids of the data set's other files; None: the file is a data set of its own.
        repeats: whether `walk` takes rows without an id that have the content of an earlier row, with a note (FP109),
            as the hosts do. Not in formats whose records are known by their prompt.

    Attributes:
        sha256: hex digest of the file's bytes, set by the methods that read the file.
    """

    def __init__(
        self,
        file: str,
        layout: str,
        *,
        columns: Mapping[str, str] | None = None,
        limit: int = SHOWN,
        seen: SeenIds | None = None,
        repeats: bool = False,
    ) -> None:
        self.file = file
        self.layout = layout
        self.limit = limit
        self.sha256 = ""
        self.seen = seen
        self.repeats = repeats and layouts.native_format(layout) not in ("negatives", "feedback")
        self.known = None if columns is None else layouts.columns_read(layout, columns)
        self.groups, self.notes = Groups(), Groups()
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
        with self._ids() as seen:
            for chunk, (good, bad, ignored, more, notes) in ordered_map(parse_lines, chunks, jobs=jobs):
                count = len(good) - more + sum(raw.line > 0 for raw in bad)
                lines: list[bytes] = []
                for line, record_id, label in good:
                    if (first := self._first_use(line, line, record_id, label, seen)) is not None:
                        lines = lines or chunk.content.split(b"\n")
                        raw = RawRow(line, lines[line - chunk.line], None, [])
                        if not bad or bad[-1].line != line:  # a row of several records is bad once
                            bad.append(raw._replace(problems=[self._used_twice(raw, record_id, first)]))
                bad.sort(key=attrgetter("line"))
                for raw in bad:
                    self._note(raw.line, raw.problems)
                    if raw.line and not _is_left_out(raw.problems):
                        yield rejected_row(self.file, raw)
                self.rows += count
                self.ignored.update(ignored)
                for note in notes:
                    self.notes.add(note)
                progress(count)
        self._note(0, self._set_problems())

    def rejected_rows(self, rows: Iterable[Checked]) -> Iterator[dict[str, object]]:
        """Check all rows and yield the bad ones in the form that `check_file` writes."""
        for row in self.walk(rows):
            if row.problems and row.raw.line and not _is_left_out(row.problems):
                yield rejected_row(self.file, row.raw._replace(problems=row.problems))

    def walk(self, rows: Iterable[Checked]) -> Iterator[Checked]:
        """Check rows one by one and yield each."""
        with self._ids() as seen:
            last = 0
            for count, row in enumerate(rows):
                line, _, value, _ = row.raw
                number, last = line if line != last else _SHARED + count, int(line)
                if self.known is not None and value is not None:
                    self.ignored.update(value.keys() - self.known)
                for record in row.records:
                    label = record.label if isinstance(record, Feedback) else None
                    if (first := self._first_use(number, line, record.id, label, seen)) is not None:
                        problem = self._used_twice(row.raw, record.id, first)
                        if self.repeats and is_content_id(record.id, row.raw):
                            row = row._replace(notes=[*row.notes, replace(problem, code="FP109")])
                        else:
                            row = Checked(row.raw, (), [problem])
                        break
                self.rows += line > 0
                self._note(line, row.problems)
                for note in row.notes:
                    self.notes.add(note)
                yield row
        self._note(0, self._set_problems())

    def _ids(self) -> AbstractContextManager[SeenIds]:
        """The ids seen so far: those of the data set, which stay open, or of this file alone."""
        return SeenIds() if self.seen is None else nullcontext(self.seen)

    def _first_use(self, number: int, line: int, record_id: str, label: bool | None, seen: SeenIds) -> str | None:
        """Where an id was used before; None if it is new, and then counted.

        Args:
            number: of the row in the file, its identity where rows share a line.
            line: of the row.
            record_id, label: of the record.
            seen: the ids so far.
        """
        first = seen.place_of(record_id, self.file, number, line)
        if first is not None and label and first.rpartition(":")[0] != self.file:
            # files by error type repeat the desirable responses of the others
            first = seen.place_of(f"{self.file}\n{record_id}", self.file, number, line)
        if first is None and label is not None:
            self.desirable += label
            self.undesirable += not label
        return first

    def _used_twice(self, raw: RawRow, record_id: str, first: str) -> Problem:
        """The problem of a row whose id, or whose content, is that of an earlier row at `first`."""
        file, _, line = first.rpartition(":")
        where = f"line {line}" if file == self.file else first
        if is_content_id(record_id, raw):
            if layouts.native_format(self.layout) == "negatives":
                text = f"same prompt as {where}, by which a row without an id is known; give such rows ids"
                return Problem(self.file, raw.line, "id", "FP060", text)
            text = f"same content as {where}; `finepref dedup` or bad_rows: skip leave such rows out"
            return Problem(self.file, raw.line, "id", "FP060", text)
        return Problem(self.file, raw.line, "id", "FP060", f"{record_id!a} is the id of {where} too")

    def _set_problems(self) -> list[Problem]:
        if self.rows == 0 and not self.of_file:
            return [Problem(self.file, 0, "", "FP002", "the file has no record")]
        return [] if self.seen is not None else one_label(self.file, [self])

    def add_of_set(self, problems: Sequence[Problem]) -> None:
        """Note problems of the whole data set, of which this is one file."""
        self._note(0, problems)

    def _note(self, line: int, problems: Sequence[Problem]) -> None:
        if line and _is_left_out(problems):
            for problem in problems:
                self.notes.add(problem)
            return
        self.rejected += line > 0 and len(problems) > 0
        self.total += len(problems)
        for problem in problems:
            self.groups.add(problem)
            if problem.line == 0:
                self.of_file.append(problem)
            elif len(self.of_rows) < self.limit:
                self.of_rows.append(problem)

    def report(self) -> FileReport:
        """The result so far."""
        problems = (*self.of_file, *self.of_rows)
        ignored = dict(sorted(self.ignored.items()))
        return FileReport(
            file=self.file,
            formatting=layouts.native_format(self.layout),
            rows=self.rows,
            rejected=self.rejected,
            problems=problems,
            total_problems=self.total,
            sha256=self.sha256,
            ignored=ignored,
            layout=self.layout if self.layout not in (*FORMATS, layouts.UNKNOWN) else "",
            groups=tuple(islice(self.groups, self.limit)),
            notes=tuple(islice(self.notes, self.limit)),
        )


def one_label(name: str, checks: Sequence[FileCheck]) -> list[Problem]:
    """FP061 if all good rows of a data set have one label.

    Args:
        name: of its file, or of the first of its files.
        checks: of its files, complete.
    """
    desirable, undesirable = (sum(each) for each in zip(*((c.desirable, c.undesirable) for c in checks), strict=True))
    if bool(desirable) == bool(undesirable):
        return []
    where = f" of {len(checks)} files" if len(checks) > 1 else ""
    text = f"all {desirable + undesirable} good rows{where} are labelled {'true' if desirable else 'false'}"
    return [Problem(name, 0, "label", "FP061", text)]


def _is_left_out(problems: Sequence[Problem]) -> bool:
    """Whether the problems of a row are that it gives no record, which is told as a note."""
    return bool(problems) and all(problem.code in LEFT_OUT for problem in problems)


class SeenIds:
    """The place that first used each id. Above 100,000 ids, a temporary file keeps memory constant."""

    def __init__(self, in_memory: int = 100_000) -> None:
        self.in_memory = in_memory
        self.places: dict[str, int] = {}
        self.table: sqlite3.Connection | None = None
        self.files: dict[str, int] = {}
        self.shared_lines: dict[tuple[int, int], int] = {}

    def __enter__(self) -> SeenIds:
        return self

    def __exit__(self, *error: object) -> None:
        if self.table is not None:
            self.table.close()

    def place_of(self, record_id: str, file: str, number: int, line: int) -> str | None:
        """The earlier place, "file:line", that used the id; None if there is none, and this one is then the first.

        Args:
            record_id: the id.
            file: its file.
            number: of the row in its file.
            line: of the row.
        """
        file_number = self.files.setdefault(file, len(self.files))
        if line != number or isinstance(line, ArrayLine):
            self.shared_lines[file_number, number] = line
        first = self.line_of(record_id, (file_number << _FILE) + number)
        if first is None:
            return None
        file_number, number = first >> _FILE, first & ((1 << _FILE) - 1)
        name = next(name for name, other in self.files.items() if other == file_number)
        return f"{name}:{self.shared_lines.get((file_number, number), number)}"

    def line_of(self, record_id: str, line: int) -> int | None:
        """The earlier line that used the id; None if there is none, and `line` is then recorded as the first."""
        if self.table is None:
            first = self.places.setdefault(record_id, line)
            if len(self.places) > self.in_memory:
                self._spill()
            return None if first == line else first
        if self.table.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (record_id, line)).rowcount:
            return None
        row: tuple[int] = self.table.execute("SELECT line FROM seen WHERE id = ?", (record_id,)).fetchone()
        return None if row[0] == line else row[0]

    def _spill(self) -> None:
        self.table = sqlite3.connect("", isolation_level=None)  # "" is a private file that vanishes on close
        self.table.execute("PRAGMA journal_mode = OFF")
        self.table.execute("PRAGMA synchronous = OFF")
        self.table.execute("PRAGMA cache_size = -32768")
        self.table.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID")
        self.table.execute("BEGIN")
        self.table.executemany("INSERT INTO seen VALUES (?, ?)", self.places.items())
        self.places = {}


_FILE = 40
"""Bits of a row's number in a place; above them is the number of its file."""
_SHARED = 1 << 39
"""Added to the count of a row that shares its line with another; the number of any other row is its line."""
_CONTENT_ID = re.compile("[0-9a-f]{16}")


def digest(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's bytes in hex, "" if it cannot be read (which `check_file` reports as FP001)."""
    if not os.path.isfile(path):
        return ""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def is_content_id(record_id: str, raw: RawRow) -> bool:
    """Whether an id is a hash of the content, which the row does not give itself."""
    return bool(_CONTENT_ID.fullmatch(record_id)) and record_id.encode() not in raw.raw
