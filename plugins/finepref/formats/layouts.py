"""Read rows of any layout: `reader` for one that is named, `guess` for one that is not, `of_entry` for a host's entry.

    parse_row = layouts.reader("orca", file="data.jsonl")
    parse_row({"question": ..., "chosen": ..., "rejected": ...}, line=1)

A row becomes a record, a tuple of records, or a list of problems.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from finepref.formats import layout_table, tables
from finepref.formats.jsonl import MAX_LINE, Chunk, RawRow, read_chunks, read_rows, rows_of
from finepref.formats.layout import ABSENT, FAILED, Layout, has_edits, likeliest
from finepref.formats.problems import NOTES, BadData, Problem
from finepref.formats.records import FIELDS, FORMATS, Record, parse, parse_with
from finepref.formats.row import MEDIA, PROMPT_COLUMNS, ROLES, RowReader, kind_of


class Noted(tuple[Record, ...]):
    """The records of a row with notes: problems of `problems.NOTES`, with which the row is good."""

    notes: list[Problem]

    def __new__(cls, records: Iterable[Record], notes: list[Problem]) -> Noted:
        """Records with their notes."""
        made = super().__new__(cls, records)
        made.notes = notes
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        """What makes it again when it is unpickled."""
        return tuple(self), self.notes


Parsed = Record | tuple[Record, ...] | list[Problem]
ParseRow = Callable[..., Parsed]
"""(value, line=) -> what a row becomes."""

MANY_SHAPES = 10_000
"""Rows of so many different shapes are remembered while a layout is recognised."""
UNKNOWN = "unknown"
"""The layout of a file of which no row is recognised."""

SUPERVISED = {layout.name: layout for layout in layout_table.SUPERVISED}
"""Layouts of single good answers by name, which only the jobs that ask models read."""

_NO_ERROR_TYPES = frozenset({*MEDIA, "tools", "kto_tag", "response", "label"})
"""Keys of the host's own formats; they are never read as columns of error types."""

_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "observation_tag": "observation",
    "function_tag": "function_call",
}


def names() -> tuple[str, ...]:
    """The names of all layouts, our own formats first."""
    return (*FORMATS, *(name for name in layout_table.table() if name not in FORMATS))


def find(name: str) -> Layout:
    """A layout by name.

    Raises:
        KeyError: there is none of that name.
    """
    return SUPERVISED[name] if name in SUPERVISED else layout_table.table()[name]


def native_format(name: str) -> str:
    """The format of the records that rows of a layout become."""
    return name if name in FORMATS or name == UNKNOWN else find(name).gives


def reader(
    name: str,
    *,
    columns: Mapping[str, str] | None = None,
    error_type: str | None = None,
    error_types: Collection[str] | None = None,
    file: str = "<row>",
    nulls_absent: bool = False,
    tags: Mapping[str, str] | None = None,
    cells: bool = False,
) -> ParseRow:
    """The function that reads a row of a layout; it can be pickled.

    Args:
        name: a layout whose rows are read one by one.
        columns: our field, the layout's column or the host's key -> the column in the file.
        error_type, error_types: as for `records.parse`.
        file: for the problems.
        nulls_absent: the rows come through Arrow, where an absent key is null.
        tags: LLaMA-Factory's `tags` of an entry: how its messages name roles and texts.
        cells: the rows are those of a table of texts; numbers, booleans and lists are read where the layout wants
            them, see `finepref.formats.tables`.

    Raises:
        KeyError: there is no layout of that name.
    """
    if cells:
        options: dict[str, Any] = {"columns": columns, "error_type": error_type, "error_types": error_types}
        options |= {"file": file, "nulls_absent": nulls_absent, "tags": tags}
        return partial(_read_cells, parse_row=reader(name, **options))
    if name == UNKNOWN:
        return partial(_unknown, file=file)
    if name in FORMATS:
        return partial(
            parse,
            formatting=name,
            columns=columns,
            file=file,
            nulls_absent=nulls_absent,
            error_type=error_type,
            error_types=error_types,
        )
    find(name)
    return partial(
        read,
        name=name,
        columns=columns,
        file=file,
        nulls_absent=nulls_absent,
        error_type=error_type,
        error_types=error_types,
        tags=tags,
    )


def _read_cells(row: Mapping[str, object], *, line: int, parse_row: ParseRow) -> Parsed:
    """Read a row of a table; if the layout wants some of its cells otherwise than as texts, they are decoded."""
    parsed = parse_row(row, line=line)
    while isinstance(parsed, list) and (values := tables.wanted(row, parsed)):
        row = {**row, **values}
        parsed = parse_row(row, line=line)
    return parsed


def read(
    row: object,
    name: str,
    *,
    columns: Mapping[str, str] | None = None,
    file: str = "<row>",
    line: int = 0,
    nulls_absent: bool = False,
    error_type: str | None = None,
    error_types: Collection[str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> Parsed:
    """Read one row of a layout; the arguments are those of `reader`. Never raises for bad data."""
    layout = find(name)
    options: dict[str, Any] = {"error_type": error_type, "error_types": error_types}
    if layout.native:
        places: dict[str, Any] = {"columns": columns, "file": file, "line": line, "nulls_absent": nulls_absent}
        return parse(row, layout.gives, **places, **options)
    if not layout.by_row:
        text = f"rows of {name} are not read one by one; `finepref convert --from {name}` makes {layout.gives} of them"
        return [Problem(file, line, "", "FP090", text)]
    if type(row) is not dict and not isinstance(row, Mapping):
        return [Problem(file, line, "", "FP005", f"expected an object, got {kind_of(row)}")]
    source = RowReader(
        row, columns=file_columns(layout, columns or {}), file=file, line=line, nulls_absent=nulls_absent
    )
    source.refuse_media()
    if tags:
        source.values = {column: _retagged(value, tags) for column, value in source.values.items()}
    records: list[Record] = []
    problems: list[Problem] = []
    left = [each for each in PROMPT_COLUMNS & source.values.keys() if each not in layout.columns]
    found = layout.records(source)
    notes = [each for each in source.problems if each.code in NOTES]
    if notes:
        source.problems = [each for each in source.problems if each.code not in NOTES]
    for own in found:
        values = {
            field: taken.value
            for field, taken in own.items()
            if taken.value is not ABSENT and taken.value is not FAILED
        }
        failed = {place for field, taken in own.items() if taken.value is FAILED for place in (taken.place, field)}
        failed |= {"prompt"} & own.keys() if "messages" in failed else set()
        values |= {each: source.values[each] for each in left}
        named = {field: taken.place for field, taken in own.items()} | {each: source.column(each) for each in left}
        target = RowReader(row, columns=named, file=file, line=line, nulls_absent=nulls_absent, values=values)
        if source.problems:
            target.problems = [*source.problems]
        if (record := parse_with(target, layout.gives, **options)) is not None:
            records.append(record)
        problems += [each for each in target.problems if each.code != "FP010" or each.field not in failed]
    problems = problems or source.problems
    if problems:
        return _another_layout(layout, row, [*dict.fromkeys(problems)])
    different = {record.id: record for record in records}
    if notes:
        return Noted(different.values(), notes)
    return records[0] if len(records) == 1 else tuple(different.values())


def _another_layout(layout: Layout, row: Mapping[str, object], problems: list[Problem]) -> list[Problem]:
    """The problems of a row; if it looks like one of another layout, that instead of its missing columns."""
    missing = next((problem for problem in problems if problem.code == "FP010"), None)
    other = layout_table.recognise(row) if missing is not None else ""
    if missing is None or not other or other in (layout.name, layout.widens):
        return problems
    hint = Problem(
        missing.file, missing.line, missing.field, "FP015", f"{missing.message}; the row looks like {other}"
    )
    return [hint, *(problem for problem in problems if problem.code != "FP010")]


def _unknown(row: Mapping[str, object], *, line: int, file: str) -> list[Problem]:
    """The problem of a row that no layout recognises."""
    lists = [key for key, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(row) == 1 and lists:
        text = f"the rows seem to be inside {lists[0][:80]!a}; write them as JSON Lines or as one array"
    else:
        columns = ", ".join(ascii(column)[1:-1] for column in [*row][:12]) or "none"
        text = f"no layout is known with the columns {columns}; name one with --format: {', '.join(names())}"
    return [Problem(file, line, "", "FP093", text)]


def file_columns(layout: Layout, columns: Mapping[str, str]) -> dict[str, str]:
    """The layout's column -> the file's column, where the host's keys or our fields may stand for the former."""
    found: dict[str, str] = {}
    for name, column in columns.items():
        path = layout.fields.get(name)
        own = (path if isinstance(path, str) else path.path).partition("|")[0].partition(".")[0] if path else name
        found[layout.keys.get(name, own if name not in layout.columns else name)] = column
    return found


def columns_read(name: str, columns: Mapping[str, str] | None = None) -> set[str] | None:
    """The columns of the file that are read; all others are ignored, and counted. None: not known."""
    if name == UNKNOWN or not (layout := find(name)).by_row:
        return None
    mapped = dict(columns or {}) if layout.native else file_columns(layout, columns or {})
    taken = {*mapped.values()}
    fields = {*FIELDS[layout.gives]} if layout.native else {*layout.columns}
    return {each for each in fields | PROMPT_COLUMNS if each not in mapped and each not in taken} | taken


def check_columns(name: str, columns: Mapping[str, object], *, file: str, place: str = "columns") -> list[Problem]:
    """The problems of a mapping {column or field of a layout: the column in the file}."""
    if name == UNKNOWN or name not in {*layout_table.table(), *SUPERVISED}:
        return [Problem(file, 0, "formatting", "FP016", f"{name[:80]!a} is not one of {', '.join(names())}")]
    layout = find(name)
    known = {*FIELDS[layout.gives]} if layout.native else {*layout.fields, *layout.columns, *layout.keys}
    if not layout.native:
        known |= PROMPT_COLUMNS | {"system", "images", "videos", "audios", "kto_tag", "response", "chosen", "rejected"}
    problems = []
    users: dict[object, str] = {}
    for field_name, column in columns.items():
        where = f"{place}.{field_name}"
        if type(column) is not str or not column:
            problems.append(Problem(file, 0, where, "FP017", "expected the name of a column"))
        elif field_name not in known and (name != "negatives" or field_name in _NO_ERROR_TYPES):
            text = f"{name} has no such field; it has {', '.join(sorted(known))}"
            problems.append(Problem(file, 0, where, "FP017", text))
        elif users.setdefault(column, field_name) != field_name:
            text = f"{users[column]} and {field_name} are both read from {column}"
            problems.append(Problem(file, 0, where, "FP017", text))
    return problems


def supervised_of(row: Mapping[str, object]) -> str:
    """The layout of SUPERVISED that a row looks like, "" if it looks like none; a dialogue ends in its answer."""
    for name, layout in SUPERVISED.items():
        if layout.recognises(row):
            turns = next((row[key] for key in ("conversations", "messages", "conversation") if row.get(key)), None)
            last = turns[-1] if isinstance(turns, list | tuple) else {"role": "assistant"}
            if isinstance(last, Mapping) and ROLES.get(str(last.get("role", last.get("from")))) == "assistant":
                return name
    return ""


def of_entry(entry: Mapping[str, Any], *, supervised: bool = False) -> str | None:
    """The layout of an entry of the host's dataset_info.json; None for data that we do not read (such as SFT).

    `formatting` names the layout; of LLaMA-Factory's own, alpaca (the default), sharegpt and openai, those with
    `ranking: true` or a `kto_tag` column; the others are for supervised training, and have a layout with `supervised`.
    """
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        return formatting if formatting in layout_table.table() else None
    shape = "alpaca" if formatting == "alpaca" else "sharegpt"
    if (entry.get("columns") or {}).get("kto_tag"):
        return f"{shape}_kto"
    return shape if entry.get("ranking") else f"{shape}_sft" if supervised else None


def _retagged(value: object, tags: Mapping[str, str]) -> object:
    """Messages with an entry's own names of roles and texts as {role, content}."""
    role_tag, content_tag = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    if isinstance(value, list | tuple):
        return [_retagged(item, tags) for item in value]
    if not isinstance(value, Mapping) or not ({role_tag, content_tag} & value.keys()):
        return value
    roles = {tags[tag]: role for tag, role in _TAGS.items() if tag in tags and ROLES.get(tags[tag]) != role}
    rest = {key: member for key, member in value.items() if key not in (role_tag, content_tag)}
    if role_tag in value:
        role = value[role_tag]
        rest["role"] = roles.get(role, role) if type(role) is str else role
    if content_tag in value:
        rest["content"] = value[content_tag]
    return rest


@dataclass
class Votes:
    """What the rows of one or more files look like.

    Attributes:
        counts: layout -> number of rows that look like it.
        first: layout -> file and line of the first of them.
        loosely: the same by the names of the columns alone, of rows that look like nothing.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    loosely: Counter[str] = field(default_factory=Counter)
    _seen: dict[Any, str] = field(default_factory=dict)

    def add(self, file: str, rows: Iterable[RawRow], columns: Mapping[str, str] | None = None) -> Votes:
        """Look at rows; `columns` are those that the user gives, our field -> column."""
        for line, _, value, _ in rows:
            if value is None:
                continue
            if columns:
                value = renamed(value, columns)
            if name := self.name_of(value):
                self.counts[name] += 1
                self.first.setdefault(name, f"{file}:{line}")
            else:
                self.loosely[likeliest(value, layout_table.table().values())] += 1
        return self

    def name_of(self, value: Mapping[str, object]) -> str:
        """The layout that a row looks like, "" if it looks like none."""
        shape = _shape(value, 3)
        name = self._seen.get(shape)
        if name is None:
            if len(self._seen) == MANY_SHAPES:
                self._seen.clear()
            name = self._seen[shape] = layout_table.recognise(value)
        return name

    def merge(self, other: Votes) -> None:
        """Add the votes of later rows."""
        self.counts.update(other.counts)
        self.loosely.update(other.loosely)
        for name, place in other.first.items():
            self.first.setdefault(name, place)

    def settle(self) -> str:
        """The layout of the files; UNKNOWN if no row looks like any.

        Raises:
            BadData: their rows are of several layouts (FP092); it names the first two.
        """
        left = set(self.counts)
        for name in [*left]:
            left.discard(find(name).widens)
        if len(left) > 1:
            one, two = sorted(left, key=[*self.first].index)[:2]
            file, _, line = self.first[two].rpartition(":")
            told = " and ".join(
                f"{name} (first at {self.first[name]}, in all {self.counts[name]:,})" for name in (one, two)
            )
            text = f"the rows are of several layouts: {told}; name one with --format, or put each in a file of its own"
            raise BadData([Problem(file, int(line), "", "FP092", text)])
        if left:
            return left.pop()
        return next((name for name, _ in self.loosely.most_common() if name), UNKNOWN)


def _shape(value: object, depth: int) -> object:
    """What the layout of a row depends on: keys, types, the first item of a list, labels, and marks of transcripts."""
    if type(value) is str:
        if "Human:" in value[:12] and "\n\nAssistant:" in value:
            return "H"
        return "E" if has_edits(value) else "s"
    if isinstance(value, Mapping) and depth:
        return tuple((key, _shape(member, depth - 1)) for key, member in value.items())
    if isinstance(value, list | tuple):
        return ("l", _shape(value[0], depth) if value and depth else len(value) > 0)
    return value if type(value) in (bool, int) and value in (0, 1) else type(value)


def renamed(row: Mapping[str, object], columns: Mapping[str, str]) -> dict[str, object]:
    """A row with our names for the columns that the user gives."""
    given = {name: row[column] for name, column in columns.items() if column in row}
    return {name: value for name, value in row.items() if name not in columns.values()} | given


def votes_of_chunk(chunk: Chunk, columns: Mapping[str, str] | None = None) -> Votes:
    """The votes of a part of a file. Lines are read as quickly as can be; what is wrong with them is found later."""
    rows = rows_of(chunk) if chunk.array or chunk.problem else _quick_rows(chunk)
    return Votes().add(chunk.file, rows, columns)


def _quick_rows(chunk: Chunk) -> Iterator[RawRow]:
    """The lines that are objects of JSON, checked for nothing else."""
    for line, raw in enumerate(chunk.content.split(b"\n"), start=chunk.line):
        try:
            value = json.loads(raw) if len(raw) <= MAX_LINE else None
        except (ValueError, RecursionError):
            continue
        if type(value) is dict:
            yield RawRow(line, b"", value, [])


def guess(
    files: Sequence[Any],
    rows: Callable[[Any], Iterable[RawRow]] = read_rows,
    *,
    columns: Mapping[str, str] | None = None,
) -> str:
    """The layout of the rows of files, all of which are looked at; UNKNOWN if no row looks like any.

    Args:
        files: of one data set.
        rows: reads the rows of a file.
        columns: our field -> the column in the files, where the user gives some.

    Raises:
        BadData: the rows are of several layouts.
    """
    votes = Votes()
    for file in files:
        if rows is read_rows:
            for chunk in read_chunks(file):
                votes.merge(votes_of_chunk(chunk, columns))
        else:
            votes.add(str(file), rows(file), columns)
    return votes.settle()
