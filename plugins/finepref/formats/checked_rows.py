"""Rows with their records or problems, and bad rows as they are written to a file of rejected rows."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import NamedTuple

from finepref.formats.jsonl import ArrayLine, RawRow
from finepref.formats.problems import Problem
from finepref.formats.records import Record


class Checked(NamedTuple):
    """A row as read, with its record (several in some released files) or its problems.

    `notes` tell what of a good row has no place in its records, see `problems.NOTES`.
    """

    raw: RawRow
    records: Sequence[Record]
    problems: list[Problem]
    notes: Sequence[Problem] = ()


def rejected_row(file: str, raw: RawRow) -> dict[str, object]:
    """A bad row as files of rejected rows have it, see `check.check_file`."""
    problems = [{"field": p.field, "code": p.code, "message": p.message} for p in raw.problems]
    row: dict[str, object] = {"file": file, "line": raw.line, "problems": problems}
    if isinstance(raw.line, ArrayLine):
        row["index"] = raw.line.index
    text = raw.raw.removesuffix(b"\n")
    try:
        return row | {"row": text.decode()}
    except UnicodeDecodeError:
        return row | {"row_base64": base64.b64encode(text).decode()}
