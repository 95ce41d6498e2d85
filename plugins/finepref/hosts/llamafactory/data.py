"""Reads our data formats on LLaMA-Factory: all rows are checked and counted before anything is tokenised.

Each row becomes the canonical JSON of its record (see `row_cache`). So Arrow sees the same columns for every format,
and data sets of different formats can be merged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import datasets

from finepref import stages
from finepref.formats import dataset_info, layouts
from finepref.formats.check import BadData, Problem
from finepref.hosts import receipt, row_cache, rows
from finepref.hosts.llamafactory.adapter import Adapter
from finepref.hosts.llamafactory.verdicts import (
    columns_of,
    drop_in_stream,
    keep_checked,
    keep_good,
    rows_of,
    total,
    verdict,
)
from finepref.hosts.reading import Sourced
from finepref.hosts.run import Run, Source, current
from finepref.methods import ranked_rows
from finepref.methods.checks import record_problems
from finepref.methods.options import Options
from finepref.synth.data_sources.hub import unreadable

NAMES = tuple(row_cache.COLUMNS.names)


def adapter_of(stage: stages.Stage) -> Adapter:
    """Make the stage's adapter."""
    return resolve_name(stage.of_shape.llamafactory_adapter)(stage)


HOST_FORMATS = ("alpaca", "sharegpt", "openai")  # values of `formatting` that the host reads itself


def is_ours(entry: Mapping[str, Any]) -> bool:
    """Whether only our stages read an entry of dataset_info.json."""
    return entry.get("formatting", "alpaca") not in HOST_FORMATS and layouts.of_entry(entry) is not None


def fits(entry: Mapping[str, Any], row: stages.Stage) -> bool:
    """Whether a stage trains on an entry of dataset_info.json, ours or the host's."""
    layout = layouts.of_entry(entry)
    return layout is not None and layouts.native_format(layout) in row.formats


def dataset_list(original: Callable) -> Callable:
    """`get_dataset_list` that also finds shipped data sets and keeps our keys of each entry (card `dataset-list`).

    In a run of our stages, the file of a data set is the one that `row_cache` has made of it.
    """

    @functools.wraps(original)
    def get_dataset_list(dataset_names, dataset_dir):
        entries = entries_of(dataset_dir)
        shipped = dataset_info.table(dataset_info.shipped_dir())
        borrowed = [name for name in dataset_names or [] if name not in entries and name in shipped]
        if dataset_dir == "ONLINE" or not borrowed:
            attributes = original(dataset_names, dataset_dir)
        else:
            for name in borrowed:
                entries[name] = dict(shipped[name])
                if "file_name" in shipped[name]:
                    entries[name]["file_name"] = str(dataset_info.shipped_dir() / shipped[name]["file_name"])
            attributes = original(dataset_names, entries)
        run = _current_run()
        for name, attribute in zip(dataset_names or [], attributes, strict=True):
            entry = entries.get(name, {})
            attribute.finepref_name, attribute.finepref_entry = name, entry
            if run is not None or is_ours(entry):
                attribute.ranking = False  # the host's preference stages ask for it; ours pass as "sft"
            if run is not None and name in run.prepared:
                attribute.dataset_name = str(run.prepared[name])
        return attributes

    return get_dataset_list


def _current_run() -> Run | None:
    """The run of our stages in this process, if there is one."""
    try:
        return current()
    except LookupError:
        return None


def entries_of(dataset_dir: Any) -> dict[str, Any]:
    """The entries of a dataset_dir; {} if the host has to download them, or will report that they are missing."""
    return dict(dataset_dir) if isinstance(dataset_dir, dict) else dict(dataset_info.table(dataset_dir))


def load_single_dataset(original: Callable) -> Callable:
    """`_load_single_dataset` that names the data set of a hub which cannot be had (card `load-single-dataset`).

    Raises:
        BadData: FP110, the package of the hub is not installed; FP111, the data set cannot be downloaded.
    """

    @functools.wraps(original)
    def _load_single_dataset(dataset_attr, model_args, data_args, training_args):
        try:
            return original(dataset_attr, model_args, data_args, training_args)
        except (ImportError, OSError, RuntimeError) as error:
            if _current_run() is None or not dataset_attr.load_from.endswith("_hub"):
                raise
            raise BadData([unreadable(dataset_attr.dataset_name, error)]) from None

    return _load_single_dataset


def align_dataset(original: Callable) -> Callable:
    """`align_dataset` that passes on rows of the cache and parses what the host fetched (card `align-dataset`)."""

    @functools.wraps(original)
    def align_dataset(dataset, dataset_attr, data_args, training_args):
        run = _current_run()
        if run is None:
            return original(dataset, dataset_attr, data_args, training_args)
        if dataset_attr.load_from == "file":
            return dataset
        return _parsed(run, dataset, ParseFetched(_source(dataset_attr, ())), data_args)

    return align_dataset


@dataclass(frozen=True)
class ParseFetched:
    """Raw rows that the host has fetched -> rows as in the row cache, for `datasets.map`."""

    source: Source
    schema: str = row_cache.SCHEMA

    def __call__(self, examples: Mapping[str, Sequence[Any]], indices: Sequence[int]) -> dict[str, list[Any]]:
        name = self.source.name
        parse = self.source.reader(name, nulls_absent=True)
        made = []
        for line, value in enumerate(rows_of(examples), start=indices[0] + 1):
            found = parse(value, line=line)
            place, count = f"{name}:{line}", 1
            if isinstance(found, list):
                empty = dict.fromkeys(NAMES, "") | {"_place": place, "_rows": 1}
                made.append(empty | verdict("", place, 1, problems=found))
                continue
            for record in found if isinstance(found, tuple) else (found,):  # the first one counts as the row
                row = row_cache.cached_row(Sourced(name, line, record, count))
                made.append(row | verdict(record.id, place, count))
                count = 0
        return columns_of(made)


def _parsed(run: Run, dataset: Any, parse: ParseFetched, data_args: Any) -> Any:
    """The rows of a data set that the host fetched itself, as in the row cache; bad rows are settled."""
    names = list(next(iter(dataset)))
    if data_args.streaming:
        mapped = dataset.map(parse, with_indices=True, batched=True, remove_columns=names)
        return drop_in_stream(mapped, run.options)
    run.bad_rows.read += len(dataset)
    for entry in run.datasets:
        if entry.name == parse.source.name:
            entry.read = len(dataset)
    mapped = dataset.map(
        parse, with_indices=True, batched=True, remove_columns=names, num_proc=data_args.preprocessing_num_workers
    )
    return keep_good(run, mapped)


def merged_dataset(original: Callable) -> Callable:
    """`_get_merged_dataset` that reads and checks the files first (card `merged-dataset`)."""

    @functools.wraps(original)
    def _get_merged_dataset(dataset_names, model_args, data_args, training_args, stage, return_dict=False):
        if dataset_names is None:
            return None
        row = stages.find(stage)
        names = list(dict.fromkeys(dataset_names))
        for name in names if row else ():
            current().prepared.pop(name, None)  # the evaluation may use the set too
        attributes = check_formats(names, data_args.dataset_dir, stage)
        if row is None:
            return original(dataset_names, model_args, data_args, training_args, stage, return_dict)

        run = current()
        _refuse_numbers(names, attributes, data_args, training_args)
        read = _read(run, names, attributes, model_args, data_args)
        # the host expects `ranking` in its preference stages, which is for its own formats; ours pass as "sft"
        found = original(names, model_args, data_args, training_args, "sft", return_dict)
        splits = found if return_dict else {"": found}
        arranged = {}
        for name, split in splits.items():
            here = [each for each in read if return_dict is False or each[0].name == name]
            left_out = 0 if data_args.streaming else _count_left_out(run, here, split, data_args)
            arranged[name] = _arrange(row, split, data_args, truncated=left_out > 0)
        return arranged if return_dict else arranged[""]

    return _get_merged_dataset


def check_formats(names: list[str], dataset_dir: Any, stage: str) -> list[Any]:
    """The host's DatasetAttr of each data set.

    Raises:
        BadData: FP201, the stage does not read the format of a data set.
        ValueError: a data set is not in dataset_info.json.
    """
    from llamafactory.data.parser import get_dataset_list

    attributes = get_dataset_list(names, dataset_dir)
    for name, attribute in zip(names, attributes, strict=True):
        _refuse_foreign_format(name, attribute.finepref_entry, stages.find(stage), stage)
    return attributes


def _refuse_foreign_format(name: str, entry: Mapping[str, Any], row: stages.Stage | None, stage: str) -> None:
    formatting = entry.get("formatting", "alpaca")
    if row is not None and not fits(entry, row):
        problem = f"stage {row.name} trains on {' or '.join(row.formats)}, this dataset is {formatting}"
        if formatting in HOST_FORMATS:
            problem += "; of the host's own sets, those with `ranking: true` or a `kto_tag` column are read"
    elif row is None and is_ours(entry):
        able = " or ".join(other.name for other in stages.all_stages().values() if fits(entry, other))
        stage = "rm or dpo" if stage == "rm" else stage  # the host reads data in the same way for both
        problem = f"the host's stage {stage} cannot read {formatting}; stage {able} can"
    else:
        return
    raise BadData([Problem("dataset_info.json", 0, f"{name}.formatting", "FP201", problem)])


def _refuse_numbers(names: list[str], attributes: list[Any], data_args: Any, training_args: Any) -> None:
    """Raise ValueError for numbers with which the host would end in a traceback."""
    if data_args.max_samples is not None and data_args.max_samples < 1:
        raise ValueError(f"`max_samples: {data_args.max_samples}` leaves no row; leave it out to take all")
    for name, attribute in zip(names, attributes, strict=True):
        if attribute.num_samples is not None and attribute.num_samples < 1:
            raise ValueError(f"`num_samples: {attribute.num_samples}` of dataset {name} leaves no row; leave it out")
    local = any(attribute.load_from == "file" for attribute in attributes)
    if data_args.streaming and local and training_args.dataloader_num_workers < 1:
        raise ValueError(
            "`streaming` reads a file in as many parts as `dataloader_num_workers`, so set it to 1 or more"
        )


Read = tuple[receipt.DatasetEntry, Any]  # and the host's DatasetAttr


def _read(run: Run, names: list[str], attributes: list[Any], model_args: Any, data_args: Any) -> list[Read]:
    """Read every local file once, or find it in the row cache, before anything is tokenised.

    Raises:
        BadData: bad rows that `finepref_bad_rows` and `finepref_max_bad` do not allow; or a file is missing or in a
            forbidden place, see `dataset_info.resolve`.
    """
    run.cache = Path(model_args.cache_dir or datasets.config.HF_DATASETS_CACHE, "finepref").resolve()
    read: list[Read] = []
    for name, attribute in zip(names, attributes, strict=True):
        entry = receipt.DatasetEntry(name, _source(attribute, ()).formatting, {}, None)
        if attribute.load_from == "file":
            source = source_of(name, attribute, data_args.dataset_dir)
            run.sources.append(source)
            run.prepared[name], entry = row_cache.prepared(source, run.bad_rows, run.cache)
        read.append((entry, attribute))
    run.bad_rows.settle()
    run.datasets.extend(entry for entry, _ in read)
    return read


def source_of(name: str, attribute: Any, dataset_dir: str) -> Source:
    """A local data set. Its files are looked up as by `finepref validate`.

    Raises:
        BadData: a file is missing (with the command that makes it, if the entry has one).
    """
    entry = {"file_name": attribute.dataset_name}
    if "make" in attribute.finepref_entry:
        entry["make"] = attribute.finepref_entry["make"]
    try:
        files = dataset_info.resolve(dataset_dir, entry)
    except BadData as error:
        raise BadData([replace(problem, field=f"{name}.{problem.field}") for problem in error.problems]) from None
    return _source(attribute, tuple(files))


def _source(attribute: Any, files: tuple[Path, ...]) -> Source:
    """A data set by the host's DatasetAttr, with the layout and the columns of its entry."""
    entry = attribute.finepref_entry
    layout = layouts.of_entry(entry) or layouts.UNKNOWN
    return Source(
        attribute.finepref_name, layout, files, entry.get("columns"), entry.get("error_type"), entry.get("tags")
    )


def _count_left_out(run: Run, read: list[Read], merged: Any, data_args: Any) -> int:
    """Count the rows that `num_samples`, `max_samples` and `mix_strategy` leave out or repeat. Returns the former."""
    good = [(entry.read or 0) - sum(entry.rejected.values()) for entry, _ in read]
    wanted = [attribute.num_samples for _, attribute in read]
    here = total(merged, "_rows")
    once = here
    if any(wanted) or data_args.mix_strategy != "concat":
        once = sum(dict(zip(merged["_place"], merged["_rows"], strict=True)).values())
        run.rows.repeated += here - once
    left = left_out = sum(good) - once
    beyond = {rows.NEVER_DRAWN: sum(max(0, have - (want or have)) for have, want in zip(good, wanted, strict=True))}
    if data_args.max_samples is not None:
        for (entry, _), have, want in zip(read, good, wanted, strict=True):
            entry.skipped = max(0, min(have, want or have) - data_args.max_samples)
        beyond[rows.MAX_SAMPLES] = sum(entry.skipped for entry, _ in read)
    for reason, count in beyond.items():
        run.rows.skipped[reason] += min(left, count)
        left -= min(left, count)
    run.rows.skipped[rows.MIXED_OUT] += left
    run.rows.skipped = +run.rows.skipped  # without zeros
    return left_out


@dataclass(frozen=True)
class RecordCheck:
    """Rows of the cache -> the verdict on each record before it is tokenised, for `datasets.map`."""

    stage: str
    options: Options

    def __call__(self, examples: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        found = []
        for row in rows_of(examples):
            problems = self._problems(row)
            found.append(verdict(row["_record_id"], row["_place"], row["_rows"], problems=problems))
        return columns_of(found)

    def _problems(self, row: Mapping[str, Any]) -> list[Problem]:
        stage = stages.find(self.stage)
        listed = stage.shape in ranked_rows.SHAPES
        if stage.check_record is None and not listed and '"weight"' not in row["_record"]:
            return []  # `record_problems` would find none
        return record_problems(row_cache.record_of(row), stage, self.options)


def _arrange(row: stages.Stage, dataset: Any, data_args: Any, *, truncated: bool) -> Any:
    run = current()
    dataset = adapter_of(row).arrange(dataset, truncated=truncated, streaming=data_args.streaming)
    check = RecordCheck(row.name, run.options)
    if data_args.streaming:
        return drop_in_stream(dataset.map(check, batched=True), run.options)
    return keep_checked(run, dataset, check, data_args, desc="Checking records")
