"""`finepref convert`: records of one format as another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from finepref.commands.errors import user_errors
from finepref.commands.input_files import (
    LAYOUTS,
    Column,
    Input,
    MaxBad,
    check_files,
    columns_of,
    file_check,
    names_of,
    read_file,
    share_of,
)
from finepref.commands.problem_tables import print_reports
from finepref.formats.check import BadData
from finepref.formats.convert import TARGETS, Converter
from finepref.formats.jsonl import write_jsonl
from finepref.formats.layouts import native_format
from finepref.formats.records import FORMATS, to_row
from finepref.formats.sepo_csv import Tokens
from finepref.synth.data_sources.files import shards


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    app.command()(convert)


def convert(
    inputs: Annotated[list[str], typer.Argument(help="Files; TYPE=FILE sets the error type of a feedback file.")],
    output: Annotated[Path, typer.Argument(help="The file to write, JSON Lines.")],
    origin: Annotated[str, typer.Option("--from", help=f"One of {', '.join(LAYOUTS)}.")],
    target: Annotated[str, typer.Option("--to", help=f"One of {', '.join(FORMATS)}.")],
    column: Column = [],  # noqa: B006 (typer copies defaults)
    error_type: Annotated[str, typer.Option(help="Error type of undesirable responses without one.")] = "",
    types: Annotated[str, typer.Option(help="negatives: only these error types, with commas.")] = "",
    diff: Annotated[bool, typer.Option("--diff", help="Without spans in the data, mark what differs.")] = False,
    golden: Annotated[Path | None, typer.Option(help="apo_samples: the file of golden answers.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="sepo_csv: tokenizer.json that was used for scoring, or its folder.")
    ] = None,
    eos: Annotated[str, typer.Option(help="sepo_csv: text of the end-of-sequence token.")] = "</s>",
    max_bad: MaxBad = "0",
) -> None:
    """Convert records of one format to another. With bad rows nothing is written, unless --max-bad allows them."""
    if origin not in LAYOUTS:
        raise typer.BadParameter(f"{origin} is not one of {', '.join(LAYOUTS)}", param_hint="--from")
    if target not in TARGETS[native_format(origin)]:
        raise typer.BadParameter(f"{origin} becomes {' or '.join(TARGETS[native_format(origin)])}", param_hint="--to")
    share = share_of(max_bad)
    with user_errors():
        files = [
            file for text in inputs for file in _typed_inputs(text, origin, columns_of(column), error_type or None)
        ]
    if output.resolve() in {file.path.resolve() for file in files}:
        raise typer.BadParameter(f"{output} is also an input", param_hint="OUTPUT")
    options = {"golden": golden, "tokenize": _tokenizer(tokenizer) if tokenizer else None, "eos": eos}
    rejected = output.with_name(f"{output.name}.rejected.jsonl") if share else None
    reports = check_files(files, 100, rejected, **options)
    if not all(report.passes(share) for report in reports):
        print_reports(reports, [])
        raise typer.Exit(1)
    converter = Converter(target, types=names_of(types), error_type=error_type or None, diff=diff)
    placed = (
        (str(file.path), row.raw.line, record)
        for file in files
        for row in file_check(file).walk(read_file(file, **options))
        for record in row.records
    )
    try:
        count = write_jsonl(output, map(to_row, converter.run(placed)))
    except BadData as error:
        print_reports(reports, [*error.problems], total=error.total)
        raise typer.Exit(1) from None
    print_reports(reports, [])
    left = "".join(f"; left out: {name} of {n} records" for name, n in sorted(converter.left_out.items()))
    typer.echo(f"{count} rows of {target} in {output}{left}")


def _typed_inputs(text: str, layout: str, columns: Mapping[str, str], error_type: str | None) -> list[Input]:
    """The files that an argument stands for: itself, or those of a folder."""
    given, _, file = text.partition("=")
    if file and native_format(layout) == "feedback" and not Path(text).exists():
        text, error_type = file, given
    path = Path(text)
    paths = shards(path) if path.is_dir() else [path]
    return [Input(each, layout, columns, error_type) for each in paths]


def _tokenizer(path: Path) -> Callable[[str], Tokens]:
    """The tokenizer in a file tokenizer.json, or in its folder."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise typer.BadParameter("needs `pip install tokenizers`", param_hint="--tokenizer") from None
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise typer.BadParameter(f"{file} does not exist", param_hint="--tokenizer")
    loaded = Tokenizer.from_file(str(file))

    def tokenize(text: str) -> Tokens:
        encoding = loaded.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    return tokenize
