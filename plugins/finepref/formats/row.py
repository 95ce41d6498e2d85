"""Typed access to one raw row: every getter either returns a good value or notes a Problem."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeGuard

from finepref.formats import tool_calls
from finepref.formats.problems import Problem
from finepref.formats.tool_calls import FunctionCall

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "observation": "observation",
    "tool": "observation",
    "function_call": "function_call",
}
"""Role as written -> role; `human` and `gpt` are the names of the sharegpt layout, `tool` is OpenAI's."""

INT64 = 2**63
_ABSENT = object()

HOST_TURNS = frozenset({"query", "input", "history"})
"""Columns that the hosts make part of the user's turns."""
PROMPT_COLUMNS = HOST_TURNS | {"tools"}
"""Columns that belong to the prompt in every layout."""
MEDIA = ("images", "videos", "audios")
"""Columns without which a host's row means something else; they are refused, never left out in silence."""
USERS, ASSISTANTS = ("user", "observation"), ("assistant", "function_call")
"""Roles of the turns that ask, and of those that answer. Several observations may follow one another."""
TOOLS = "tools"
"""Role of the first turn of a prompt with tools; its text is the JSON of their list."""
UNCLEAR_ROLES = frozenset({"function", "ipython"})
CALL_KEYS = ("tool_calls", "function_call")
MESSAGE_KEYS = frozenset(
    {"id", "loss", "loss_scale", "name", "tool_call_id", "train", "train_detail", "training", "weight"}
)
"""Keys of a message, besides role and content, that do not change its text."""
_NOTHING: tuple[object, ...] = (None, "", [], {}, (), "[]", "{}", "null")


def is_nothing(value: object) -> bool:
    """Whether a value of a column stands for none: null, or an empty text, list or object."""
    return value in _NOTHING


class Message(NamedTuple):
    """One turn; role is "system", "user", "assistant", "observation" (a tool's result), "function_call" or `TOOLS`.

    The text of a "function_call" is that of a `FunctionCall`.
    """

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
        self,
        row: Mapping[str, object],
        *,
        columns: Mapping[str, str],
        file: str,
        line: int,
        nulls_absent: bool,
        values: Mapping[str, object] | None = None,
    ) -> None:
        """Read a row.

        Args:
            row: the decoded object.
            columns: our field -> its column.
            file, line: the place of the row, for the problems.
            nulls_absent: a null stands for an absent key.
            values: our field -> its value, where a layout has taken it from the row; `columns` then only names them.
        """
        self.row = row
        self.columns = columns
        self.file = file
        self.line = line
        self.nulls_absent = nulls_absent
        self.problems: list[Problem] = []
        if values is None:
            values = row
        if columns and values is row:
            taken = columns.values()
            values = {name: value for name, value in row.items() if name not in taken and name not in columns}
            values |= {name: row[column] for name, column in columns.items() if column in row}
        if nulls_absent and None in values.values():
            values = {name: value for name, value in values.items() if value is not None}
        self.values = values
        """Our field name -> raw value, absent ones left out."""

    def note(self, field: str, code: str, message: str) -> None:
        """Note one problem with `field`, named as the user's file names it, in printable characters."""
        field = field if field.isprintable() else ascii(field)[1:-1]
        given = self.values.get("id")
        given = str(given) if type(given) is int and -INT64 <= given < INT64 else given
        record = given if type(given) is str and len(given) <= 80 and given.isprintable() else ""
        self.problems.append(Problem(self.file, self.line, field, code, message, record))

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

    def response(self, name: str) -> str:
        """The response in a required field, see `reply`."""
        value = self.values.get(name)
        return self.reply(value, self.column(name)) if isinstance(value, Mapping) else self.required_text(name)

    def reply(self, value: object, field: str) -> str:
        """A response: a text, or {function_call: text}, which becomes a `FunctionCall`."""
        if is_text(value):
            return value
        if not isinstance(value, Mapping) or value.keys() != {"function_call"}:
            return self.text(value, field)
        place = f"{field}.function_call"
        text = self.text(value["function_call"], place)
        self._check_calls(text, place)
        return FunctionCall(text)

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

    def refuse_media(self) -> None:
        """Refuse images, videos and audios that are not empty."""
        for name in MEDIA:
            if self.values.get(name) not in _NOTHING:
                self.note(self.column(name), "FP088", f"{name} are not supported; only text is trained")

    def tools(self) -> tuple[Message, ...]:
        """The turn of `tools`, the text of a JSON list or a list of objects; no turn if there are none."""
        value, field = self.values.get("tools"), self.column("tools")
        if value in _NOTHING:
            return ()
        listed, text = value, value
        try:
            if type(value) is str:
                listed = json.loads(value)
            elif isinstance(value, list | tuple):
                listed = _without_nulls(value) if self.nulls_absent else value
                text = json.dumps(listed, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            listed = None
        if not isinstance(listed, list | tuple) or any(not isinstance(tool, Mapping) for tool in listed):
            told = shown(value) if type(value) is str else kind_of(value)
            self.note(field, "FP117", f"expected a list of objects, or its JSON, got {told}")
            return ()
        return (Message(TOOLS, self.text(text, field)),) if listed else ()

    def id(self) -> str | None:
        """The row's id: a printable string of at most 256 characters, or an integer; None when the row gives none."""
        if "id" not in self.values:
            return None
        value = self.values["id"]
        if type(value) is int and -INT64 <= value < INT64:
            return str(value)
        if type(value) is not str:
            self.note(self.column("id"), "FP011", f"expected a string, got {kind_of(value)}")
        elif not 0 < len(value) <= 256 or not value.isprintable() or value != value.strip():
            self.note(self.column("id"), "FP023", "an id has 1 to 256 printable characters and no space at its ends")
        return value if type(value) is str else None

    def messages(self, value: object, field: str) -> tuple[Message, ...]:
        """Turns {role, content} or {from, value}: an optional system turn, then `USERS` and `ASSISTANTS` by turns.

        A system turn whose text is null or empty is no turn.
        """
        before = len(self.problems)
        items = self.items(value, field)
        first_item = 1 if items and _is_empty_system(items[0]) else 0
        turns = [self.message(item, f"{field}[{i}]") for i, item in enumerate(items) if i >= first_item]
        if len(self.problems) > before:
            return ()
        if not turns:
            self.note(field, "FP012", "there is no message")
            return ()
        first = 1 if turns[0].role == "system" else 0
        asks, earlier = True, ""
        for i, turn in enumerate(turns[first:]):
            if turn.role == earlier == "observation":
                continue
            if turn.role not in (USERS if asks else ASSISTANTS):
                expected = USERS[0] if asks else ASSISTANTS[0]
                message = f"expected a turn of the {expected}, got one of the {turn.role}"
                self.note(f"{field}[{first_item + first + i}]", "FP021", message)
                return ()
            asks, earlier = not asks, turn.role
        return tuple(turns)

    def message(self, value: object, field: str) -> Message:
        """One turn {role, content} or {from, value}."""
        members = self.mapping(value, field)
        names = ("from", "value") if "from" in members or "value" in members else ("role", "content")
        if ("tool_calls" in members or "function_call" in members) and _calls_in(members):
            return self._calling(members, names, field)
        for name in names:
            if name not in members and isinstance(value, Mapping):
                self.note(f"{field}.{name}", "FP010", "the field is missing")
        if len(members) > 2:
            self._further_keys(members, names, field)
        role, content = (members.get(name, _ABSENT) for name in names)
        if type(role) is str and role in UNCLEAR_ROLES:
            text = f"turns of {role} are not read: write function_call for a call, observation for its result"
            self.note(f"{field}.{names[0]}", "FP089", text)
        elif role is not _ABSENT and (type(role) is not str or role not in ROLES):
            self.note(f"{field}.{names[0]}", "FP020", f"expected one of {', '.join(ROLES)}, got {shown(role)}")
        text = self.text(content, f"{field}.{names[1]}") if content is not _ABSENT else ""
        if role == "function_call":
            self._check_calls(text, f"{field}.{names[1]}")
        return Message(ROLES.get(role, "") if type(role) is str else "", text)

    def _calling(self, members: Mapping[str, object], names: Sequence[str], field: str) -> Message:
        """A turn with OpenAI's `tool_calls`, or its earlier `function_call`; its text may be empty."""
        role, content = members.get(names[0]), members.get(names[1])
        if ROLES.get(role, "") not in ASSISTANTS if type(role) is str else role is not None:
            self.note(f"{field}.{names[0]}", "FP118", f"only the assistant calls functions, not {shown(role)}")
        self._further_keys({key: value for key, value in members.items() if key not in CALL_KEYS}, names, field)
        before = "" if content is None or content == "" else self.text(content, f"{field}.{names[1]}")
        key = _calls_in(members)
        items = [members[key]] if key == "function_call" else self.items(members[key], f"{field}.{key}")
        calls = []
        for i, item in enumerate(items):
            place = f"{field}.{key}" if key == "function_call" else f"{field}.{key}[{i}]"
            call = self.mapping(item, place)
            if "function" in call:
                call = self.mapping(call["function"], f"{place}.function")
            calls.append(_without_nulls(call) if self.nulls_absent else call)
        try:
            text = tool_calls.written(calls, before)
            tool_calls.read(text)
        except (TypeError, ValueError, RecursionError) as error:
            self.note(f"{field}.{key}", "FP118", str(error))
            return Message("function_call", "")
        return Message("function_call", self.text(text, f"{field}.{key}"))

    def _check_calls(self, text: str, field: str) -> None:
        """Note FP118 if a text that begins as JSON is not one of calls; other forms are left to the template."""
        if text.lstrip().startswith(("{", "[", tool_calls.MARKS[0])):
            try:
                tool_calls.read(text)
            except ValueError as error:
                self.note(field, "FP118", str(error))

    def _further_keys(self, members: Mapping[str, object], names: Sequence[str], field: str) -> None:
        """Keys of a message besides the two of its text: null, empty calls or without effect, else refused."""
        for key, value in members.items():
            if key in names or key in MESSAGE_KEYS or value is None or key in CALL_KEYS:
                continue
            known = ", ".join(sorted(MESSAGE_KEYS))
            message = f"a message has role and content, or from and value, and may have {known}"
            self.note(f"{field}.{key:.80}", "FP014", message)

    def dialogue(self) -> tuple[Message, ...]:
        """The turns in `messages`, after that of the tools if there are any."""
        if not _WITH_PROMPT.isdisjoint(self.values):
            self._refuse_second_prompt()
        turns = self.messages(self.values["messages"], self.column("messages"))
        tools = self.tools() if "tools" in self.values else ()
        return (*tools, *turns) if turns else ()

    def _refuse_second_prompt(self) -> None:
        """Refuse `prompt`, `system`, `query`, `input` and `history` beside messages, unless they add nothing."""
        said = {message.get("content", message.get("value")) for message in _objects(self.values["messages"])}
        for name in ("prompt", "system", "query", "input", "history"):
            value = self.values.get(name, _ABSENT)
            if value is _ABSENT or value in _NOTHING or (type(value) is str and value in said):
                continue
            message = "a row has messages, or prompt with an optional system, not both"
            if name in HOST_TURNS:
                message = f"messages and {name} are both given, and {name} is not among the messages"
            self.note(self.column(name), "FP013", message)

    def prompt(self) -> tuple[Message, ...]:
        """The turns before the response, the last of them the user's or a tool's, the first that of the tools.

        They are read from `prompt` and `system`, or `messages`, and from `tools`.
        """
        if "messages" in self.values:
            turns = self.dialogue()
            if turns and turns[-1].role not in USERS:
                self.note(self.column("messages"), "FP022", f"the prompt ends in a turn of the {turns[-1].role}")
            return turns
        earlier: tuple[Message, ...] = ()
        if HOST_TURNS.isdisjoint(self.values):
            if "prompt" not in self.values:
                self.note(self.column("prompt"), "FP010", "the row has neither prompt nor messages")
                return ()
            text = self.required_text("prompt")
        else:
            text, earlier = self._joined_prompt(), self._history()
        turns = (*earlier, Message("user", text))
        system = self.values.get("system")
        if system is not None and system != "":
            turns = (Message("system", self.text(system, self.column("system"))), *turns)
        return (*self.tools(), *turns) if "tools" in self.values else turns

    def _joined_prompt(self) -> str:
        """`prompt`, then `query` or `input` in a new line; each may be empty, not all."""
        parts: list[str] = []
        for name in ("prompt", "query", "input"):
            value = self.values.get(name)
            if value is not None and value != "":
                parts.append(self.text(value, self.column(name)))
        if not parts:
            name = next((name for name in ("prompt", "query", "input") if name in self.values), "prompt")
            absent = name not in self.values
            text = "the row has neither prompt nor messages" if absent else "the text is empty"
            self.note(self.column(name), "FP010" if absent else "FP012", text)
        return "\n".join(parts)

    def _history(self) -> tuple[Message, ...]:
        """The turns of `history`, [user, assistant] each."""
        value, field = self.values.get("history"), self.column("history")
        turns: list[Message] = []
        for i, item in enumerate(self.items(value, field) if value not in _NOTHING else ()):
            place = f"{field}[{i}]"
            pair = self.items(item, place)
            if len(pair) == 2:
                texts = self.texts(pair, place)
                turns += [Message("user", texts[0]), Message("assistant", texts[1])]
            elif isinstance(item, list | tuple):
                self.note(place, "FP021", f"expected [user, assistant], got {len(pair)} values")
        return tuple(turns)

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


_WITH_PROMPT = HOST_TURNS | {"prompt", "system"}


def _without_nulls(value: object) -> Any:
    """A value of Arrow without the null members of its objects, which are absent keys."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(member) for key, member in value.items() if member is not None}
    return [*map(_without_nulls, value)] if isinstance(value, list | tuple) else value


def _calls_in(members: Mapping[str, object]) -> str:
    """The key of a message that holds its calls, "" if it has none."""
    return next((key for key in CALL_KEYS if members.get(key) not in _NOTHING), "")


def _objects(value: object) -> list[Mapping[str, Any]]:
    """The objects in a list whose texts can be compared."""
    items = value if isinstance(value, list | tuple) else ()
    return [
        item for item in items if isinstance(item, Mapping) and type(item.get("content", item.get("value"))) is str
    ]


def _is_empty_system(value: object) -> bool:
    """Whether a message is a system turn whose text is null or empty."""
    if not isinstance(value, Mapping):
        return False
    role, content = value.get("role", value.get("from")), value.get("content", value.get("value", _ABSENT))
    return role == "system" and (content is None or content == "")


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
