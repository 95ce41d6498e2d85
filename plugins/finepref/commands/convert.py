"""`finepref convert`: records of one format as another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from finepref.commands.errors import user_errors
from finepref.commands.input_files import (
    IN_DATASET_INFO,
    LAYOUTS,
    WHAT,
    Column,
    DatasetDir,
    MaxBad,
    check_files,
    check_layout,
    columns_of,
    names_of,
    share_of,
)
from finepref.commands.outputs import check_outputs
from finepref.commands.problem_tables import print_reports
from finepref.formats.check import BadData
from finepref.formats.convert import TARGETS, Converter
from finepref.formats.jsonl import write_jsonl
from finepref.formats.layouts import UNKNOWN, native_format
from finepref.formats.records import FORMATS, to_row
from finepref.formats.row import is_type_name
from finepref.formats.sepo_csv import Tokens
from finepref.synth.data_sources.inputs import file_check, find_inputs, read_file
from finepref.synth.data_sources.job_rows import Given


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    app.command()(convert)


def convert(
    inputs: Annotated[
        list[str],
        typer.Argument(help=f"Each {WHAT}; TYPE=INPUT sets the error type of a feedback file."),
    ],
    output: Annotated[Path, typer.Argument(help="The file to write, JSON Lines.")],
    target: Annotated[str, typer.Option("--to", help=f"One of {', '.join(FORMATS)}.")],
    origin: Annotated[
        str,
        typer.Option(
            "--from", help=f"Default: the data set's, or recognised by all rows. One of {', '.join(LAYOUTS)}."
        ),
    ] = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
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
    check_layout(origin, "--from")
    share, columns = share_of(max_bad), columns_of(column)
    if origin:
        _check_target(origin, target)
    with user_errors():
        found = [_typed_inputs(text, origin, dataset_dir, columns, error_type or None) for text in inputs]
    files = [file for each in found for file in each.files]
    for layout in {file.layout: None for file in files}:
        _check_target(layout, target)
        if layout == "apo_samples" and golden is None:
            raise typer.BadParameter("apo_samples needs the file of golden answers", param_hint="--golden")
        if layout == "sepo_csv" and tokenizer is None:
            raise typer.BadParameter("sepo_csv needs the tokenizer of the scoring", param_hint="--tokenizer")
    if len(formats := {native_format(file.layout): file for file in files if file.layout != UNKNOWN}) > 1:
        told = " and ".join(f"{file.path} is read as {file.layout}" for file in [*formats.values()][:2])
        raise typer.BadParameter(f"the inputs give records of several formats: {told}", param_hint="INPUTS")
    folders = [folder for each in found for folder in each.folders]
    read = [*(path for each in found for path in each.paths), golden]
    check_outputs(output, inputs=read, folders=folders, hint="OUTPUT")
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


def _check_target(layout: str, target: str) -> None:
    """Refuse a target that records of a layout cannot become."""
    if layout != UNKNOWN and target not in (targets := TARGETS[native_format(layout)]):
        raise typer.BadParameter(f"{layout} becomes {' or '.join(targets)}", param_hint="--to")


def _typed_inputs(
    text: str, layout: str, dataset_dir: Path, columns: Mapping[str, str], error_type: str | None
) -> Given:
    """The files that an argument stands for, see `find_inputs`; TYPE= before it is the error type of feedback.

    Args:
        text: the argument.
        layout, dataset_dir, columns, error_type: of all arguments.
    """
    given, _, name = text.partition("=")
    if (
        name
        and is_type_name(given)
        and not Path(text).exists()
        and (not layout or native_format(layout) == "feedback")
    ):
        text, error_type = name, given
    found = find_inputs(text, layout, dataset_dir, columns, error_type)
    return Given(text, [file._replace(dataset="") for file in found])


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
