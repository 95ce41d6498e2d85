"""A layout: the columns of a public or foreign data set, and how the fields of our records are read from them.

A layout is data: a row of a table. finepref's own are in `finepref.formats.layout_table`; another package adds some
by an entry point of the group `finepref.layouts` that names a Layout or a tuple of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from finepref.formats.record_types import FIELDS, FORMATS
from finepref.formats.row import RowReader

NAME = re.compile(r"[a-z][a-z0-9_]*")
ABSENT = object()
"""What a field's reader returns if the row does not give the field."""
FAILED = object()
"""The value of a field whose reader has noted a problem: it is not missing."""


class Taken(NamedTuple):
    """A value for a field of ours, and the place in the user's row that it comes from, for messages."""

    place: str
    value: object


Own = Mapping[str, Taken]
"""Our field -> what it is read from: one record's worth of a row."""


class Field(NamedTuple):
    """Where a field of ours is in a row: a path of keys ("label.steps"), or several ("chosen|text") of which one is
    there, and what makes our value of that which is there (None: it is our value already).

    `read` is called with the reader of the row, the value and its place. It notes problems with the reader, and
    returns a Taken, or ABSENT if the row does not give the field.
    """

    path: str
    read: Callable[[RowReader, object, str], object] | None = None


@dataclass(frozen=True)
class Layout:
    """One layout of rows.

    Attributes:
        name: for `--format`, `--from`, `formatting`.
        gives: the format of its records.
        source: who writes such rows, for the documentation.
        sample: a good row, for the documentation and the tests.
        needs: what a row must have to be recognised: "column", "column:kind" (see KINDS), "!column" for one that must
            not be there; columns may be paths and alternatives, as in Field. Empty: never recognised, only named.
        fields: our field -> a path, or a Field. Empty for our own formats, which are read as they are.
        make: for layouts whose rows are not simply columns: the row's reader -> its records' fields.
        also: columns that are read besides those of `fields`, as by `make`; all others are counted as ignored.
        keys: the host's name of a column, as its dataset_info.json has it -> the column of this layout.
        widens: a layout whose rows may stand among the rows of this one.
        by_row: whether its rows can be read one by one, without another file.
    """

    name: str
    gives: str
    source: str
    sample: Mapping[str, object]
    needs: tuple[str, ...] = ()
    fields: Mapping[str, str | Field] = field(default_factory=dict)
    make: Callable[[RowReader], Sequence[Own]] | None = None
    also: tuple[str, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    widens: str = ""
    by_row: bool = True

    @property
    def native(self) -> bool:
        """Whether its rows are those of a format of ours, read as they are."""
        return not self.fields and self.make is None and self.by_row

    @property
    def columns(self) -> frozenset[str]:
        """The columns that are read."""
        if self.native:
            return frozenset(FIELDS[self.gives])
        paths = [each.path if isinstance(each, Field) else each for each in self.fields.values()]
        return frozenset(path.partition(".")[0] for names in (*paths, *self.also) for path in names.split("|"))

    def recognises(self, row: Mapping[str, object], *, kinds: bool = True) -> bool:
        """Whether a row looks like one of this layout.

        Args:
            row: as it is in the file.
            kinds: compare the kinds of the values too, not only the names of the columns.
        """
        return bool(self.needs) and all(_meets(row, need, kinds) for need in self.needs)

    def likeness(self, row: Mapping[str, object]) -> float:
        """The share of `needs` that a row meets, 0 if it lacks one of the columns."""
        if not self.recognises(row, kinds=False):
            return 0.0
        return sum(_meets(row, need, True) for need in self.needs) / len(self.needs)

    def records(self, reader: RowReader) -> Sequence[Own]:
        """What the records of a row are read from; several for layouts with several records in a row."""
        if self.make is not None:
            return self.make(reader)
        return [take(reader, self.fields)]


def take(reader: RowReader, fields: Mapping[str, str | Field]) -> Own:
    """Our fields of a row by their paths; absent ones are left out, and reported as missing when they are read."""
    own: dict[str, Taken] = {}
    for name, where in fields.items():
        before = len(reader.problems)
        path, read = where if isinstance(where, Field) else (where, None)
        place, value = find(reader, path)
        if value is ABSENT or (value is None and reader.nulls_absent):
            own[name] = Taken(place, ABSENT)
            continue
        taken = Taken(place, value) if read is None else read(reader, value, place)
        if isinstance(taken, Taken):
            own[name] = taken
        elif len(reader.problems) > before:
            own[name] = Taken(place, FAILED)
    return own


def find(reader: RowReader, path: str) -> Taken:
    """The value at a path in a row (the first of alternatives that is there), ABSENT if there is none."""
    places = []
    for one in path.split("|"):
        first, *rest = one.split(".")
        place, value = reader.column(first), reader.values.get(first, ABSENT)
        for key in rest:
            place = f"{place}.{key}"
            value = value.get(key, ABSENT) if isinstance(value, Mapping) else ABSENT
        if value is not ABSENT and not (value is None and "|" in path):
            return Taken(place, value)
        places.append(place)
    return Taken(places[0], ABSENT)


def is_message(value: object) -> bool:
    """Whether a value looks like a turn of a dialogue."""
    return isinstance(value, Mapping) and bool({"content", "value"} & value.keys())


def has_edits(text: str) -> bool:
    """Whether a text marks edits as FAVA does."""
    return "<mark>" in text or "<delete>" in text


def _is_label(value: object) -> bool:
    return type(value) is bool or (type(value) is int and value in (0, 1))


KINDS: dict[str, Callable[[object], bool]] = {
    "text": lambda value: type(value) is str,
    "response": lambda value: type(value) is str or (isinstance(value, Mapping) and "function_call" in value),
    "transcript": lambda value: (
        type(value) is str and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value
    ),
    "edited": lambda value: type(value) is str and has_edits(value),
    "list": lambda value: isinstance(value, list | tuple),
    "object": lambda value: isinstance(value, Mapping),
    "options": lambda value: isinstance(value, Mapping | list | tuple) and len(value) > 0,
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "label": _is_label,
    "message": is_message,
    "messages": lambda value: isinstance(value, list | tuple) and len(value) > 0 and is_message(value[0]),
    "single": lambda value: is_message(value) or (KINDS["messages"](value) and len(value) == 1),  # type: ignore[arg-type]
    "objects": lambda value: isinstance(value, list | tuple) and len(value) > 0 and isinstance(value[0], Mapping),
    "reply": lambda value: KINDS["text"](value) or KINDS["message"](value) or KINDS["messages"](value),
}
"""Kind of a value, in `Layout.needs` -> whether a value is of it."""


def _meets(row: Mapping[str, object], need: str, kinds: bool) -> bool:
    if need.startswith("!"):
        return row.get(need[1:]) is None
    names, _, kind = need.partition(":")
    for path in names.split("|"):
        value: object = row
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None if not (kinds and kind) else KINDS[kind](value):
            return True
    return False


def recognise(row: Mapping[str, object], layouts: Iterable[Layout]) -> str:
    """The first layout that recognises a row; "" if none does."""
    return next((layout.name for layout in layouts if layout.recognises(row)), "")


def likeliest(row: Mapping[str, object], layouts: Iterable[Layout]) -> str:
    """The layout whose columns a row has, and whose kinds of values it has most of; "" if it has those of none."""
    found = max(layouts, key=lambda layout: layout.likeness(row))
    return found.name if found.likeness(row) > 0 else ""


def problems_of(layout: object) -> list[str]:
    """Why a third party's layout cannot be used, as texts "FIELD: what is wrong"; empty if it can be used."""
    if not isinstance(layout, Layout):
        return [f"expected a finepref.formats.layout.Layout, or a tuple of them, got {type(layout).__name__}"]
    found = []
    if type(layout.name) is not str or not NAME.fullmatch(layout.name):
        found.append(f"name: {layout.name!r} must be lower-case letters, digits and _, starting with a letter")
    if layout.gives not in FORMATS:
        return [*found, f"gives: expected one of {', '.join(FORMATS)}, got {layout.gives!r}"]
    if not layout.fields and layout.make is None:
        found.append("fields: there are none, and there is no `make`")
    found += [
        f"fields: {layout.gives} has no field {name!r}" for name in layout.fields if name not in FIELDS[layout.gives]
    ]
    for need in layout.needs:
        kind = need.partition(":")[2]
        if kind and kind not in KINDS:
            found.append(f"needs: {kind!r} is not one of {', '.join(KINDS)}")
    return found
