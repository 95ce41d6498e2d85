"""`finepref`: the one command; each group of sub-commands lives in its own file of `finepref.commands`."""

from __future__ import annotations

import typer

from finepref.commands import apo, data, dedup, doctor, judge, reversegen, seapo, sepo, validate

app = typer.Typer(name="finepref", no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
for group in (doctor, validate, data, seapo, sepo, apo, reversegen, dedup, judge):
    group.register(app)


def main() -> None:
    """Console entry point."""
    app()
