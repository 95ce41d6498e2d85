"""`finepref`: the command line. Each command, or group of commands, is a file of `finepref.commands`."""

from __future__ import annotations

import typer

from finepref.commands import (
    annotate,
    apo,
    convert,
    data,
    dedup,
    diversity,
    doctor,
    eval,
    filter,
    formats,
    judge,
    margins,
    model,
    report,
    reversegen,
    seapo,
    sepo,
    tokens,
    validate,
    view,
)

HELP = "Preference learning on LLaMA-Factory and OpenRLHF: check, make and score data, and run whole methods."

app = typer.Typer(name="finepref", no_args_is_help=True, help=HELP, pretty_exceptions_enable=False)
for command in (
    *(doctor, validate, filter, convert, formats, data, model, tokens, view, annotate),
    *(seapo, sepo, apo, reversegen, dedup, diversity, judge, margins, eval, report),
):
    command.register(app)


def main() -> None:
    """Console entry point."""
    app()
