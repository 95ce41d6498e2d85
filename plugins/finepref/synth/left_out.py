"""The ledger of a job: every row that is left out of its output, with a reason.

The ledger counts by reason and writes the rows to a file beside the output, in one of these forms. A file from an
earlier run is removed if nothing is left out now.

    LEFT_OUT   <stem>.left_out.jsonl   the row with left_out: {kind, reason}   steps of reversegen
    PROBLEMS   <stem>.left_out.jsonl   {row, problems}                         public data sets
    UNJUDGED   <stem>.unjudged.jsonl   the row with reason_unjudged            finepref judge
    FAILED     <stem>.failed.jsonl     the row itself                          seapo inject, apo sample

Other jobs list the rows in their `<stem>.report.json` (`Ledger.rows`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from finepref.formats.bad_rows import rejected_path
from finepref.formats.jsonl import read_jsonl, write_aside

ENGINE = "engine"
"""The reason, or its beginning, for rows that the engine failed on. The same command asks for those again."""


class LeftOut(NamedTuple):
    """A row that is left out, why, and the class that the reason belongs to, if the job has classes."""

    row: Mapping[str, object]
    reason: str
    kind: str = ""


class Form(NamedTuple):
    """How left-out rows are written to a file, and read from it."""

    suffix: str
    write: Callable[[LeftOut], Mapping[str, object]]
    read: Callable[[Mapping[str, object]], LeftOut]

    def path(self, output: Path) -> Path:
        """The file for a job's output."""
        return output.with_suffix(self.suffix)


def _read_left_out(row: Mapping[str, object]) -> LeftOut:
    told = row["left_out"]
    assert isinstance(told, dict)
    return LeftOut({name: value for name, value in row.items() if name != "left_out"}, told["reason"], told["kind"])


def _read_unjudged(row: Mapping[str, object]) -> LeftOut:
    own = {name: value for name, value in row.items() if name != "reason_unjudged"}
    return LeftOut(own, str(row["reason_unjudged"]), "unjudged")


LEFT_OUT = Form(
    ".left_out.jsonl",
    lambda each: {**each.row, "left_out": {"kind": each.kind, "reason": each.reason}},
    _read_left_out,
)
UNJUDGED = Form(".unjudged.jsonl", lambda each: {**each.row, "reason_unjudged": each.reason}, _read_unjudged)
PROBLEMS = Form(".left_out.jsonl", lambda each: each.row, lambda row: LeftOut(row, ""))
FAILED = Form(".failed.jsonl", lambda each: each.row, lambda row: LeftOut(row, ""))


class Ledger:
    """The rows that a job leaves out, in their order.

    Attributes:
        entries: each row with its reason.
    """

    def __init__(self) -> None:
        self.entries: list[LeftOut] = []

    def add(self, row: Mapping[str, object], reason: str, *, kind: str = "") -> None:
        """Leave out a row."""
        self.entries.append(LeftOut(row, reason, kind))

    def __len__(self) -> int:
        return len(self.entries)

    def __str__(self) -> str:
        """The counts for a line of output: "2 empty, 1 single", or "none"."""
        counts = Counter((each.kind, each.reason) for each in self.entries)
        told = (
            f"{count} {kind}: {reason}" if kind else f"{count} {reason}"
            for (kind, reason), count in sorted(counts.items())
        )
        return ", ".join(told) or "none"

    @property
    def counts(self) -> Counter[str]:
        """The number of rows by reason."""
        return Counter(each.reason for each in self.entries)

    @property
    def counts_by_kind(self) -> dict[str, Counter[str]]:
        """The number of rows by class and reason."""
        found: dict[str, Counter[str]] = {}
        for each in self.entries:
            found.setdefault(each.kind, Counter())[each.reason] += 1
        return found

    @property
    def unanswered(self) -> int:
        """The number of rows that the engine failed on."""
        return sum(each.reason == ENGINE or each.reason.startswith(f"{ENGINE}: ") for each in self.entries)

    @property
    def rows(self) -> list[dict[str, object]]:
        """Each row with its reason, for a report."""
        return [{**each.row, "reason": each.reason} for each in self.entries]

    def write(self, output: Path, form: Form) -> None:
        """Write the rows beside the output; without rows, remove the file of an earlier run."""
        write_aside(form.path(output), [form.write(each) for each in self.entries])


class Written(NamedTuple):
    """The result of a job: the number of rows in its output, and the rows that it left out."""

    rows: int
    left_out: Ledger


def unanswered(error: str) -> str:
    """The reason for a row that the engine failed on."""
    return f"{ENGINE}: {error}"


def read(output: Path, form: Form) -> list[LeftOut]:
    """The rows that a job left out, from the file beside its output; none if there is no such file.

    Raises:
        BadData: the file is not JSON Lines.
    """
    path = form.path(output)
    return [form.read(row) for _, row in read_jsonl(path, problems=None)] if path.exists() else []


def read_all(output: Path) -> list[LeftOut]:
    """The rows that a step of reversegen, a judge or dedup left out; the last lists them in its report.

    Rejected rows (`BadRows`) are invalid; those without an id, such as torn lines, are not among them.

    Raises:
        BadData: a file is not JSON Lines.
    """
    found = [*read(output, LEFT_OUT), *read(output, UNJUDGED), *_rejected(output)]
    report = output.with_suffix(".report.json")
    content = json.loads(report.read_bytes()) if report.exists() else {}
    if content.get("job") == "dedup":
        found += [LeftOut(row, "", "duplicate") for group in content["groups"] for row in group["left_out"]]
    return found


def _rejected(output: Path) -> Iterator[LeftOut]:
    """The rejected rows of a command that can be read and have an id."""
    path = rejected_path(output)
    for _, told in read_jsonl(path, problems=None) if path.exists() else ():
        try:
            row = json.loads(str(told.get("row", "")))
        except ValueError:
            continue
        problems = told["problems"]
        assert isinstance(problems, list)
        if isinstance(row, dict) and "id" in row:
            yield LeftOut(row, f"rejected: {problems[0]['code']}", "invalid")
