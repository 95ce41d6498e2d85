"""Input files of the commands: which files a name stands for, the layout of their rows, and their rows and records."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from tqdm import tqdm

from finepref.formats import catalogue, dataset_info
from finepref.formats.apo_samples import read_apo_samples
from finepref.formats.check import (
    BadData,
    Checked,
    FileCheck,
    FileReport,
    ParseRow,
    Problem,
    check_columns,
    digest,
    parse_rows,
)
from finepref.formats.jsonl import RawRow, read_rows, write_jsonl
from finepref.formats.pool import WorkerDied
from finepref.formats.records import FORMATS, SIGNATURES, parse
from finepref.formats.released import READERS
from finepref.formats.sepo_csv import Tokens, read_sepo_csv

LAYOUTS = (*FORMATS, *catalogue.RELEASED_SHOWN)

Column = Annotated[list[str], typer.Option(help="FIELD=COLUMN, if a file has another name for one of our fields.")]
MaxBad = Annotated[str, typer.Option(help="Accept up to this share of bad rows, such as 0.1% or 0.001.")]


class Input(NamedTuple):
    """One file, the layout of its rows, and their columns and error type by the dataset entry or the command line."""

    path: Path
    layout: str
    columns: Mapping[str, str]
    error_type: str | None


def native_format(layout: str) -> str:
    """The format of the records that rows of a layout become."""
    return layout if layout in FORMATS else catalogue.RELEASED_SHOWN[layout][0]


def find_inputs(
    name: str, layout: str, dataset_dir: Path, columns: Mapping[str, str], error_type: str | None
) -> list[Input]:
    """The files that a name stands for: a file, a folder, a dataset_info.json or a data set in one.

    Args:
        name: as on the command line.
        layout: of the rows; "" to recognise it by the first row.
        dataset_dir: folder of dataset_info.json; data sets that it lacks are looked up in finepref's own.
        columns, error_type: of files that have no dataset entry.

    Raises:
        BadData: dataset_info.json or the entry is invalid, or the name is unknown.
    """
    path = Path(name)
    if path.name == dataset_info.FILE_NAME:
        dataset_dir = path.parent
        entries = dataset_info.load(dataset_dir)
        ours = [entry for entry in entries.values() if entry.get("formatting") in FORMATS and "file_name" in entry]
        return [file for entry in ours for file in _inputs_of_entry(dataset_dir, entry)]
    if path.exists() or path.suffix:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return [Input(file, layout or _guess_layout(file), columns, error_type) for file in files]
    return [*_inputs_of_entry(*dataset_info.find(name, dataset_dir))]


def _inputs_of_entry(dataset_dir: Path, entry: Mapping[str, object]) -> Iterator[Input]:
    formatting = str(entry.get("formatting", "alpaca"))
    if formatting not in FORMATS:
        file, text = str(dataset_dir / dataset_info.FILE_NAME), f"{formatting} is a format of the host"
        raise BadData([Problem(file, 0, "formatting", "FP016", f"{text}; ours are {', '.join(FORMATS)}")])
    columns, error_type = entry.get("columns"), entry.get("error_type")
    assert isinstance(columns, dict | None)
    for path in dataset_info.resolve(dataset_dir, entry):
        yield Input(path, formatting, columns or {}, str(error_type) if error_type else None)


def _guess_layout(path: Path) -> str:
    first = next((row.value for row in rows_of(path) if row.value is not None), {})
    for name, fields in SIGNATURES.items():
        if fields <= first.keys():
            return name
    raise typer.BadParameter(f"{path}: the format is not clear from the first row; name it", param_hint="--format")


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
    checks = [(file_check(file, limit), file) for file in inputs]
    bad = chain.from_iterable(_rejected(check, file, jobs, **options) for check, file in checks)
    try:
        if rejected is None:
            deque(bad, maxlen=0)
        else:
            write_jsonl(rejected, bad)
    except WorkerDied as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    return [check.report() for check, _ in checks]


def _rejected(check: FileCheck, file: Input, jobs: int, **options: Any) -> Iterator[dict[str, object]]:
    """The bad rows of one file; `check` counts all rows."""
    if file.layout in ("apo_samples", "sepo_csv") or file.path.suffix == ".parquet" or _wrong_columns(file):
        yield from check.rejected_rows(read_file(file, **options))
        check.sha256 = digest(file.path)
        return
    parse_row = _parse_row(file, options.get("error_types"))
    with tqdm(desc=file.path.name, unit=" rows", disable=None) as bar:
        yield from check.rejected_in_file(file.path, parse_row, jobs=jobs, progress=bar.update)


def file_check(file: Input, limit: int = 100) -> FileCheck:
    """An empty check of a file."""
    columns = file.columns if file.layout in FORMATS else None
    return FileCheck(str(file.path), native_format(file.layout), columns=columns, limit=limit)


def read_file(
    file: Input,
    *,
    error_types: Collection[str] | None = None,
    golden: Path | None = None,
    tokenize: Callable[[str], Tokens] | None = None,
    eos: str = "</s>",
) -> Iterable[Checked]:
    """The rows of one file, with their records.

    Args:
        file: of any layout.
        error_types: the allowed ones, None for any.
        golden: file of golden answers, for apo_samples.
        tokenize, eos: the tokenizer of the scoring and its end token, for sepo_csv.
    """
    if file.layout == "apo_samples":
        if golden is None:
            raise typer.BadParameter("apo_samples needs the file of golden answers", param_hint="--golden")
        return read_apo_samples(file.path, golden)
    if file.layout == "sepo_csv":
        if tokenize is None:
            raise typer.BadParameter("sepo_csv needs the tokenizer of the scoring", param_hint="--tokenizer")
        return read_sepo_csv(file.path, tokenize, eos=eos)
    if wrong := _wrong_columns(file):
        return [Checked(RawRow(0, b"", None, wrong), (), wrong)]
    parse_row = _parse_row(file, error_types)
    return parse_rows(tqdm(rows_of(file.path), desc=file.path.name, unit=" rows", disable=None), parse_row)


def _parse_row(file: Input, error_types: Collection[str] | None) -> ParseRow:
    """The function that parses one row of a file."""
    name = str(file.path)
    if file.layout in FORMATS:
        return partial(
            parse,
            formatting=file.layout,
            columns=file.columns,
            file=name,
            nulls_absent=file.path.suffix == ".parquet",
            error_type=file.error_type,
            error_types=error_types,
        )
    if native_format(file.layout) == "feedback":
        return partial(READERS[file.layout][1], file=name, error_type=file.error_type)
    return partial(READERS[file.layout][1], file=name)


def _wrong_columns(file: Input) -> list[Problem]:
    if file.layout in FORMATS:
        return check_columns(file.layout, file.columns, file=str(file.path))
    return [Problem(str(file.path), 0, "columns", "FP017", f"{file.layout} has fixed columns")] if file.columns else []


def rows_of(path: Path) -> Iterator[RawRow]:
    """The rows of a JSON Lines, JSON or parquet file."""
    if path.suffix != ".parquet" or not path.is_file():
        yield from read_rows(path)
        return
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise typer.BadParameter(f"{path}: reading parquet needs `pip install pyarrow`") from None
    try:
        line = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                line += 1
                yield RawRow(line, json.dumps(row, default=str).encode(), row, [])
    except ArrowException as error:
        yield RawRow(0, b"", None, [Problem(str(path), 0, "", "FP001", str(error))])


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
