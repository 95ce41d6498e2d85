"""`finepref validate`, `convert` and `formats`: data files without a host."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
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
from finepref.formats.convert import TARGETS, Converter
from finepref.formats.jsonl import RawRow, read_rows, write_jsonl
from finepref.formats.pool import WorkerDied
from finepref.formats.records import FORMATS, SIGNATURES, parse, to_row
from finepref.formats.released import READERS
from finepref.formats.sepo_csv import Tokens, read_sepo_csv

LAYOUTS = (*FORMATS, *catalogue.RELEASED_SHOWN)
CORES = len(os.sched_getaffinity(0))

Column = Annotated[list[str], typer.Option(help="FIELD=COLUMN, where a file calls our field something else.")]
MaxBad = Annotated[str, typer.Option(help="Go on with up to this share of bad rows, as 0.1% or 0.001.")]


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(validate)
    app.command()(convert)
    app.command(name="formats")(show_formats)


def validate(
    sources: Annotated[list[str], typer.Argument(help="Data files, folders of them, or names in dataset_info.json.")],
    layout: Annotated[str, typer.Option("--format", help="Format of files; else told from their first row.")] = "",
    dataset_dir: Annotated[Path, typer.Option(help="Where dataset_info.json is.")] = Path("dataset_info"),
    column: Column = [],  # noqa: B006 (typer copies defaults)
    error_type: Annotated[str, typer.Option(help="Type of undesirable feedback rows that name none.")] = "",
    error_types: Annotated[str, typer.Option(help="The only error types allowed, with commas between.")] = "",
    max_bad: MaxBad = "0",
    rejected: Annotated[Path, typer.Option(help="Where bad rows go, with --max-bad.")] = Path("rejected.jsonl"),
    limit: Annotated[int, typer.Option(help="Show so many problems of a file; the others are counted.")] = 100,
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes that share a large file.", show_default="all cores")
    ] = CORES,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Check data files: every problem of every row, with its code, line and field. Exit code 1 if there are any."""
    if layout and layout not in LAYOUTS:
        raise typer.BadParameter(f"{layout} is not one of {', '.join(LAYOUTS)}", param_hint="--format")
    share, allowed = _share(max_bad), _names(error_types)
    inputs: list[Input] = []
    problems: list[Problem] = []
    for name in sources:
        try:
            inputs += _find(name, layout, dataset_dir, _columns(column), error_type or None)
        except BadData as error:
            problems += error.problems
    reports = _check(inputs, limit, rejected if share else None, jobs=jobs, error_types=allowed)
    passed = not problems and all(report.passes(share) for report in reports)
    if as_json:
        found = {"passed": passed, "problems": [*map(asdict, problems)], "files": [*map(asdict, reports)]}
        typer.echo(json.dumps(found))
    else:
        _print(reports, problems)
    raise typer.Exit(0 if passed else 1)


def convert(
    inputs: Annotated[list[str], typer.Argument(help="Files; TYPE=FILE gives the error type of a feedback file.")],
    output: Annotated[Path, typer.Argument(help="The file to write, JSON Lines.")],
    origin: Annotated[str, typer.Option("--from", help=f"One of {', '.join(LAYOUTS)}.")],
    target: Annotated[str, typer.Option("--to", help=f"One of {', '.join(FORMATS)}.")],
    column: Column = [],  # noqa: B006 (typer copies defaults)
    error_type: Annotated[str, typer.Option(help="Type of undesirable responses that have none.")] = "",
    types: Annotated[str, typer.Option(help="Of negatives, only these error types, with commas between.")] = "",
    diff: Annotated[bool, typer.Option("--diff", help="Where there are no spans, mark what differs.")] = False,
    golden: Annotated[Path | None, typer.Option(help="apo_samples: the file of golden answers.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="sepo_csv: tokenizer.json of the scoring, or its folder.")
    ] = None,
    eos: Annotated[str, typer.Option(help="sepo_csv: the text of the tokenizer's EOS.")] = "</s>",
    max_bad: MaxBad = "0",
) -> None:
    """Write records of one format as another. With bad rows nothing is written, unless --max-bad allows for them."""
    if origin not in LAYOUTS:
        raise typer.BadParameter(f"{origin} is not one of {', '.join(LAYOUTS)}", param_hint="--from")
    if target not in TARGETS[native_format(origin)]:
        raise typer.BadParameter(f"{origin} becomes {' or '.join(TARGETS[native_format(origin)])}", param_hint="--to")
    share = _share(max_bad)
    files = [_typed_input(text, origin, _columns(column), error_type or None) for text in inputs]
    if output.resolve() in {file.path.resolve() for file in files}:
        raise typer.BadParameter(f"{output} is an input too", param_hint="OUTPUT")
    options = {"golden": golden, "tokenize": _tokenizer(tokenizer) if tokenizer else None, "eos": eos}
    rejected = output.with_name(f"{output.name}.rejected.jsonl") if share else None
    reports = _check(files, 100, rejected, **options)
    if not all(report.passes(share) for report in reports):
        _print(reports, [])
        raise typer.Exit(1)
    converter = Converter(target, types=_names(types), error_type=error_type or None, diff=diff)
    placed = (
        (str(file.path), row.raw.line, record)
        for file in files
        for row in _file_check(file).walk(_read(file, **options))
        for record in row.records
    )
    try:
        count = write_jsonl(output, map(to_row, converter.run(placed)))
    except BadData as error:
        _print(reports, [*error.problems], total=error.total)
        raise typer.Exit(1) from None
    _print(reports, [])
    left = "".join(f"; left out: {name} of {n} records" for name, n in sorted(converter.left_out.items()))
    typer.echo(f"{count} rows of {target} in {output}{left}")


def show_formats(
    write: Annotated[bool, typer.Option("--write", help="Write the file.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 unless the file is current.")] = False,
    path: Annotated[Path, typer.Option(help="The file.")] = Path("dataset_info/README.md"),
) -> None:
    """Print the description of all formats, or write it to dataset_info/README.md, or check that file."""
    text = catalogue.markdown()
    if write:
        path.write_text(text, encoding="utf-8")
    elif not check:
        typer.echo(text, nl=False)
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        typer.echo(f"{path} is not current: run `finepref formats --write`", err=True)
        raise typer.Exit(1)


class Input(NamedTuple):
    """One file, the layout of its rows, and what its dataset entry or the command line says of them."""

    path: Path
    layout: str
    columns: Mapping[str, str]
    error_type: str | None


def native_format(layout: str) -> str:
    """The format that rows of a layout are read as."""
    return layout if layout in FORMATS else catalogue.RELEASED_SHOWN[layout][0]


def _find(
    name: str, layout: str, dataset_dir: Path, columns: Mapping[str, str], error_type: str | None
) -> list[Input]:
    """The files that a file, a folder or a dataset name stands for.

    Raises:
        BadData: dataset_info.json, or the entry, is not as it should be.
    """
    path = Path(name)
    if path.name == dataset_info.FILE_NAME:
        dataset_dir = path.parent
        entries = dataset_info.load(dataset_dir)
        ours = [entry for entry in entries.values() if entry.get("formatting") in FORMATS and "file_name" in entry]
        return [file for entry in ours for file in _of_entry(dataset_dir, entry)]
    if path.exists() or path.suffix:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return [Input(file, layout or _guess(file), columns, error_type) for file in files]
    entries = dataset_info.load(dataset_dir)
    if name not in entries:
        file = str(dataset_dir / dataset_info.FILE_NAME)
        raise BadData([Problem(file, 0, name, "FP071", f"neither a file nor one of {', '.join(sorted(entries))}")])
    return [*_of_entry(dataset_dir, entries[name])]


def _of_entry(dataset_dir: Path, entry: Mapping[str, object]) -> Iterator[Input]:
    formatting = str(entry.get("formatting", "alpaca"))
    if formatting not in FORMATS:
        file = str(dataset_dir / dataset_info.FILE_NAME)
        raise BadData(
            [Problem(file, 0, "formatting", "FP016", f"{formatting} is the host's; ours are {', '.join(FORMATS)}")]
        )
    columns, error_type = entry.get("columns"), entry.get("error_type")
    assert isinstance(columns, dict | None)
    for path in dataset_info.resolve(dataset_dir, entry):
        yield Input(path, formatting, columns or {}, str(error_type) if error_type else None)


def _guess(path: Path) -> str:
    first = next((row.value for row in rows_of(path) if row.value is not None), {})
    for name, fields in SIGNATURES.items():
        if fields <= first.keys():
            return name
    raise typer.BadParameter(f"{path}: the first row does not tell the format; name it", param_hint="--format")


def _typed_input(text: str, layout: str, columns: Mapping[str, str], error_type: str | None) -> Input:
    given, _, file = text.partition("=")
    if file and native_format(layout) == "feedback" and not Path(text).exists():
        return Input(Path(file), layout, columns, given)
    return Input(Path(text), layout, columns, error_type)


def _check(
    inputs: list[Input], limit: int, rejected: Path | None, *, jobs: int = 1, **options: Any
) -> list[FileReport]:
    checks = [(_file_check(file, limit), file) for file in inputs]
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
    """The bad rows of one file, which `check` sums up."""
    if file.layout in ("apo_samples", "sepo_csv") or file.path.suffix == ".parquet" or _wrong_columns(file):
        yield from check.rejected_rows(_read(file, **options))
        check.sha256 = digest(file.path)
        return
    parse_row = _parse_row(file, options.get("error_types"))
    with tqdm(desc=file.path.name, unit=" rows", disable=None) as bar:
        yield from check.rejected_in_file(file.path, parse_row, jobs=jobs, progress=bar.update)


def _file_check(file: Input, limit: int = 100) -> FileCheck:
    columns = file.columns if file.layout in FORMATS else None
    return FileCheck(str(file.path), native_format(file.layout), columns=columns, limit=limit)


def _read(
    file: Input,
    *,
    error_types: Collection[str] | None = None,
    golden: Path | None = None,
    tokenize: Callable[[str], Tokens] | None = None,
    eos: str = "</s>",
) -> Iterable[Checked]:
    """The rows of one file of any layout, with their records."""
    if file.layout == "apo_samples":
        if golden is None:
            raise typer.BadParameter("apo_samples needs the golden answers", param_hint="--golden")
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
    """What reads one row of a file of JSON."""
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


def _tokenizer(path: Path) -> Callable[[str], Tokens]:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise typer.BadParameter("needs `pip install tokenizers`", param_hint="--tokenizer") from None
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise typer.BadParameter(f"{file} is not there", param_hint="--tokenizer")
    loaded = Tokenizer.from_file(str(file))

    def tokenize(text: str) -> Tokens:
        encoding = loaded.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    return tokenize


def _columns(pairs: Iterable[str]) -> dict[str, str]:
    columns = {}
    for pair in pairs:
        name, _, column = pair.partition("=")
        if not column:
            raise typer.BadParameter(f"{pair} is not FIELD=COLUMN", param_hint="--column")
        columns[name] = column
    return columns


def _names(text: str) -> list[str] | None:
    return [name.strip() for name in text.split(",")] if text else None


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise typer.BadParameter(
            f"{text} is not a share from 0 to under 1, or 0% to under 100%", param_hint="--max-bad"
        )
    return share


def _print(reports: Iterable[FileReport], problems: list[Problem], *, total: int = 0) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    found = Table("code", "place", "field", "what is wrong", title="Problems", title_justify="left")
    files = Table(
        "file", "format", "rows", "rejected", "problems", "columns not read", title="Files", title_justify="left"
    )
    for problem in chain(problems, *(report.problems for report in reports)):
        place = f"{problem.file}:{problem.line}" if problem.line else problem.file
        found.add_row(problem.code, *(Text(text, overflow="fold") for text in (place, problem.field, problem.message)))
    for report in reports:
        ignored = ", ".join(f"{ascii(name)[1:-1]} ({n})" for name, n in sorted(report.ignored.items()))
        counts = (f"{count:,}" for count in (report.rows, report.rejected, report.total_problems))
        files.add_row(Text(report.file, overflow="fold"), report.formatting, *counts, Text(ignored, overflow="fold"))
    if found.row_count:
        console.print(found)
    if files.row_count:
        console.print(files)
    total = max(total, len(problems)) + sum(report.total_problems for report in reports)
    shown = f", {found.row_count} shown" if found.row_count < total else ""
    console.print(f"{total:,} problems{shown}" if total != 1 else "1 problem")
