"""`finepref view`: one HTML page with the records of a file, or a picture of one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finepref.commands.errors import user_errors
from finepref.commands.input_files import IN_DATASET_INFO, Column, DatasetDir, Format, check_layout, columns_of
from finepref.commands.outputs import check_outputs
from finepref.commands.sequence_options import CutoffLen, TemplateName
from finepref.commands.token_pages import (
    NEEDS,
    Asked,
    First,
    Model,
    Options,
    Seed,
    Shown,
    StageName,
    entries_of,
    first_and_last,
    some,
    write_page,
    write_picture,
)

COUNT = 2000


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    app.command()(view)


def view(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A file, a folder or a name in dataset_info.json; also sepo score's .parquet, or rejected.jsonl.",
        ),
    ],
    options: Options = None,
    output: Annotated[Path | None, typer.Option(help="The HTML page to write.", show_default=False)] = None,
    png: Annotated[
        Path | None, typer.Option(help="Write a picture of record --record (needs Chromium).", show_default=False)
    ] = None,
    first: First = 1,
    count: Annotated[int, typer.Option(min=1, help="Most records in the page.")] = COUNT,
    stage: StageName = "",
    model: Model = "",
    template: TemplateName = "",
    cutoff_len: CutoffLen = 0,
    seed: Seed = 42,
    colour: Annotated[str, typer.Option(help="Values to colour by at first: weight, reward, span, ...")] = "",
    share: Annotated[
        int | None, typer.Option(min=1, max=100, help="Share k of the picture, in percent.", show_default=False)
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="A picture on a dark ground.")] = False,
    width: Annotated[int, typer.Option(min=300, help="Width of the picture, in CSS pixels.")] = 900,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
) -> None:
    """Records side by side in one HTML page, tokens coloured by reward, span, KL, or what a stage would train on.

    The page needs no server and makes no request. Bad rows are shown with their problems. Exit code 1: bad input.
    """
    if output is None and png is None:
        raise typer.BadParameter("give --output, --png or both", param_hint="--output")
    check_layout(layout)
    with user_errors(NEEDS):
        asked = Asked(stage, options or [], model, template, cutoff_len, seed)
        shown, paths = _shown(source, layout, dataset_dir, column, asked, first, count if output else 1)
        outputs = [path for path in (output, png) if path is not None]
        check_outputs(*outputs, inputs=paths)
        if not shown.entries:
            raise ValueError(f"{source} has no record {first}")
        from finepref.hosts.view_page import page, values_in

        known = values_in(shown.entries)
        if colour and colour not in known:
            raise ValueError(f"--colour {colour}: the records have {', '.join(sorted(known)) or 'no values'}")
        told = [*asked.about(), *first_and_last(first, shown, Path(source).name, "--count")]
        if output is not None:
            write_page(output, page(shown.entries, title=Path(source).name, about=told, colour=colour))
        if png is not None:
            text = page(shown.entries[:1], title=Path(source).name, about=asked.about(), colour=colour)
            write_picture(png, text, dark=dark, width=width, share=share)
    for line in told:
        typer.echo(line)
    bad = sum(bool(each.problems) for each in shown.entries)
    if output is not None:
        size = output.stat().st_size / 1e6
        typer.echo(f"{output}: {len(shown.entries)} records, {bad} of them with a problem, {size:.1f} MB")
    if png is not None:
        typer.echo(f"{png}: record {first}, {shown.entries[0].id or shown.entries[0].place}")


def _shown(
    source: str, layout: str, dataset_dir: Path, column: list[str], asked: Asked, first: int, count: int
) -> tuple[Shown, list[Path]]:
    """The entries to show, and the files that were read."""
    from itertools import islice

    from finepref.hosts.view_sources import REJECTED, SCORES, kind_of, rejected_rows, scored_rows
    from finepref.synth.data_sources.inputs import find_inputs

    path = Path(source)
    kind = "" if layout else kind_of(path)
    if kind and asked.stage:
        rows = "rejected rows" if kind == REJECTED else "log-probabilities; the .jsonl beside it has the scored pairs"
        raise ValueError(f"{source} has {rows}: --stage is for records")
    if kind == REJECTED:
        return some(islice(rejected_rows(path), first - 1, None), count), [path]
    if kind == SCORES:
        texts = path.with_suffix(".jsonl")
        tokenizer = asked.tokeniser().tokenizer if asked.model else None
        beside = texts if tokenizer is None and texts.is_file() else None
        found = some(islice(scored_rows(path, beside, tokenizer), first - 1, None), count)
        return found, [path, texts]
    inputs = find_inputs(source, layout, dataset_dir, columns_of(column), None)
    if asked.model and not asked.stage:
        raise ValueError("--model makes the tokens of a stage, or the texts of a .parquet of sepo score: give --stage")
    return entries_of(inputs, asked.view(), first, count), [path for each in inputs for path in each.paths]
