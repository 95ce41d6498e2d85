"""Input files on the command line: the options that say what they are, and the check of all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from finepref.commands.errors import user_errors
from finepref.commands.outputs import check_outputs
from finepref.formats import layouts
from finepref.formats.check import (
    FileCheck,
    FileReport,
    SeenIds,
    digest,
    one_label,
)
from finepref.formats.jsonl import write_jsonl
from finepref.formats.pool import WorkerDied
from finepref.synth.data_sources import files
from finepref.synth.data_sources.inputs import Input, file_check, read_file
from finepref.synth.data_sources.job_rows import Given, given

LAYOUTS = layouts.names()

Column = Annotated[list[str], typer.Option(help="FIELD=COLUMN, if a file has another name for one of our fields.")]
MaxBad = Annotated[str, typer.Option(help="Accept up to this share of bad rows, such as 0.1% or 0.001.")]
Format = Annotated[
    str, typer.Option("--format", help="Layout of the rows; default: the data set's, or recognised by all rows.")
]
DatasetDir = Annotated[Path, typer.Option(help="Folder of dataset_info.json.")]
IN_DATASET_INFO = Path("dataset_info")
WHAT = "a file, a folder of files, or a name in dataset_info.json"


def given_of(name: str, layout: str, dataset_dir: Path, column: Iterable[str], *, error_type: str = "") -> Given:
    """The input of a job that a name stands for, see `job_rows.given`.

    Raises:
        typer.BadParameter: there is no such layout, or a column is not FIELD=COLUMN.
        BadData: see `inputs.find_inputs`.
    """
    if layout not in layouts.SUPERVISED:
        check_layout(layout)
    return given(
        name, layout=layout, dataset_dir=dataset_dir, columns=columns_of(column), error_type=error_type or None
    )


def input_of(
    name: str, layout: str, dataset_dir: Path, column: Iterable[str], *outputs: Path, error_type: str = ""
) -> Given:
    """The input of a job, after a check that none of the outputs is a part of it; see `given_of`.

    Args:
        name, layout, dataset_dir, column: as on the command line.
        outputs: all files that the command may write or remove.
        error_type: of undesirable feedback rows without one.

    Raises:
        typer.BadParameter: see `given_of` and `check_outputs`.
        typer.Exit: the name stands for no data; that is told.
    """
    with user_errors():
        found = given_of(name, layout, dataset_dir, column, error_type=error_type)
    check_outputs(*outputs, inputs=found.paths, folders=found.folders)
    return found


def folders_of(name: str) -> list[Path]:
    """The folder that a name stands for, if it is one."""
    return [Path(name)] if Path(name).is_dir() else []


def check_layout(layout: str, hint: str = "--format") -> None:
    """Refuse a name that is no layout; "" is none given."""
    if layout and layout not in LAYOUTS:
        raise typer.BadParameter(f"{layout} is not one of {', '.join(LAYOUTS)}", param_hint=hint)


def check_files(
    inputs: list[Input], limit: int, rejected: Path | None, *, jobs: int = 1, **options: Any
) -> list[FileReport]:
    """Check files and report every problem.

    Args:
        inputs: the files.
        limit: problems shown per file.
        rejected: file for the bad rows, None to not write them.
        jobs: processes for a large file.
        options: of `read_file`.
    """
    with ExitStack() as open_ids:
        ids = {file.dataset: open_ids.enter_context(SeenIds()) for file in inputs if file.dataset}
        checks = [(file_check(file, limit, ids.get(file.dataset)), file) for file in inputs]
        bad = chain.from_iterable(_rejected(check, file, jobs, **options) for check, file in checks)
        try:
            if rejected is None:
                deque(bad, maxlen=0)
            else:
                write_jsonl(rejected, bad)
        except WorkerDied as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None
    for dataset in ids:
        of_set = [check for check, file in checks if file.dataset == dataset]
        of_set[0].add_of_set(one_label(of_set[0].file, of_set))
    return [check.report() for check, _ in checks]


def _rejected(check: FileCheck, file: Input, jobs: int, **options: Any) -> Iterator[dict[str, object]]:
    """The bad rows of one file; `check` counts all rows."""
    if not file.by_row or file.hub or not files.is_plain(file.path) or file.wrong_columns():
        yield from check.rejected_rows(read_file(file, **options))
        check.sha256 = digest(file.path)
        return
    parse_row = file.parse_row(options.get("error_types"))
    with tqdm(desc=file.path.name, unit=" rows", disable=None) as bar:
        yield from check.rejected_in_file(file.path, parse_row, jobs=jobs, progress=bar.update)


def columns_of(pairs: Iterable[str]) -> dict[str, str]:
    """The columns by field, from FIELD=COLUMN."""
    columns = {}
    for pair in pairs:
        name, _, column = pair.partition("=")
        if not column:
            raise typer.BadParameter(f"{pair} is not FIELD=COLUMN", param_hint="--column")
        columns[name] = column
    return columns


def names_of(text: str) -> list[str] | None:
    """The names in a list with commas, None if it is empty."""
    return [name.strip() for name in text.split(",")] if text else None


def share_of(text: str) -> float:
    """The share in a text such as 0.1% or 0.001."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise typer.BadParameter(
            f"{text} is not a share from 0 to under 1, or 0% to under 100%", param_hint="--max-bad"
        )
    return share
