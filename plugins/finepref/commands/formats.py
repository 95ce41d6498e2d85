"""`finepref formats`: the description of all formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finepref.formats import catalogue


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    app.command(name="formats")(show_formats)


def show_formats(
    write: Annotated[bool, typer.Option("--write", help="Write the file.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit code 1 unless the file is up to date.")] = False,
    path: Annotated[Path, typer.Option(help="The file.")] = Path("dataset_info/README.md"),
) -> None:
    """Print the description of all formats, or write it to dataset_info/README.md, or check that file."""
    text = catalogue.markdown()
    if write:
        path.write_text(text, encoding="utf-8")
    elif not check:
        typer.echo(text, nl=False)
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        typer.echo(f"{path} is out of date: run `finepref formats --write`", err=True)
        raise typer.Exit(1)
