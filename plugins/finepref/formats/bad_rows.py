"""What happens to rows with a coded problem: they stop the work, or are left out, counted and written to a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finepref.formats.checked_rows import Checked, rejected_row
from finepref.formats.jsonl import RawRow, write_aside
from finepref.formats.problems import LEFT_OUT, SHOWN, BadData, Problem

POLICIES = ("error", "skip")
MAX_BAD = "1%"
"""The share of bad rows that `skip` accepts, if the user gives none."""


def share_of(text: str) -> float:
    """The share in a text such as "0.1%" or "0.001".

    Raises:
        ValueError: it is not a share from 0 to under 1.
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise ValueError(f"{text} is not a share from 0 to under 1, or 0% to under 100%")
    return share


@dataclass
class BadRows:
    """Collects the bad rows of a job's input, of one file or several.

    Args:
        skip: whether bad rows are left out; else each is an error.
        max_bad: the largest share of the rows that may be left out.

    Attributes:
        read: number of rows that were read.
        rejected: the bad rows, see `checked_rows.rejected_row`.
        problems: their problems, and those of whole files.
        codes: number of bad rows by the code of their first problem.
    """

    skip: bool = False
    max_bad: float = 0.01
    read: int = 0
    rejected: list[Mapping[str, object]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, policy: str, max_bad: str) -> BadRows:
        """The collector for options `bad_rows` ("error" or "skip") and `max_bad`.

        Raises:
            ValueError: `max_bad` is not a share.
        """
        return cls(policy == "skip", share_of(max_bad))

    def good(self, file: str, rows: Iterable[Checked]) -> Iterator[Checked]:
        """The rows of a file that have no problem; the others are collected."""
        for row in rows:
            self.read += row.raw.line > 0
            if row.problems:
                self.refuse(file, row.raw, row.problems)
            else:
                yield row

    def refuse(self, file: str, raw: RawRow, problems: list[Problem]) -> None:
        """Collect the problems of a row that was already counted as read, or of a whole file (line 0)."""
        self.problems += problems
        if raw.line > 0:
            self.add(rejected_row(file, raw._replace(problems=problems)), problems)

    def add(self, row: Mapping[str, object], problems: list[Problem], *, rows: int = 1) -> None:
        """Collect a bad row, or a record of several rows, that was already counted as read."""
        self.rejected.append(row)
        self.codes[problems[0].code] += rows

    def settle(self) -> None:
        """Accept what was read, or refuse it. Rows that give no record (FP120) are not bad, unless there is no other.

        Raises:
            BadData: there is a problem of a whole file; or there are bad rows, and `skip` is False or their share is
                above `max_bad`; or no row gives a record.
        """
        of_files = [problem for problem in self.problems if problem.line == 0]
        of_rows = [problem for problem in self.problems if problem.line and problem.code not in LEFT_OUT]
        bad = sum(count for code, count in self.codes.items() if code not in LEFT_OUT)
        if of_files or (bad and not self.skip):
            raise BadData([*of_files, *of_rows][:SHOWN], len(of_files) + len(of_rows))
        if bad > self.max_bad * self.read:
            share = bad / self.read
            text = f"{bad} of {self.read} rows are bad, {share:.1%}; max_bad is {100 * self.max_bad:g}%"
            limit = Problem(of_rows[0].file, 0, "", "FP091", text)
            raise BadData([limit, *of_rows][:SHOWN], len(of_rows) + 1)
        if not bad and self.read and self.codes.total() == self.read:
            raise BadData(self.problems[:SHOWN], len(self.problems))

    def write(self, path: Path) -> None:
        """Write the bad rows; without any, remove the file of an earlier run."""
        write_aside(path, self.rejected)

    def __str__(self) -> str:
        """The counts for a line of output: "3 rows rejected: 2 FP010, 1 FP012"."""
        told = ", ".join(f"{count} {code}" for code, count in sorted(self.codes.items()))
        return f"{self.codes.total()} rows rejected: {told}" if told else "no row rejected"


def rejected_path(output: Path) -> Path:
    """The file of the rows that a command rejects, beside its output."""
    return output.with_name(f"{output.name}.rejected.jsonl")
