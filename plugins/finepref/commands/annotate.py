"""`finepref annotate`: mark what is good and bad in pairs, on a page in the browser; merge two annotators' files."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from finepref.commands.errors import user_errors
from finepref.commands.input_files import (
    IN_DATASET_INFO,
    WHAT,
    Column,
    DatasetDir,
    Format,
    check_layout,
    columns_of,
    folders_of,
)
from finepref.commands.outputs import check_outputs
from finepref.commands.row_options import MAX_BAD, BadRowsPolicy, MaxBad, Policy, bad_rows_of, rejected_path

COUNT = 2000


class Keep(StrEnum):
    """Which characters a merged file keeps."""

    both = "both"
    either = "either"


class _PageFirst(TyperGroup):
    """A group whose first word may be a file: it is then an argument of the command `default`."""

    default = "page"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command before what names none."""
        named = not args or args[0] in self.commands or args[0] in ctx.help_option_names
        return super().parse_args(ctx, args if named else [self.default, *args])


app = typer.Typer(cls=_PageFirst, no_args_is_help=True)


def register(group: typer.Typer) -> None:
    """Add this file's commands to `group`."""
    text = "Mark what is good or bad in pairs: `finepref annotate FILE --output MARKS`; merge two annotators' files."
    group.add_typer(app, name="annotate", help=text)


@app.command()
def page(
    sources: Annotated[list[str], typer.Argument(metavar="INPUT...", help=f"Pairs of one set. Each is {WHAT}.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file of span pairs to write.")],
    first: Annotated[int, typer.Option("--record", min=1, help="Number of the first record, counted from 1.")] = 1,
    count: Annotated[int, typer.Option(min=1, help="Most records in the page.")] = COUNT,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0: a free one.")] = 0,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser of this machine.")] = False,
    no_page: Annotated[bool, typer.Option("--no-page", help="Only write the file from what is annotated.")] = False,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
    work_dir: Annotated[Path | None, typer.Option(help="Folder of the journal; default: beside the output.")] = None,
) -> None:
    """A page on this machine to mark good and bad characters of both responses (the default command).

    Each step is on the disk before the page shows it, so the same command resumes after any end. Ctrl-C ends it and
    writes the file. Exit code 1: bad input.
    """
    from finepref.synth.annotation import Annotation, read_items, unmarked_path
    from finepref.synth.ask import work_folder
    from finepref.synth.data_sources.inputs import find_inputs

    check_layout(layout)
    with user_errors():
        inputs = [
            each for source in sources for each in find_inputs(source, layout, dataset_dir, columns_of(column), None)
        ]
        folders = [folder for source in sources for folder in folders_of(source)]
        beside = [output, unmarked_path(output), rejected_path(output)]
        check_outputs(*beside, inputs=[path for each in inputs for path in each.paths], folders=folders)
        with bad_rows_of(output, bad_rows, max_bad) as collected:
            items, left_out = read_items(inputs, collected)
        if first > len(items):
            raise ValueError(f"{', '.join(sources)} has no record {first}")
        for name, rows in sorted(left_out.items()):
            typer.echo(f"{name}: not kept, span pairs have no place for that ({rows} rows)")
        with Annotation(items, work_folder(output, work_dir)) as annotation:
            if not no_page:
                title = Path(sources[0]).name + (f" and {len(sources) - 1} more" if sources[1:] else "")
                window = {"first": first - 1, "count": count, "port": port}
                _serve(annotation, output, title, window, open_page=open_page)
            outcome = annotation.write(output)
    for line in outcome.told(output):
        typer.echo(line)


@app.command()
def merge(
    first: Annotated[Path, typer.Argument(metavar="A", help="The file of one annotator.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The file of the other.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file of span pairs to write.")],
    keep: Annotated[
        Keep, typer.Option(help="Characters that both marked alike; or that either marked and nobody otherwise.")
    ] = Keep.both,
) -> None:
    """One file of span pairs from those of two annotators, and how they agree.

    The records without marks beside each file count as looked at. The .report.json beside the output has the figures
    of each record.
    """
    from finepref.synth.annotation import unmarked_path
    from finepref.synth.annotation_merge import files_of, report_path
    from finepref.synth.annotation_merge import merge as run

    with user_errors():
        inputs = [file for path in (first, second) for file in files_of(path)]
        check_outputs(output, unmarked_path(output), report_path(output), inputs=inputs)
        found = run(first, second, output, keep=keep.value)
    for line in found.told(output):
        typer.echo(line)


def _serve(annotation: Any, output: Path, title: str, window: dict[str, int], *, open_page: bool) -> None:
    """Serve the page until the user ends it by Ctrl-C, or something else by SIGTERM."""
    from finepref.hosts.annotate_page import Annotator

    count = len(annotation.items)
    shown = range(window["first"], min(window["first"] + window["count"], count))
    rest = f"; more follow: --record {shown.stop + 1}, or a larger --count" if shown.stop < count else ""
    about = [f"records {shown.start + 1} to {shown.stop} of {count}{rest}"] if len(shown) < count else []
    with _ended_by_signals(), Annotator(annotation, output, title=title, about=about, **window) as server:
        for line in about:
            typer.echo(line)
        typer.echo(f"{annotation.waiting()} of {count} records to annotate. Open {server.url}")
        typer.echo(f"Ctrl-C ends this and writes {output}")
        if open_page:
            import webbrowser

            webbrowser.open(server.url)
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            typer.echo("")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A block that SIGTERM ends as Ctrl-C does; and Ctrl-C too where a shell has the command ignore it."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
