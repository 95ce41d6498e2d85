"""Input files of the commands: which files a name stands for, the layout of their rows, and their rows and records."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from tqdm import tqdm

from finepref.formats import dataset_info, layouts
from finepref.formats.apo_samples import check_apo_samples, read_apo_samples
from finepref.formats.check import BadData, Checked, FileCheck, FileReport, Problem, SeenIds, digest, parse_rows
from finepref.formats.jsonl import RawRow, read_chunks, write_jsonl
from finepref.formats.layouts import UNKNOWN, ParseRow
from finepref.formats.pool import WorkerDied, ordered_map
from finepref.formats.ragtruth import SOURCES, read_ragtruth
from finepref.formats.sepo_csv import Tokens, read_sepo_csv
from finepref.formats.tables import typed
from finepref.synth.data_sources import files
from finepref.synth.data_sources.hub import HubSet

LAYOUTS = layouts.names()

Column = Annotated[list[str], typer.Option(help="FIELD=COLUMN, if a file has another name for one of our fields.")]
MaxBad = Annotated[str, typer.Option(help="Accept up to this share of bad rows, such as 0.1% or 0.001.")]


class Input(NamedTuple):
    """One file and how its rows are read, by the dataset entry or the command line.

    Attributes:
        path: the file.
        layout: of its rows.
        columns: our field, or the layout's column -> the column in the file.
        error_type: of undesirable feedback rows without one.
        tags: LLaMA-Factory's `tags` of the entry.
        dataset: what the file is a part of; ids are unique in it. "": of nothing.
        hub: the data set on a hub that stands for the file, `path` being its name there.
    """

    path: Path
    layout: str
    columns: Mapping[str, str]
    error_type: str | None
    tags: Mapping[str, str] | None = None
    dataset: str = ""
    hub: HubSet | None = None


def find_inputs(
    name: str,
    layout: str,
    dataset_dir: Path,
    columns: Mapping[str, str],
    error_type: str | None,
    *,
    jobs: int = 1,
) -> list[Input]:
    """The files that a name stands for: a file, a folder, a dataset_info.json or a data set in one.

    Args:
        name: as on the command line.
        layout: of the rows; "" to recognise it, by all rows.
        dataset_dir: folder of dataset_info.json; data sets that it lacks are looked up in finepref's own.
        columns, error_type: of files that have no dataset entry.
        jobs: processes for recognising the layout.

    Raises:
        BadData: dataset_info.json or the entry is invalid, the name is unknown, a folder has files of several kinds,
            or rows are of several layouts.
    """
    path = Path(name)
    if path.name == dataset_info.FILE_NAME:
        dataset_dir = path.parent
        entries = dataset_info.load(dataset_dir)
        return [
            file
            for each, entry in entries.items()
            if layouts.of_entry(entry) and "file_name" in entry
            for file in _inputs_of_entry(dataset_dir, each, entry)
        ]
    if path.exists() or path.suffix:
        paths = files.shards(path) if path.is_dir() else [path]
        layout = layout or _guess(paths, columns, jobs)
        return [Input(file, layout, columns, error_type, dataset=name) for file in paths]
    folder, entry = dataset_info.find(name, dataset_dir)
    return [*_inputs_of_entry(folder, name, entry)]


def _inputs_of_entry(dataset_dir: Path, name: str, entry: Mapping[str, Any]) -> Iterator[Input]:
    layout = layouts.of_entry(entry)
    if layout is None:
        file, formatting = str(dataset_dir / dataset_info.FILE_NAME), entry.get("formatting", "alpaca")
        text = f"{formatting} is a format of the host; of these, sets with ranking: true or a kto_tag column are read"
        raise BadData([Problem(file, 0, "formatting", "FP016", text)])
    options = (layout, entry.get("columns") or {}, entry.get("error_type"), entry.get("tags"), name)
    if "file_name" not in entry and (hub := HubSet.of_entry(entry)) is not None:
        yield Input(Path(hub.name), *options, hub)
        return
    for path in dataset_info.resolve(dataset_dir, entry):
        yield Input(path, *options)


def _guess(paths: Sequence[Path], columns: Mapping[str, str], jobs: int) -> str:
    """The layout of files, by all of their rows."""
    votes = layouts.Votes()
    votes_of_chunk = partial(layouts.votes_of_chunk, columns=columns)
    for path in paths:
        if not files.is_plain(path):
            rows = files.rows_of(path)
            if files.reading(path)["cells"]:
                rows = (row._replace(value=row.value and typed(row.value)) for row in rows)
            votes.add(str(path), rows, columns)
            continue
        with tqdm(desc=f"layout of {path.name}", unit=" parts", disable=None) as bar:
            for _, found in ordered_map(votes_of_chunk, read_chunks(path), jobs=jobs):
                votes.merge(found)
                bar.update()
    return votes.settle()


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
    return [check.report() for check, _ in checks]


def _rejected(check: FileCheck, file: Input, jobs: int, **options: Any) -> Iterator[dict[str, object]]:
    """The bad rows of one file; `check` counts all rows."""
    if not _by_row(file.layout) or file.hub or not files.is_plain(file.path) or _wrong_columns(file):
        yield from check.rejected_rows(read_file(file, **options))
        check.sha256 = digest(file.path)
        return
    parse_row = _parse_row(file, options.get("error_types"))
    with tqdm(desc=file.path.name, unit=" rows", disable=None) as bar:
        yield from check.rejected_in_file(file.path, parse_row, jobs=jobs, progress=bar.update)


def file_check(file: Input, limit: int = 100, seen: SeenIds | None = None, *, repeats: bool = False) -> FileCheck:
    """An empty check of a file; `seen` are the ids of the other files of its data set."""
    return FileCheck(str(file.path), file.layout, columns=file.columns, limit=limit, seen=seen, repeats=repeats)


def _by_row(layout: str) -> bool:
    """Whether rows of a layout are read one by one."""
    return layout == UNKNOWN or layouts.find(layout).by_row


def read_file(
    file: Input,
    *,
    error_types: Collection[str] | None = None,
    golden: Path | None = None,
    tokenize: Callable[[str], Tokens] | None = None,
    eos: str = "</s>",
    alone: bool = False,
) -> Iterable[Checked]:
    """The rows of one file, with their records.

    Args:
        file: of any layout.
        error_types: the allowed ones, None for any.
        golden: file of golden answers, for apo_samples.
        tokenize, eos: the tokenizer of the scoring and its end token, for sepo_csv.
        alone: check the samples of apo_samples without their golden answers; they then give no records.
    """
    if file.layout == "apo_samples":
        if golden is None and alone:
            return check_apo_samples(file.path)
        if golden is None:
            raise typer.BadParameter("apo_samples needs the file of golden answers", param_hint="--golden")
        return read_apo_samples(file.path, golden)
    if file.layout == "ragtruth":
        return read_ragtruth(file.path, file.path.with_name(SOURCES))
    if file.layout == "sepo_csv":
        if tokenize is None:
            raise typer.BadParameter("sepo_csv needs the tokenizer of the scoring", param_hint="--tokenizer")
        return read_sepo_csv(file.path, tokenize, eos=eos)
    if wrong := _wrong_columns(file):
        return [Checked(RawRow(0, b"", None, wrong), (), wrong)]
    parse_row = _parse_row(file, error_types)
    rows = files.rows_of(file.path) if file.hub is None else file.hub.rows()
    return parse_rows(tqdm(rows, desc=file.path.name, unit=" rows", disable=None), parse_row)


def _parse_row(file: Input, error_types: Collection[str] | None) -> ParseRow:
    """The function that parses one row of a file."""
    return layouts.reader(
        file.layout,
        columns=file.columns,
        error_type=file.error_type,
        error_types=error_types,
        file=str(file.path),
        tags=file.tags,
        **({"nulls_absent": True} if file.hub else files.reading(file.path)),
    )


def _wrong_columns(file: Input) -> list[Problem]:
    if file.layout == UNKNOWN:
        return []
    if _by_row(file.layout):
        return layouts.check_columns(file.layout, file.columns, file=str(file.path))
    return [Problem(str(file.path), 0, "columns", "FP017", f"{file.layout} has fixed columns")] if file.columns else []


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
