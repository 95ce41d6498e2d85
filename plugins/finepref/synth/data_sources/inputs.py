"""Inputs of the commands: which files a name stands for, the layout of their rows, and their rows and records."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from finepref.formats import dataset_info, layouts
from finepref.formats.apo_samples import check_apo_samples, read_apo_samples
from finepref.formats.check import Checked, FileCheck, SeenIds, parse_rows
from finepref.formats.jsonl import RawRow, read_chunks
from finepref.formats.layouts import UNKNOWN, ParseRow
from finepref.formats.pool import ordered_map
from finepref.formats.problems import BadData, Problem
from finepref.formats.r_tuning import read_r_tuning
from finepref.formats.ragtruth import SOURCES, read_ragtruth
from finepref.formats.sepo_csv import Tokens, read_sepo_csv
from finepref.formats.tables import typed
from finepref.synth.data_sources import files
from finepref.synth.data_sources.hub import HubSet


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

    @property
    def by_row(self) -> bool:
        """Whether its rows are read one by one."""
        return self.layout == UNKNOWN or layouts.find(self.layout).by_row

    @property
    def paths(self) -> list[Path]:
        """The files that are read for it."""
        if self.hub is not None:
            return []
        return [self.path, self.path.with_name(SOURCES)] if self.layout == "ragtruth" else [self.path]

    def raw_rows(self) -> Iterator[RawRow]:
        """Its rows, of a file or of a data set on a hub."""
        return files.rows_of(self.path) if self.hub is None else self.hub.rows()

    def reading(self) -> dict[str, bool]:
        """How its rows are read, see `files.reading`."""
        return {"nulls_absent": True, "cells": False} if self.hub else files.reading(self.path)

    def parse_row(self, error_types: Collection[str] | None = None) -> ParseRow:
        """The function that parses one of its rows.

        Args:
            error_types: the allowed ones, None for any.
        """
        return layouts.reader(
            self.layout,
            columns=self.columns,
            error_type=self.error_type,
            error_types=error_types,
            file=str(self.path),
            tags=self.tags,
            **self.reading(),
        )

    def wrong_columns(self) -> list[Problem]:
        """What is wrong with its columns."""
        if self.layout == UNKNOWN:
            return []
        if self.by_row:
            return layouts.check_columns(self.layout, self.columns, file=str(self.path))
        text = f"{self.layout} has fixed columns"
        return [Problem(str(self.path), 0, "columns", "FP017", text)] if self.columns else []


def find_inputs(
    name: str,
    layout: str,
    dataset_dir: Path,
    columns: Mapping[str, str],
    error_type: str | None,
    *,
    jobs: int = 1,
    later: bool = False,
) -> list[Input]:
    """The files that a name stands for: a file, a folder, a dataset_info.json or a data set in one.

    Args:
        name: as on the command line.
        layout: of the rows, also of a data set, in place of its entry's; "" to recognise it, by all rows.
        dataset_dir: folder of dataset_info.json; data sets that it lacks are looked up in finepref's own.
        columns, error_type: of files; for a data set they are added to those of its entry.
        jobs: processes for recognising the layout.
        later: the caller recognises the layout of files ("") itself, and reads sets for supervised training too.

    Raises:
        BadData: dataset_info.json or the entry is invalid, the name is unknown, a folder has files of several kinds,
            or rows are of several layouts.
    """
    path = Path(name)
    given = (layout, columns, error_type)
    if path.name == dataset_info.FILE_NAME:
        dataset_dir = path.parent
        entries = dataset_info.load(dataset_dir)
        return [
            file
            for each, entry in entries.items()
            if layouts.of_entry(entry) and "file_name" in entry
            for file in _inputs_of_entry(dataset_dir, each, entry, *given)
        ]
    named = any(name in dataset_info.table(folder) for folder in (dataset_dir, dataset_info.shipped_dir()))
    if path.exists() or (path.suffix and not named):
        paths = files.shards(path) if path.is_dir() else [path]
        layout = layout or ("" if later else _guess(paths, columns, jobs))
        return [Input(file, layout, columns, error_type, dataset=name) for file in paths]
    folder, entry = dataset_info.find(name, dataset_dir)
    return [*_inputs_of_entry(folder, name, entry, *given, supervised=later)]


def _inputs_of_entry(
    dataset_dir: Path,
    name: str,
    entry: Mapping[str, Any],
    layout: str,
    columns: Mapping[str, str],
    error_type: str | None,
    *,
    supervised: bool = False,
) -> Iterator[Input]:
    """The files of an entry; what the user gives goes before what the entry says.

    Args:
        dataset_dir: folder of its dataset_info.json.
        name: of the entry.
        entry: see `dataset_info.load`.
        layout, columns, error_type: as for `find_inputs`.
        supervised: whether sets for supervised training are read.
    """
    found = layout or layouts.of_entry(entry, supervised=supervised)
    if found is None:
        file, formatting = str(dataset_dir / dataset_info.FILE_NAME), entry.get("formatting", "alpaca")
        text = f"{formatting} is a format of the host; of these, sets with ranking: true or a kto_tag column are read"
        raise BadData([Problem(file, 0, "formatting", "FP016", text)])
    merged = {**(entry.get("columns") or {}), **columns}
    options = (found, merged, error_type or entry.get("error_type"), entry.get("tags"), name)
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
            votes.add(str(path), values_of(files.rows_of(path), **files.reading(path)), columns)
            continue
        with tqdm(desc=f"layout of {path.name}", unit=" parts", disable=None) as bar:
            for _, found in ordered_map(votes_of_chunk, read_chunks(path), jobs=jobs):
                votes.merge(found)
                bar.update()
    return votes.settle()


def values_of(rows: Iterable[RawRow], *, cells: bool, nulls_absent: bool) -> Iterator[RawRow]:
    """Rows with the values by which a layout is recognised."""
    if not cells:
        return iter(rows)
    return (row._replace(value=row.value and typed(row.value)) for row in rows)


def file_check(file: Input, limit: int = 100, seen: SeenIds | None = None, *, repeats: bool = False) -> FileCheck:
    """An empty check of a file; `seen` are the ids of the other files of its data set."""
    return FileCheck(str(file.path), file.layout, columns=file.columns, limit=limit, seen=seen, repeats=repeats)


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
            raise ValueError("apo_samples needs the file of golden answers: --golden")
        return read_apo_samples(file.path, golden)
    if file.layout == "ragtruth":
        return read_ragtruth(file.path, file.path.with_name(SOURCES))
    if file.layout == "r_tuning":
        return read_r_tuning(file.path)
    if file.layout == "sepo_csv":
        if tokenize is None:
            raise ValueError("sepo_csv needs the tokenizer of the scoring: --tokenizer")
        return read_sepo_csv(file.path, tokenize, eos=eos)
    if wrong := file.wrong_columns():
        return [Checked(RawRow(0, b"", None, wrong), (), wrong)]
    parse_row = file.parse_row(error_types)
    return parse_rows(tqdm(file.raw_rows(), desc=file.path.name, unit=" rows", disable=None), parse_row)
