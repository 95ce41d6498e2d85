"""Typed access to one raw row: every getter either returns a good value or notes a Problem."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeGuard

from finepref.formats.problems import Problem

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""Role as written -> role; `human` and `gpt` are the names of the sharegpt layout."""

INT64 = 2**63
_ABSENT = object()


class Message(NamedTuple):
    """One turn; role is "system", "user" or "assistant"."""

    role: str
    content: str


class Span(NamedTuple):
    """Characters [start, end) of the text it belongs to (code points, as Python counts), with a weight."""

    start: int
    end: int
    weight: float = 1.0


def kind_of(value: object) -> str:
    """The JSON name of a value's type, for messages."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case Mapping():
            return "an object"
        case _:
            return "a list" if isinstance(value, list | tuple) else type(value).__name__


def shown(value: object) -> str:
    """A value for messages: short texts and numbers as they are, in printable characters; of others, their type."""
    if type(value) is str:
        return ascii(value[:80])
    if type(value) is float or (type(value) is int and -INT64 <= value < INT64):
        return str(value)
    return kind_of(value)


class RowReader:
    """Reads one row field by field and collects what is wrong with it.

    A getter that notes a problem returns a harmless value of its type, so that reading continues and all problems of
    a row are found at once; the caller must look at `problems` before it uses any value.
    """

    __slots__ = ("columns", "file", "line", "nulls_absent", "problems", "row", "values")

    def __init__(
        self, row: Mapping[str, object], *, columns: Mapping[str, str], file: str, line: int, nulls_absent: bool
    ) -> None:
        self.row = row
        self.columns = columns
        self.file = file
        self.line = line
        self.nulls_absent = nulls_absent
        self.problems: list[Problem] = []
        values = row
        if columns:
            taken = columns.values()
            values = {name: value for name, value in row.items() if name not in taken and name not in columns}
            values |= {name: row[column] for name, column in columns.items() if column in row}
        if nulls_absent:
            values = {name: value for name, value in values.items() if value is not None}
        self.values = values
        """Our field name -> raw value, absent ones left out."""

    def note(self, field: str, code: str, message: str) -> None:
        """Note one problem with `field`, named as the user's file names it, in printable characters."""
        field = field if field.isprintable() else ascii(field)[1:-1]
        self.problems.append(Problem(self.file, self.line, field, code, message))

    def column(self, name: str) -> str:
        """The user's name of our field."""
        return self.columns.get(name, name)

    def missing(self, name: str) -> None:
        """Note that a required field is missing."""
        self.note(self.column(name), "FP010", "the field is missing")

    def text(self, value: object, field: str) -> str:
        """A string with at least one character that is not white space, and no lone surrogate."""
        if is_text(value):
            return value
        if type(value) is not str:
            self.note(field, "FP011", f"expected a string, got {kind_of(value)}")
        elif not value or value.isspace():
            self.note(field, "FP012", "the text is empty")
        else:
            self.note(field, "FP008", "the text has a lone surrogate")
        return ""

    def required_text(self, name: str) -> str:
        """The text of a required field."""
        value = self.values.get(name)
        if is_text(value):
            return value
        if name not in self.values:
            self.missing(name)
            return ""
        return self.text(value, self.column(name))

    def optional_text(self, name: str) -> str | None:
        """The text of an optional field, None when absent."""
        return self.required_text(name) if name in self.values else None

    def texts(self, values: Sequence[object], field: str) -> list[str]:
        """A list of texts."""
        return [v if is_text(v) else self.text(v, f"{field}[{i}]") for i, v in enumerate(values)]

    def number(self, value: object, field: str) -> float:
        """A finite number; booleans are not numbers."""
        if type(value) is not int and type(value) is not float:
            self.note(field, "FP011", f"expected a number, got {kind_of(value)}")
            return 0.0
        if not (-INT64 <= value < INT64 if type(value) is int else math.isfinite(value)):
            self.note(field, "FP007", "the number is not finite or does not fit 64 bits")
            return 0.0
        return float(value)

    def items(self, value: object, field: str) -> Sequence[object]:
        """A list."""
        if isinstance(value, list | tuple):
            return value
        self.note(field, "FP011", f"expected a list, got {kind_of(value)}")
        return ()

    def mapping(self, value: object, field: str) -> Mapping[str, object]:
        """An object with string keys; null members are left out in rows that came through Arrow."""
        if type(value) is not dict and not isinstance(value, Mapping):
            self.note(field, "FP011", f"expected an object, got {kind_of(value)}")
            return {}
        for key in value:
            if type(key) is not str:
                self.note(field, "FP011", f"expected string keys, got {kind_of(key)}")
                return {}
        if self.nulls_absent:
            return {key: member for key, member in value.items() if member is not None}
        return value

    def id(self) -> str | None:
        """The row's id: a printable string of at most 256 characters; None when the row gives none."""
        if "id" not in self.values:
            return None
        value = self.values["id"]
        if type(value) is not str:
            self.note(self.column("id"), "FP011", f"expected a string, got {kind_of(value)}")
        elif not 0 < len(value) <= 256 or not value.isprintable() or value != value.strip():
            self.note(self.column("id"), "FP023", "an id has 1 to 256 printable characters and no space at its ends")
        return value if type(value) is str else None

    def messages(self, value: object, field: str) -> tuple[Message, ...]:
        """Turns {role, content} or {from, value}: an optional system turn, then user and assistant by turns."""
        before = len(self.problems)
        turns = [self._message(item, f"{field}[{i}]") for i, item in enumerate(self.items(value, field))]
        if len(self.problems) > before:
            return ()
        if not turns:
            self.note(field, "FP012", "there is no message")
            return ()
        first = 1 if turns[0].role == "system" else 0
        for i, turn in enumerate(turns[first:]):
            expected = ("user", "assistant")[i % 2]
            if turn.role != expected:
                message = f"expected a turn of the {expected}, got one of the {turn.role}"
                self.note(f"{field}[{first + i}]", "FP021", message)
                return ()
        return tuple(turns)

    def _message(self, value: object, field: str) -> Message:
        members = self.mapping(value, field)
        names = ("from", "value") if "from" in members or "value" in members else ("role", "content")
        for name in names:
            if name not in members and isinstance(value, Mapping):
                self.note(f"{field}.{name}", "FP010", "the field is missing")
        for key in members.keys() - {*names}:
            message = "a message has role and content, or from and value, and no more"
            self.note(f"{field}.{key:.80}", "FP014", message)
        role, content = (members.get(name, _ABSENT) for name in names)
        if role is not _ABSENT and (type(role) is not str or role not in ROLES):
            self.note(f"{field}.{names[0]}", "FP020", f"expected one of {', '.join(ROLES)}, got {shown(role)}")
        text = self.text(content, f"{field}.{names[1]}") if content is not _ABSENT else ""
        return Message(ROLES.get(role, "") if type(role) is str else "", text)

    def dialogue(self) -> tuple[Message, ...]:
        """The turns in `messages`."""
        for name in ("prompt", "system"):
            if name in self.values:
                message = "a row has messages, or prompt with an optional system, not both"
                self.note(self.column(name), "FP013", message)
        return self.messages(self.values["messages"], self.column("messages"))

    def prompt(self) -> tuple[Message, ...]:
        """The turns before the response, the last of them the user's; from `prompt` and `system`, or `messages`."""
        if "messages" in self.values:
            turns = self.dialogue()
            if turns and turns[-1].role != "user":
                self.note(self.column("messages"), "FP022", f"the prompt ends in a turn of the {turns[-1].role}")
            return turns
        if "prompt" not in self.values:
            self.note(self.column("prompt"), "FP010", "the row has neither prompt nor messages")
            return ()
        user = Message("user", self.required_text("prompt"))
        system = self.optional_text("system")
        return (user,) if system is None else (Message("system", system), user)

    def spans(self, value: object, field: str, *, length: int) -> tuple[Span, ...]:
        """Spans inside a text of `length` characters, sorted; they may touch, not overlap."""
        if (plain := _plain_spans(value, length)) is not None:
            return plain
        before = len(self.problems)
        spans = [self._span(item, f"{field}[{i}]", length) for i, item in enumerate(self.items(value, field))]
        if len(self.problems) > before:
            return ()
        spans.sort()
        for left, right in pairwise(spans):
            if right.start < left.end:
                self.note(field, "FP043", f"[{left.start}, {left.end}) overlaps [{right.start}, {right.end})")
        return tuple(spans)

    def _span(self, value: object, field: str, length: int) -> Span:
        if isinstance(value, Mapping):
            members = self.mapping(value, field)
            if not {"start", "end"} <= members.keys() <= {"start", "end", "weight"}:
                self.note(field, "FP040", f"a span has start, end and an optional weight, not {sorted(members)!a:.80}")
                return Span(0, 0)
            parts = [members["start"], members["end"], *([members["weight"]] if "weight" in members else [])]
        else:
            parts = list(self.items(value, field))
            if self.nulls_absent and len(parts) == 3 and parts[2] is None:
                parts.pop()
            if not 2 <= len(parts) <= 3:
                if isinstance(value, list | tuple):
                    message = f"a span is [start, end] or [start, end, weight], not {len(parts)} values"
                    self.note(field, "FP040", message)
                return Span(0, 0)
        start, end = self._offset(parts[0], f"{field}.start"), self._offset(parts[1], f"{field}.end")
        weight = self.number(parts[2], f"{field}.weight") if len(parts) == 3 else 1.0
        if start is None or end is None:
            return Span(0, 0)
        if not 0 <= start <= length or end > length:
            self.note(field, "FP041", f"[{start}, {end}) is not inside the {length} characters of the text")
        elif end <= start:
            self.note(field, "FP042", f"[{start}, {end}) holds no character")
        return Span(start, end, weight)

    def numbers(self, value: object, field: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        items: Sequence[Any] = self.items(value, field)
        if {*map(type, items)} == {float} and math.isfinite(sum(items)):  # the common kind, quickly
            return tuple(items)
        return tuple(float(v) if is_small(v) else self.number(v, f"{field}[{i}]") for i, v in enumerate(items))

    def offsets(self, value: object, field: str, *, length: int) -> tuple[tuple[int, int], ...]:
        """[start, end] of each token in a text of `length` characters, in the order of the text; they may be empty."""
        offsets: list[tuple[int, int]] = []
        last = 0
        for i, item in enumerate(self.items(value, field)):
            parts = [self._offset(part, f"{field}[{i}]") for part in self.items(item, f"{field}[{i}]")]
            if len(parts) != 2 or None in parts:
                if None not in parts:
                    self.note(f"{field}[{i}]", "FP056", f"an offset is [start, end], not {len(parts)} values")
                return ()
            start, end = (part or 0 for part in parts)
            if not last <= start <= end <= length:
                message = f"[{start}, {end}) is not in order inside the {length} characters of the text"
                self.note(f"{field}[{i}]", "FP056", message)
                return ()
            offsets.append((start, end))
            last = start
        return tuple(offsets)

    def _offset(self, value: object, field: str) -> int | None:
        if self.nulls_absent and type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:
            self.note(field, "FP011", f"expected an integer, got {kind_of(value)}")
            return None
        if not -INT64 <= value < INT64:
            self.note(field, "FP007", "the number does not fit 64 bits")
            return None
        return value


def is_type_name(value: str) -> bool:
    """Whether a string can name an error type: a letter, then up to 63 letters, digits, `_` or `-` (ASCII)."""
    return len(value) <= 64 and value.isascii() and value.replace("-", "_").isidentifier() and value[0].isalpha()


def _plain_spans(value: object, length: int) -> tuple[Span, ...] | None:
    """Good spans in the common form, sorted {start, end} objects; None for all else, which needs a closer look."""
    if type(value) is not list:
        return None
    spans = []
    last = 0
    for item in value:
        if type(item) is not dict or len(item) != 2 or "start" not in item or "end" not in item:
            return None
        start, end = item["start"], item["end"]
        if type(start) is not int or type(end) is not int or not last <= start < end <= length:
            return None
        spans.append(Span(start, end))
        last = end
    return tuple(spans)


def is_text(value: object) -> TypeGuard[str]:
    """Whether a value is a string with a character that is not white space, and without a lone surrogate."""
    return type(value) is str and value != "" and not value.isspace() and (value.isascii() or is_unicode(value))


def is_small(value: object) -> TypeGuard[float]:
    """Whether a value is a good number of the common kind, not large; all others need a closer look."""
    return (type(value) is float or type(value) is int) and -1e15 < value < 1e15


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8, that is, has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
