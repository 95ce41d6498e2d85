"""`finepref doctor`: do the installed hosts match the patch cards?"""

from __future__ import annotations

import contextlib
import json
import sys

import typer


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command("doctor")(doctor)


def doctor(
    as_json: bool = typer.Option(False, "--json", help="Print the table as JSON."),
) -> None:
    """Compare every patch card with the installed hosts. Exit code 1 if a host has changed."""
    from finepref.hosts import patching

    with contextlib.redirect_stdout(sys.stderr):  # hosts write to standard output when they are imported
        states = patching.survey()
    drifted = any(state.outcome == "drift" for state in states)
    if as_json:
        print(json.dumps([patching.as_row(state) for state in states], indent=2))
        raise typer.Exit(int(drifted))

    from rich.console import Console
    from rich.table import Table

    table = Table(title="finepref patch cards", title_justify="left")
    for column in ("card", "host", "version", "target", "state", "detail"):
        table.add_column(column, overflow="fold")
    for state in states:
        row = patching.as_row(state)
        table.add_row(*(row[key] for key in ("card", "host", "version", "target", "state", "detail")))
    Console(width=None if Console().is_terminal else 200).print(table)
    raise typer.Exit(int(drifted))
