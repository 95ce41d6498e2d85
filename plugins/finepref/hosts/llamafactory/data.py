"""Reads our data formats on LLaMA-Factory: all rows are checked and counted before anything is tokenised.

The converter passes each row to the processor as the canonical JSON of its record. So Arrow sees string columns for
every format, and data sets of different formats can be merged without null columns.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import astuple, replace
from pkgutil import resolve_name
from typing import Any

from finepref import stages
from finepref.formats import dataset_info, jsonl, records
from finepref.formats.check import BadData, Problem, check_file
from finepref.hosts import receipt
from finepref.hosts.llamafactory.adapter import Adapter
from finepref.hosts.run import Source, current, refuse
from finepref.methods.checks import record_problems


def adapter_of(stage: stages.Stage) -> Adapter:
    """Make the stage's adapter."""
    return resolve_name(stage.of_shape.llamafactory_adapter)(stage)


def own_formats() -> set[str]:
    """The `formatting` values that our stages read."""
    return {formatting for stage in stages.all_stages().values() for formatting in stage.formats}


def dataset_list(original: Callable) -> Callable:
    """`get_dataset_list` that also finds shipped data sets and keeps our keys of each entry (card `dataset-list`)."""

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
        for name, attribute in zip(dataset_names or [], attributes, strict=True):
            entry = entries.get(name, {})
            if attribute.formatting in own_formats():
                attribute.ranking = False
                attribute.finepref_columns = entry.get("columns")
                attribute.finepref_error_type = entry.get("error_type")
                attribute.finepref_make = entry.get("make")
        return attributes

    return get_dataset_list


def entries_of(dataset_dir: Any) -> dict[str, Any]:
    """The entries of a dataset_dir; {} if the host has to download them, or will report that they are missing."""
    return dict(dataset_dir) if isinstance(dataset_dir, dict) else dict(dataset_info.table(dataset_dir))


def register_formats(original: Callable) -> Callable:
    """Register our formats through the host's own `register_dataset_converter` (card `dataset-converter`)."""
    from llamafactory.data.converter import DatasetConverter

    class RecordConverter(DatasetConverter):
        """A raw row -> {"_record", "_formatting", "_problem"}."""

        schema = "records-1"

        def __call__(self, example: dict[str, Any]) -> dict[str, str]:
            formatting = self.dataset_attr.formatting
            parsed = records.parse(
                example,
                formatting,
                columns=self.dataset_attr.finepref_columns,
                error_type=self.dataset_attr.finepref_error_type,
                file=str(self.dataset_attr),
                nulls_absent=True,
            )
            if isinstance(parsed, list):
                return {"_record": "", "_formatting": formatting, "_problem": note_problems(parsed)}
            return {"_record": jsonl.dumps(records.to_row(parsed)), "_formatting": formatting, "_problem": ""}

    for formatting in sorted(own_formats()):
        original(formatting, RecordConverter)
    return original


def record_of(row: dict[str, Any]) -> records.Record:
    """The record of a row that the converter has made."""
    return records.revive(json.loads(row["_record"]), row["_formatting"])


def merged_dataset(original: Callable) -> Callable:
    """`_get_merged_dataset` that checks formats and files first (card `merged-dataset`)."""

    @functools.wraps(original)
    def _get_merged_dataset(dataset_names, model_args, data_args, training_args, stage, return_dict=False):
        if dataset_names is None:
            return None
        row = stages.find(stage)
        attributes = check_formats(dataset_names, data_args.dataset_dir, stage)
        if row is None:
            return original(dataset_names, model_args, data_args, training_args, stage, return_dict)

        entries = _check_sources(dataset_names, attributes, data_args)
        current().datasets.extend(entries)
        # the host expects `ranking` in its preference stages, which is for its own formats; ours pass as "sft"
        datasets = original(dataset_names, model_args, data_args, training_args, "sft", return_dict)
        truncated = any(entry.skipped for entry in entries)
        arrange = functools.partial(_arrange, row, truncated=truncated, streaming=data_args.streaming)
        return {name: arrange(part) for name, part in datasets.items()} if return_dict else arrange(datasets)

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
        _refuse_foreign_format(name, attribute.formatting, stages.find(stage), stage)
    return attributes


def _refuse_foreign_format(name: str, formatting: str, row: stages.Stage | None, stage: str) -> None:
    ours = formatting in own_formats()
    if row is not None and formatting not in row.formats:
        problem = f"stage {row.name} trains on {' or '.join(row.formats)}, this dataset is {formatting}"
    elif row is None and ours:
        able = " or ".join(other.name for other in stages.for_formatting(formatting))
        stage = "rm or dpo" if stage == "rm" else stage  # the host reads data in the same way for both
        problem = f"the host's stage {stage} cannot read {formatting}; stage {able} can"
    else:
        return
    raise BadData([Problem("dataset_info.json", 0, f"{name}.formatting", "FP201", problem)])


def _check_sources(names: list[str], attributes: list[Any], data_args: Any) -> list[receipt.DatasetEntry]:
    """Check every local file once, with line numbers, before anything is tokenised.

    Raises:
        BadData: all problems of all files; or a file is missing or in a forbidden place, see `dataset_info.resolve`.
    """
    entries: list[receipt.DatasetEntry] = []
    problems: list[Problem] = []
    total = 0
    for name, attribute in zip(names, attributes, strict=True):
        digests: dict[str, str] = {}
        read: int | None = None
        if attribute.load_from == "file":
            read = 0
            source = source_of(name, attribute, data_args.dataset_dir)
            current().sources.append(source)
            for file in source.files:
                checked = check_file(file, source.formatting, columns=source.columns, error_type=source.error_type)
                digests[file.name] = checked.sha256
                read += checked.rows
                problems += checked.problems
                total += checked.total_problems
        kept = attribute.num_samples if attribute.num_samples is not None else read
        if read is not None and attribute.num_samples is not None:
            read = kept  # the host samples this many rows, some of them twice if there are fewer
        skipped = 0
        if read is not None and data_args.max_samples is not None:
            skipped = max(0, read - data_args.max_samples)
        entries.append(receipt.DatasetEntry(name, attribute.formatting, digests, read, skipped))
    if problems:
        raise BadData(problems, total)
    return entries


def source_of(name: str, attribute: Any, dataset_dir: str) -> Source:
    """A local data set. Its files are looked up as by `finepref validate`.

    Raises:
        BadData: a file is missing (with the command that makes it, if the entry has one) or cannot be read (FP202).
    """
    entry = {"file_name": attribute.dataset_name}
    if attribute.finepref_make:
        entry["make"] = attribute.finepref_make
    try:
        files = dataset_info.resolve(dataset_dir, entry)
    except BadData as error:
        raise BadData([replace(problem, field=f"{name}.{problem.field}") for problem in error.problems]) from None
    for file in files:
        if file.suffix not in (".json", ".jsonl"):
            raise BadData([Problem(str(file), 0, "file_name", "FP202", "only .json and .jsonl are checked")])
    return Source(name, attribute.formatting, tuple(files), attribute.finepref_columns, attribute.finepref_error_type)


def _arrange(row: stages.Stage, dataset: Any, *, truncated: bool, streaming: bool) -> Any:
    if not streaming:
        raise_problems(dataset["_problem"])
    dataset = adapter_of(row).arrange(dataset, truncated=truncated, streaming=streaming)
    if not streaming and checks_records(row, dataset["_record"]):
        run = current()
        refuse([found for each in dataset for found in record_problems(record_of(each), row, run.options)])
    return dataset


def checks_records(row: stages.Stage, texts: Iterable[str]) -> bool:
    """Whether records must be read again for `record_problems`: the stage checks them, or they may have weights."""
    return row.check_record is not None or row.shape == "ranked" or any('"weight"' in text for text in texts)


def note_problems(problems: Iterable[Problem]) -> str:
    """Write problems as the text of one cell, since a map function cannot return objects."""
    return "\n".join(json.dumps(astuple(problem)) for problem in problems)


def raise_problems(texts: Iterable[str]) -> None:
    """Raise the problems that converters or processors wrote into a column.

    Raises:
        BadData: any of the texts is not empty.
    """
    refuse([Problem(*json.loads(line)) for text in texts if text for line in text.split("\n")])
