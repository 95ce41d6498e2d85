"""`finepref report`: several runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from finepref.commands.errors import user_errors
from finepref.commands.outputs import check_outputs

FILES = ("report.md", "report.html", "report.csv", "report.json", "figures.png", "curves.png")


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="[LABEL=]RUN...",
            help="Output folders of runs, or of evaluations; or files of `finepref margins`. Runs that differ by "
            "their seed alone are a group, as are runs of one label; others are compared with the first group.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder for report.md, .html, .csv, .json and plots. Default: only a table.")
    ] = None,
    only: Annotated[str, typer.Option(help="Figures whose name has this text, with commas.")] = "",
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Take runs that did not end, with a note.")] = False,
    seed: Annotated[int, typer.Option(help="Random seed of the bootstrap.")] = 0,
) -> None:
    """Which runs differ by what, their figures with the spread over seeds, and which differences are more than noise.

    Reads receipts, trainer logs, and the results of the hosts, lm-eval and finepref's own evaluations. A difference is
    "not shown" unless its interval excludes 0.
    """
    if output is not None:
        if output.exists() and not output.is_dir():
            raise typer.BadParameter(f"{output} is not a folder", param_hint="--output")
        check_outputs(*(output / name for name in FILES), inputs=[])
    with user_errors("numpy is needed for intervals, and matplotlib for plots"):
        from finepref.evals.model_folder import RECEIPT
        from finepref.hosts.receipt import EVALUATION, FILE_NAME
        from finepref.pipelines.run_comparison import compare
        from finepref.pipelines.run_folders import read_runs
        from finepref.pipelines.run_report import write

        names = [each.strip() for each in only.split(",") if each.strip()]
        found = read_runs(runs, (FILE_NAME, EVALUATION, RECEIPT), unfinished=unfinished)
        compared = compare([each.only(names) for each in found] if names else found, seed=seed)
        if not compared.table:
            raise ValueError(f"no figure of these runs has {only!r} in its name")
        _print(compared)
        if output is not None:
            files = write(compared, output)
            typer.echo(f"written: {', '.join(str(file) for file in files)}")
            if not any(file.suffix == ".png" for file in files):
                typer.echo("no plots: matplotlib is not installed, or no figure is known of two groups", err=True)


def _print(found: Any) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from finepref.pipelines.run_report import differences_table, figures_table, headline

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    tables = [("Figures: mean ± standard deviation over seeds", figures_table(found))]
    if found.differing:
        rows = [[name, *map(str, values)] for name, values in found.differing.items()]
        tables.insert(0, ("What differs", (["setting", *(group.name for group in found.groups)], rows)))
    if len(found.groups) > 1:
        tables.append((f"Differences to {found.groups[0].name}, 95 % intervals", differences_table(found)))
    for title, (header, rows) in tables:
        table = Table(title=Text(title), title_justify="left")
        for name in header:
            table.add_column(Text(name))
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
    for line in headline(found):
        console.print(Text(line.replace("**", "")))
    for note in found.notes:
        console.print(Text(f"note: {note}"))


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    app.command("report")(report)
