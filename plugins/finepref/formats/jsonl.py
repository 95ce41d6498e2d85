"""Strict JSON Lines: a row is read exactly as it was written, or reported as a Problem.

UTF-8, with or without a byte order mark at the start. Only "\\n" ends a line; a "\\r" before it is JSON white space,
so files with "\\r\\n" read the same; a lone "\\r" or U+2028 does not end a line. Lines of white space are skipped.
Files that gzip has compressed are read as they are. Other kinds (zip, LFS pointer, parquet) are named in one line;
`finepref.synth.data_sources.files.rows_of` reads tables, parquet, arrow and zst too.
A file whose first character is "[" is read as one JSON array of rows, whatever its name; the line of a row is the one
where it starts. NaN, Infinity, numbers beyond a double, duplicate keys and lone surrogates are refused, as are lines
over 16 MiB and arrays over 1 GiB (arrays are read whole, lines in chunks).
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from finepref.formats.files import replacing
from finepref.formats.problems import BadData, Problem
from finepref.formats.row import is_unicode, kind_of

MAX_LINE = 16 * 2**20
MAX_ARRAY = 2**30
CHUNK = 2**20
"""Bytes of lines that are read at once; also the unit in which a file is distributed to processes."""

_BOM = b"\xef\xbb\xbf"
_SPACE = " \t\r\n"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_GZIP = b"\x1f\x8b"
_KINDS = {
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"BZh": "compressed by bzip2; unpack it first, or use gzip",
    b"\xfd7zXZ": "compressed by xz; unpack it first, or use gzip",
    b"version https://git-lfs": "a pointer of Git LFS, not the data; get it with `git lfs pull`",
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"<!DOCTYPE": "a web page, not data",
    b"<html": "a web page, not data",
}
"""First bytes of a file -> its kind, and what to do."""
_BY_NAME = {"compressed by zstd": ".zst", "parquet": ".parquet", "arrow": ".arrow"}
_CONVERTED = "which `finepref convert` makes JSON Lines of"
_NOT_SPACE = re.compile(r"[^ \t\r\n]")


class RawRow(NamedTuple):
    """One row as read: the decoded object, or None and its problems. `raw` is its bytes in the file."""

    line: int
    raw: bytes
    value: dict[str, object] | None
    problems: list[Problem]


class Chunk(NamedTuple):
    """A part of a file: whole lines, `line` being the number of the first; or a whole JSON array; or a problem."""

    file: str
    line: int
    content: bytes = b""
    array: bool = False
    problem: Problem | None = None


class _RefusedError(ValueError):
    def __init__(self, field: str, code: str, message: str) -> None:
        super().__init__(message)
        self.field, self.code = field, code


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise _RefusedError(twice[:80], "FP006", f"the key {twice[:80]!a} appears twice in one object")
    return members


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _RefusedError("", "FP007", f"the number {digits[:40]} does not fit a double")
    return value


def _constant(name: str) -> float:
    raise _RefusedError("", "FP007", f"{name} is not JSON")


class _Decoder(json.JSONDecoder):
    """A decoder that is pickled by its arguments: the scanner in it cannot be pickled."""

    def __init__(self, **hooks: Any) -> None:
        super().__init__(**hooks)
        self.hooks = hooks

    def __reduce__(self) -> tuple[Any, ...]:
        return _decoder, (self.hooks,)


def _decoder(hooks: dict[str, Any]) -> _Decoder:
    return _Decoder(**hooks)


_DECODER = _Decoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_constant)
_QUICK = _Decoder(object_pairs_hook=_object, parse_constant=_constant)
"""Reads a number too large for a double as "inf"; four times as fast on rows with many numbers."""


def read_jsonl(
    path: str | os.PathLike[str], *, problems: list[Problem] | None
) -> Iterator[tuple[int, dict[str, object]]]:
    """The objects of a JSONL file (or of a JSON array), each with its line number, in constant memory for lines.

    Args:
        path: the file.
        problems: a list to which problems are appended; reading continues with the next line.

    Raises:
        BadData: there is a problem and `problems` is None.
    """
    for row in read_rows(path):
        if row.value is not None:
            yield row.line, row.value
        elif problems is None:
            raise BadData(row.problems)
        else:
            problems += row.problems


def read_rows(path: str | os.PathLike[str]) -> Iterator[RawRow]:
    """Every row of a file, good or bad, in order; a problem of the whole file comes as a row with line 0."""
    for chunk in read_chunks(path):
        yield from rows_of(chunk)


def read_open(file: io.BufferedReader, name: str) -> Iterator[RawRow]:
    """The same of an open file, such as one that is unpacked as it is read; `name` is for the problems."""
    for chunk in _cut(file, name, CHUNK, len):
        yield from rows_of(chunk)


def read_chunks(
    path: str | os.PathLike[str], *, size: int = CHUNK, tee: Callable[[bytes], object] = len
) -> Iterator[Chunk]:
    """Split a file at line ends into parts of `size` bytes or a little more that can be parsed independently.

    Args:
        path: the file.
        size: in bytes.
        tee: called with all bytes of the file as they are read, such as the `update` of a hash.
    """
    name = os.fspath(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait, and a device may never end
            yield Chunk(name, 0, problem=Problem(name, 0, "", "FP001", "not a regular file"))
            return
        with open(path, "rb") as file:
            if file.peek(2)[:2] == _GZIP:
                unpacked = gzip.GzipFile(fileobj=cast(BinaryIO, _Teed(file, tee)))
                yield from _cut(io.BufferedReader(cast(io.RawIOBase, unpacked)), name, size, len)
            else:
                yield from _cut(file, name, size, tee)
            while rest := file.read(CHUNK):
                tee(rest)
    except OSError as error:
        yield Chunk(name, 0, problem=Problem(name, 0, "", "FP001", error.strerror or str(error)))
    except (EOFError, zlib.error) as error:
        yield Chunk(name, 0, problem=Problem(name, 0, "", "FP001", f"the gzip file is damaged: {error}"))


class _Teed:
    """A file whose bytes go to `tee` as they are read."""

    def __init__(self, file: BinaryIO, tee: Callable[[bytes], object]) -> None:
        self.file, self.tee = file, tee

    def read(self, size: int = -1) -> bytes:
        content = self.file.read(size)
        self.tee(content)
        return content


def other_kind(head: bytes, name: str) -> str:
    """What a file is that is not JSON, and what to do, by its first bytes and its name; "" if nothing tells."""
    found = next((kind for mark, kind in _KINDS.items() if head.startswith(mark)), "")
    if suffix := _BY_NAME.get(found):
        return f"{found}, {_CONVERTED}" if name.lower().endswith(suffix) else f"{found}; its name must end in {suffix}"
    if not found and name.lower().endswith((".csv", ".tsv")) and not head.lstrip().startswith((b"{", b"[")):
        return f"a table of separated values, {_CONVERTED}"
    return found


def rows_of(chunk: Chunk) -> Iterator[RawRow]:
    """The rows of a part of a file, good or bad."""
    if chunk.problem is not None:
        yield _bad(0, chunk.problem)
    elif chunk.array:
        yield from _read_array(chunk.content, chunk.file)
    else:
        for line, raw in enumerate(io.BytesIO(chunk.content), start=chunk.line):
            if len(raw) > MAX_LINE:
                message = f"the line is longer than {MAX_LINE // 2**20} MiB"
                yield _bad(line, Problem(chunk.file, line, "", "FP009", message))
            elif row := _decode(raw, chunk.file, line):
                yield row


def dumps(row: Mapping[str, object]) -> str:
    """The row as one line of JSON, without the line end; keys keep their order.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Mapping[str, object]]) -> int:
    """Write rows atomically and return their number.

    Raises:
        ValueError: a row cannot be written as JSON or UTF-8; the file is then unchanged.
    """
    count = 0
    with replacing(path) as file:
        for row in rows:
            file.write(dumps(row).encode() + b"\n")
            count += 1
    return count


def write_aside(path: Path, rows: Collection[Mapping[str, object]]) -> None:
    """Write the rows that a job left out of its output; without any, remove the file of an earlier run."""
    if rows:
        write_jsonl(path, rows)
    else:
        path.unlink(missing_ok=True)


def _cut(file: io.BufferedReader, name: str, size: int, tee: Callable[[bytes], object]) -> Iterator[Chunk]:
    head = file.peek(4096)[:4096]
    bom = _BOM if head.startswith(_BOM) else b""
    tee(file.read(len(bom)))
    if head.startswith(_UTF16):
        yield Chunk(name, 0, problem=Problem(name, 0, "", "FP003", "the file is UTF-16; write it as UTF-8"))
        return
    if kind := other_kind(head.removeprefix(bom), name):
        yield Chunk(name, 0, problem=Problem(name, 0, "", "FP097", f"the file is {kind}"))
        return
    if head.removeprefix(bom).lstrip().split(b"\n", 1)[0].strip() == b"{":
        text = "the file is one JSON object over several lines; write a row a line, or an array of rows"
        yield Chunk(name, 0, problem=Problem(name, 0, "", "FP004", text))
        return
    if head.removeprefix(bom).lstrip(_SPACE.encode()).startswith(b"["):
        content = file.read(MAX_ARRAY + 1)
        tee(content)
        yield Chunk(name, 1, content, array=True)
        return
    line = 1
    while content := file.read(size):
        if not content.endswith(b"\n"):
            content += file.readline(MAX_LINE + 1)
        tee(content)
        yield Chunk(name, line, content)
        line += content.count(b"\n")
        if not content.endswith(b"\n"):  # the end of the file, or the start of a line that is too long
            line += 1
            rest = content
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE)
                tee(rest)


def _decode(raw: bytes, name: str, line: int) -> RawRow | None:
    """The row in a line, None if there is only white space."""
    try:
        text = raw.decode().strip(_SPACE)
        if not text:
            return None
        value = _loads(text)
        if type(value) is dict and b"\\u" not in raw:
            return RawRow(line, raw, value, [])
    except UnicodeDecodeError as error:
        message = f"byte {error.start + 1} of the line, 0x{raw[error.start]:02x}, is not UTF-8"
        return RawRow(line, raw, None, [Problem(name, line, "", "FP003", message)])
    except (ValueError, RecursionError) as error:
        return RawRow(line, raw, None, [_problem(error, name, line)])
    return _as_object(value, raw, name, line)


def _loads(text: str) -> object:
    """Decode one JSON value.

    Raises:
        ValueError, RecursionError: the text is not valid JSON.
    """
    try:
        value, end = _QUICK.raw_decode(text)
        if end == len(text) and type(value) is dict and _finite(value.values()):
            return value
    except (ValueError, RecursionError):
        pass  # the strict decoder below reports what is wrong
    value, end = _DECODER.raw_decode(text)
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def refusing_loads(text: str, name: str) -> object:
    """One JSON value, which may go over several lines, or the Problem of a text that is none; `name` is the file."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return _problem(error, name, error.lineno if isinstance(error, json.JSONDecodeError) else 0)


def _finite(members: Iterable[Any]) -> bool:
    """Whether the decoded JSON values contain no infinite number, at any depth."""
    for member in members:
        kind = type(member)
        if kind is str:
            continue
        if kind is float:
            if math.isinf(member):
                return False
        elif kind is dict:
            if not _finite(member.values()):
                return False
        elif kind is list and not _finite_list(member):
            return False
    return True


def _finite_list(members: list[Any]) -> bool:
    if members and type(members[0]) is float:
        try:
            if math.isfinite(sum(members)):
                return True
        except (TypeError, OverflowError):
            pass  # not numbers alone
    return _finite(members)


def _as_object(value: object, raw: bytes, name: str, line: int) -> RawRow:
    if type(value) is not dict:
        return RawRow(line, raw, None, [Problem(name, line, "", "FP005", f"expected an object, got {kind_of(value)}")])
    if b"\\ud" in raw or b"\\uD" in raw:  # escapes from which json makes surrogates, alone or in pairs
        for key, member in value.items():
            if not is_unicode(json.dumps({key: member}, ensure_ascii=False)):
                field = key[:80].encode("ascii", "backslashreplace").decode()
                return RawRow(line, raw, None, [Problem(name, line, field, "FP008", "the field has a lone surrogate")])
    return RawRow(line, raw, value, [])


def _problem(error: ValueError | RecursionError, name: str, line: int) -> Problem:
    match error:
        case _RefusedError():
            return Problem(name, line, error.field, error.code, str(error))
        case json.JSONDecodeError():
            return Problem(name, line, "", "FP004", f"{error.msg} at character {error.colno}")
        case RecursionError():
            return Problem(name, line, "", "FP009", "the JSON is nested too deeply")
        case _:
            return Problem(name, line, "", "FP007", "an integer has too many digits")


def _read_array(content: bytes, name: str) -> Iterator[RawRow]:
    if len(content) > MAX_ARRAY:
        message = f"a JSON array is read whole and may have {MAX_ARRAY // 2**30} GiB at most; write JSON Lines"
        yield _bad(0, Problem(name, 0, "", "FP009", message))
        return
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield _bad(line, Problem(name, line, "", "FP003", f"byte 0x{content[error.start]:02x} is not UTF-8"))
        return
    line, counted, index = 1, 0, 0
    position = skip_space(text, text.index("[") + 1)
    closed = text.startswith("]", position)
    position = skip_space(text, position + 1) if closed else position
    alone = True  # no other row starts in the line of this one, as far as is known
    while not closed:
        line, counted = line + text.count("\n", counted, position), position
        value, end, problem = decode_at(text, position, name, line)
        following = skip_space(text, end) if end >= 0 else 0
        closed = text.startswith("]", following)
        ended = end < 0 or (not closed and not text.startswith(",", following))
        after = skip_space(text, following + 1) if not ended else 0
        shared = not ended and not closed and "\n" not in text[position:after]
        place = line if alone and not shared else ArrayLine.of(line, index)
        raw = text[position : max(position, end)].encode()
        if problem is not None:
            where = place if problem.line == line else problem.line
            yield RawRow(where, raw, None, [replace(problem, line=where)])
        else:
            yield _as_object(value, raw, name, place)
        if end < 0:
            return
        if ended:
            line += text.count("\n", counted, following)
            yield _bad(line, Problem(name, line, "", "FP004", "expected , or ] after a row of the array"))
            return
        position, index, alone = after, index + 1, not shared
    if position < len(text):
        line += text.count("\n", counted, position)
        yield _bad(line, Problem(name, line, "", "FP004", "text after the end of the array"))


class ArrayLine(int):
    """The line of a row that shares it with others of an array: it prints the row's index, from 0, too.

    It equals the number of the line, but not the line of another row.
    """

    index: int

    def __eq__(self, other: object) -> bool:
        return int(self) == other if not isinstance(other, ArrayLine) else str(self) == str(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__

    @classmethod
    def of(cls, line: int, index: int) -> ArrayLine:
        """A line number with the index of a row."""
        made = cls(line)
        made.index = index
        return made

    @classmethod
    def read(cls, text: str) -> int:
        """The line number in a text such as "7" or "1[3]", as it prints."""
        line, bracket, index = text.partition("[")
        return cls.of(int(line), int(index.rstrip("]"))) if bracket else int(line)

    def __str__(self) -> str:
        return f"{int(self)}[{self.index}]"

    def __format__(self, spec: str) -> str:
        return str(self) if not spec else format(int(self), spec)


def _bad(line: int, problem: Problem) -> RawRow:
    return RawRow(line, b"", None, [problem])


class Decoded(NamedTuple):
    """A JSON value inside a longer text, the position after it (-1 if reading cannot continue), and its problem."""

    value: object
    end: int
    problem: Problem | None


def decode_at(text: str, start: int, name: str, line: int) -> Decoded:
    """Decode the JSON value that starts at `start`, in line `line` of file `name`."""
    try:
        return Decoded(*_DECODER.raw_decode(text, start), None)
    except _RefusedError as error:
        refused = _problem(error, name, line)
    except json.JSONDecodeError as error:
        return Decoded(None, -1, _problem(error, name, error.lineno))
    except (ValueError, RecursionError) as error:
        return Decoded(None, -1, _problem(error, name, line))
    try:
        return Decoded(None, json.JSONDecoder().raw_decode(text, start)[1], refused)
    except (ValueError, RecursionError):
        return Decoded(None, -1, refused)


def skip_space(text: str, position: int) -> int:
    """The first position from `position` on that is not JSON white space."""
    found = _NOT_SPACE.search(text, position)
    return found.start() if found else len(text)
