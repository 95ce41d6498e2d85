"""LLaMA-Factory's data seams: our formats in dataset_info.json, checked, tokenised by the stage, accounted for.

Every row travels from converter to processor as the canonical JSON of its record, so that Arrow sees two string
columns whatever the format, and datasets of different formats merge without null columns.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, replace
from importlib.resources import files
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from finepref import stages
from finepref.formats import dataset_info, jsonl, records
from finepref.formats.check import BadData, Problem, check_file
from finepref.hosts import located, receipt
from finepref.hosts.llamafactory.adapter import Adapter

MARKER = "finepref_tokenized.json"
CURRENT: receipt.Receipt | None = None  # the run of this process; the data seams add what they read to it
SOURCES: list[tuple[Path, Any]] = []  # its local files, each with the host's DatasetAttr


def begin(record: receipt.Receipt) -> None:
    """Start the books of a run."""
    global CURRENT
    CURRENT = record
    SOURCES.clear()


def adapter_of(stage: stages.Stage) -> Adapter:
    """The stage's data and training half."""
    return resolve_name(stage.adapter)()


def own_formats() -> set[str]:
    """The `formatting` values that belong to us."""
    return {formatting for stage in stages.all_stages().values() for formatting in stage.formats}


def shipped_dataset_dir() -> Path:
    """The dataset_info folder that comes with the package."""
    return Path(str(files("finepref.dataset_info")))


def dataset_list(original: Callable) -> Callable:
    """`get_dataset_list` that also knows our shipped names and keeps each entry's own keys (card `dataset-list`)."""

    @functools.wraps(original)
    def get_dataset_list(dataset_names, dataset_dir):
        entries = entries_of(dataset_dir)
        shipped = entries_of(str(shipped_dataset_dir()))
        borrowed = [name for name in dataset_names or [] if name not in entries and name in shipped]
        if dataset_dir == "ONLINE" or not borrowed:
            attributes = original(dataset_names, dataset_dir)
        else:
            for name in borrowed:
                entries[name] = dict(shipped[name])
                if "file_name" in shipped[name]:
                    entries[name]["file_name"] = str(shipped_dataset_dir() / shipped[name]["file_name"])
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
    """The table of a dataset_dir, {} when the host has to fetch it or will complain about it itself."""
    if isinstance(dataset_dir, dict):
        return dict(dataset_dir)
    try:
        return json.loads(Path(dataset_dir, "dataset_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


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


def encode(processor: Any, prompt: records.Prompt, response: str) -> tuple[list[int], list[int]]:
    """Tokens of the prompt and of the response by the template of a host's DatasetProcessor, not cut."""
    system = prompt[0].content if prompt[0].role == "system" else None
    turns = [message._asdict() for message in prompt if message.role != "system"]
    turns.append({"role": "assistant", "content": response})
    prompt_ids, response_ids = processor.template.encode_oneturn(processor.tokenizer, turns, system, None)
    if processor.template.efficient_eos:
        response_ids = [*response_ids, processor.tokenizer.eos_token_id]
    return prompt_ids, response_ids


def record_of(row: dict[str, Any]) -> records.Record:
    """The record of an aligned row."""
    parsed = records.parse(json.loads(row["_record"]), row["_formatting"])
    if isinstance(parsed, list):
        raise BadData(parsed)
    return parsed


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
        CURRENT.datasets.extend(entries)
        # `ranking` is the host's word for its own two-response formats and is false for ours: hence "sft"
        datasets = original(dataset_names, model_args, data_args, training_args, "sft", return_dict)
        truncated = any(entry.skipped for entry in entries)
        arrange = functools.partial(_arrange, row, truncated=truncated, streaming=data_args.streaming)
        return {name: arrange(part) for name, part in datasets.items()} if return_dict else arrange(datasets)

    return _get_merged_dataset


def check_formats(names: list[str], dataset_dir: Any, stage: str) -> list[Any]:
    """The host's DatasetAttr of each data set, when all are of a format that the stage reads.

    Raises:
        BadData: one is not.
        ValueError: one is not in the table.
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
        stage = "rm or dpo" if stage == "rm" else stage  # the host reads both alike
        problem = f"the host's stage {stage} cannot read {formatting}; stage {able} can"
    else:
        return
    raise BadData([Problem("dataset_info.json", 0, f"{name}.formatting", "FP201", problem)])


def _check_sources(names: list[str], attributes: list[Any], data_args: Any) -> list[receipt.DatasetEntry]:
    """Read every local file once, strictly, with line numbers, before anything is tokenised.

    Raises:
        BadData: all problems of all files; or a file is not there, or not where it may be, see `dataset_info.resolve`.
    """
    entries: list[receipt.DatasetEntry] = []
    problems: list[Problem] = []
    total = 0
    for name, attribute in zip(names, attributes, strict=True):
        digests: dict[str, str] = {}
        read: int | None = None
        if attribute.load_from == "file":
            read = 0
            for file in files_of(name, attribute, data_args.dataset_dir):
                SOURCES.append((file, attribute))
                checked = check_file(
                    file,
                    attribute.formatting,
                    columns=attribute.finepref_columns,
                    error_type=attribute.finepref_error_type,
                )
                digests[file.name] = checked.sha256
                read += checked.rows
                problems += checked.problems
                total += checked.total_problems
        kept = attribute.num_samples if attribute.num_samples is not None else read
        if read is not None and attribute.num_samples is not None:
            read = kept  # the host draws that many rows, some of them twice when there are fewer
        skipped = 0
        if read is not None and data_args.max_samples is not None:
            skipped = max(0, read - data_args.max_samples)
        entries.append(receipt.DatasetEntry(name, attribute.formatting, digests, read, skipped))
    if problems:
        raise BadData(problems, total)
    return entries


def files_of(name: str, attribute: Any, dataset_dir: str) -> list[Path]:
    """The files of a local data set, found as `finepref validate` finds them.

    Raises:
        BadData: a file is not there, with the command that makes it when its entry names one, or one we cannot read.
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
    return files


def _arrange(row: stages.Stage, dataset: Any, *, truncated: bool, streaming: bool) -> Any:
    if not streaming:
        raise_problems(dataset["_problem"])
    return adapter_of(row).arrange(dataset, truncated=truncated, streaming=streaming)


def note_problems(problems: Iterable[Problem]) -> str:
    """Problems as the text of one cell, since a map function cannot return objects."""
    return "\n".join(json.dumps(astuple(problem)) for problem in problems)


def raise_problems(texts: Iterable[str]) -> None:
    """Raise what converters or processors noted in a column.

    Raises:
        BadData: when any text is not empty.
    """
    problems = [Problem(*json.loads(line)) for text in texts if text for line in text.split("\n")]
    if problems:
        raise BadData(pinpoint(problems))


def source_records() -> Iterator[tuple[str, int, records.Record]]:
    """(file, line, record) of the run's local files, read again."""
    for file, attribute in SOURCES:
        for line, row in jsonl.read_jsonl(file, problems=[]):
            parsed = records.parse(
                row,
                attribute.formatting,
                columns=attribute.finepref_columns,
                error_type=attribute.finepref_error_type,
            )
            if not isinstance(parsed, list):
                yield str(file), line, parsed


def pinpoint(problems: list[Problem]) -> list[Problem]:
    """Problems of records as problems of files, by reading the files again."""
    return located.pinpoint(problems, source_records())


def dataset_processor(original: Callable) -> Callable:
    """`_get_dataset_processor` that knows our stages (card `dataset-processor`)."""

    @functools.wraps(original)
    def _get_dataset_processor(data_args, stage, template, tokenizer, processor, do_generate=False):
        row = stages.find(stage)
        if row is None:
            return original(data_args, stage, template, tokenizer, processor, do_generate)
        make = adapter_of(row).processor()
        return make(template=template, tokenizer=tokenizer, processor=processor, data_args=data_args)

    return _get_dataset_processor


def preprocessed_dataset(original: Callable) -> Callable:
    """`_get_preprocessed_dataset` between the stage's preparation and its problems (card `preprocessed-dataset`)."""

    @functools.wraps(original)
    def _get_preprocessed_dataset(
        dataset, data_args, training_args, stage, template, tokenizer, processor=None, is_eval=False
    ):
        row = stages.find(stage)
        if row is not None and dataset is not None:
            dataset = adapter_of(row).prepare(dataset, streaming=data_args.streaming)
        tokenized = original(dataset, data_args, training_args, stage, template, tokenizer, processor, is_eval)
        if row is None or tokenized is None or data_args.streaming:
            return tokenized
        raise_problems(tokenized["problem"])
        return tokenized.remove_columns("problem")

    return _get_preprocessed_dataset


def get_dataset(original: Callable) -> Callable:
    """`get_dataset` that marks tokenised folders with their stage and refuses others (card `get-dataset`)."""

    @functools.wraps(original)
    def get_dataset(template, model_args, data_args, training_args, stage, tokenizer, processor=None):
        row = stages.find(stage)
        folder = data_args.tokenized_path
        marker = Path(folder, MARKER) if folder else None
        content = {"stage": row.name, "schema": adapter_of(row).schema} if row else None
        if marker is not None and os.path.isdir(folder) and os.listdir(folder):
            found = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else None
            kept = {key: found[key] for key in ("stage", "schema")} if found else None
            if kept != content:
                raise ValueError(
                    f"tokenized_path {folder} was written for {_describe(kept)}, this run is {_describe(content)}; "
                    "use another folder"
                )
            if found:
                CURRENT.datasets = [receipt.DatasetEntry(**entry) for entry in found["datasets"]]
        module = original(template, model_args, data_args, training_args, stage, tokenizer, processor)
        if row is not None and marker is not None and not marker.is_file() and training_args.should_save:
            datasets = [vars(entry) for entry in CURRENT.datasets]
            marker.write_text(json.dumps({**content, "datasets": datasets}, indent=2), encoding="utf-8")
        return module

    return get_dataset


def _describe(content: dict[str, str] | None) -> str:
    return f"stage {content['stage']} (rows {content['schema']})" if content else "a stage of the host"
