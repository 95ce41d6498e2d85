"""Options of every command that reads rows: what happens to bad rows, and whether an empty result is a failure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from finepref.formats.bad_rows import MAX_BAD, BadRows, rejected_path
from finepref.formats.problems import BadData


class Policy(StrEnum):
    """What happens to rows with a coded problem."""

    error = "error"
    skip = "skip"


BadRowsPolicy = Annotated[
    Policy, typer.Option("--bad-rows", help="Rows with a problem: stop, or write them to OUTPUT.rejected.jsonl.")
]
MaxBad = Annotated[
    str, typer.Option("--max-bad", help="--bad-rows skip: the largest share of bad rows, such as 0.1% or 0.001.")
]
AllowEmpty = Annotated[bool, typer.Option("--allow-empty", help="Exit code 0 even if no row is left.")]


@contextmanager
def bad_rows_of(output: Path | None, policy: Policy, max_bad: str = MAX_BAD) -> Iterator[BadRows]:
    """The collector of bad rows of a command. At the end it writes them beside the output and tells their number.

    Args:
        output: of the command; None = the first bad rows are told, and all are counted.
        policy: --bad-rows.
        max_bad: --max-bad.

    Raises:
        ValueError: `max_bad` is not a share.
        BadData: as raised in the block.
        typer.Exit: the same, if --bad-rows skip would leave the bad rows out, which is told.
    """
    collected = BadRows.of(policy.value, max_bad)
    try:
        yield collected
    except BadData as error:
        if policy is Policy.error and all(problem.line for problem in error.problems):
            told = f"`--bad-rows skip` leaves bad rows out if their share is at most --max-bad ({max_bad})"
            typer.echo(f"{error}\n{told}", err=True)
            raise typer.Exit(1) from error
        raise
    if output is not None:
        collected.write(rejected_path(output))
    if output is None:
        for problem in collected.problems[:10]:
            typer.echo(problem, err=True)
    if collected.rejected:
        place = "" if output is None else f"{rejected_path(output)}: "
        typer.echo(f"{place}{collected}", err=output is None)


def exit_if_empty(rows: int, output: Path, why: object, *, allowed: bool = False) -> None:
    """Exit with code 1 if no row is left, unless the user allows that; `why` says what became of the rows."""
    if not rows and not allowed:
        typer.echo(f"{output}: no row is left ({why})", err=True)
        raise typer.Exit(1)
