"""Problems and files of a check, as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finepref.formats.check import FileReport, Problem


def print_reports(reports: Iterable[FileReport], problems: list[Problem], *, total: int = 0) -> None:
    """Print a table of problems, a table of files, and the number of problems.

    Args:
        reports: of the files.
        problems: further problems, of no file.
        total: the number of further problems, if not all of them are given.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    found = Table("code", "place", "field", "problem", title="Problems", title_justify="left")
    files = Table(
        "file", "format", "rows", "rejected", "problems", "ignored columns", title="Files", title_justify="left"
    )
    for problem in chain(problems, *(report.problems for report in reports)):
        place = f"{problem.file}:{problem.line}" if problem.line else problem.file
        found.add_row(problem.code, *(Text(text, overflow="fold") for text in (place, problem.field, problem.message)))
    for report in reports:
        ignored = ", ".join(f"{ascii(name)[1:-1]} ({n})" for name, n in sorted(report.ignored.items()))
        counts = (f"{count:,}" for count in (report.rows, report.rejected, report.total_problems))
        files.add_row(Text(report.file, overflow="fold"), report.formatting, *counts, Text(ignored, overflow="fold"))
    if found.row_count:
        console.print(found)
    if files.row_count:
        console.print(files)
    total = max(total, len(problems)) + sum(report.total_problems for report in reports)
    shown = f", {found.row_count} shown" if found.row_count < total else ""
    console.print(f"{total:,} problems{shown}" if total != 1 else "1 problem")
