"""`finepref doctor`: which stages are there, do the hosts match the patch cards, and does torch see the GPU?"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command("doctor")(doctor)


def doctor(
    as_json: bool = typer.Option(False, "--json", help="Print the table as JSON."),
) -> None:
    """List the stages, compare every patch card with the installed hosts, and check that torch sees the GPUs.

    Exit code 1 if a host has changed, if the stage of some package cannot be used, or if nvidia-smi shows a GPU and
    torch sees none.
    """
    from finepref import stages
    from finepref.hosts import gpu, patching

    with contextlib.redirect_stdout(sys.stderr):  # hosts write to standard output when they are imported
        states = patching.survey()
        gpus = gpu.survey()
    rows, _, broken = stages.registry()
    failed = any(state.outcome == "drift" for state in states) or bool(broken) or bool(gpus.problem)
    if as_json:
        found = {
            "stages": [stages.as_row(row) for row in rows.values()],
            "unusable": [*broken.values()],
            "cards": [patching.as_row(state) for state in states],
            "gpus": asdict(gpus) | {"problem": gpus.problem},
        }
        print(json.dumps(found, indent=2))
        raise typer.Exit(int(failed))

    from rich.console import Console

    console = Console(width=None if Console().is_terminal else 200)
    console.print(_table("finepref stages", [stages.as_row(row) for row in rows.values()]))
    for text in broken.values():
        console.print(text, style="red", markup=False)
    columns = ("card", "host", "version", "target", "state", "detail")
    cards = [patching.as_row(state) for state in states]
    console.print(_table("finepref patch cards", [{key: row[key] for key in columns} for row in cards]))
    console.print(str(gpus), style="red" if gpus.problem else None, markup=False, highlight=False)
    raise typer.Exit(int(failed))


def _table(title: str, rows: list[dict[str, str]]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    return table
