"""Problems and files of a check, as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finepref.formats.check import FileReport, Problem
from finepref.formats.problems import Groups


def print_reports(reports: Iterable[FileReport], problems: list[Problem], *, total: int = 0) -> None:
    """Print a table of problems, a table of files, and the number of problems.

    Problems that are equal but for their place are one line, with their number and three of their places.

    Args:
        reports: of the files.
        problems: further problems, of no file.
        total: the number of further problems, if not all of them are given.
    """
    reports = [*reports]
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    found = Table("code", "place", "field", "problem", title="Problems", title_justify="left")
    files = Table(
        "file", "format", "rows", "rejected", "problems", "ignored columns", title="Files", title_justify="left"
    )
    told = Table("code", "place", "field", "note", title="Notes on good rows", title_justify="left")
    shown = 0
    for group in chain(Groups(problems), *(report.groups for report in reports)):
        first, times = group.first, "the first of {:,} such rows" if group.vary else "{:,} times"
        count = f" ({times.format(group.count)})" if group.count > 1 else ""
        record = f" (id {first.record})" if first.record and group.count == 1 else ""
        cells = (group.examples, first.field, f"{first.message}{record}{count}")
        found.add_row(first.code, *(Text(text, overflow="fold") for text in cells))
        shown += group.count
    for group in chain.from_iterable(report.notes for report in reports):
        text = f"{group.first.message} ({group.count:,} in all)" if group.count > 1 else group.first.message
        told.add_row(
            group.first.code, *(Text(each, overflow="fold") for each in (group.examples, group.first.field, text))
        )
    for report in reports:
        ignored = ", ".join(f"{ascii(name)[1:-1]} ({n})" for name, n in sorted(report.ignored.items()))
        counts = (f"{count:,}" for count in (report.rows, report.rejected, report.total_problems))
        layout = f"{report.layout} -> {report.formatting}" if report.layout else report.formatting
        files.add_row(Text(report.file, overflow="fold"), layout, *counts, Text(ignored, overflow="fold"))
    if found.row_count:
        console.print(found)
    if told.row_count:
        console.print(told)
    if files.row_count:
        console.print(files)
    total = max(total, len(problems)) + sum(report.total_problems for report in reports)
    left = f", {shown} shown" if shown < total else ""
    console.print(f"{total:,} problems{left}" if total != 1 else "1 problem")
