"""Tokenised data on LLaMA-Factory: made by the stage's processor, and saved in a folder marked with the stage."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from finepref import stages
from finepref.formats import records
from finepref.formats.problems import BadData
from finepref.hosts import receipt
from finepref.hosts.llamafactory.data import adapter_of, raise_problems
from finepref.hosts.run import current

MARKER = "finepref_tokenized.json"


def encode(processor: Any, prompt: records.Prompt, response: str) -> tuple[list[int], list[int]]:
    """Token ids of prompt and response by the template of a host's DatasetProcessor, not cut."""
    system = prompt[0].content if prompt[0].role == "system" else None
    turns = [message._asdict() for message in prompt if message.role != "system"]
    turns.append({"role": "assistant", "content": response})
    prompt_ids, response_ids = processor.template.encode_oneturn(processor.tokenizer, turns, system, None)
    if processor.template.efficient_eos:
        response_ids = [*response_ids, processor.tokenizer.eos_token_id]
    return prompt_ids, response_ids


def dataset_processor(original: Callable) -> Callable:
    """`_get_dataset_processor` that makes the processors of our stages too (card `dataset-processor`)."""

    @functools.wraps(original)
    def _get_dataset_processor(data_args, stage, template, tokenizer, processor, do_generate=False):
        row = stages.find(stage)
        if row is None:
            return original(data_args, stage, template, tokenizer, processor, do_generate)
        make = adapter_of(row).processor()
        return make(template=template, tokenizer=tokenizer, processor=processor, data_args=data_args)

    return _get_dataset_processor


def preprocessed_dataset(original: Callable) -> Callable:
    """`_get_preprocessed_dataset` with our preparation before and our checks after (card `preprocessed-dataset`)."""

    @functools.wraps(original)
    def _get_preprocessed_dataset(
        dataset, data_args, training_args, stage, template, tokenizer, processor=None, is_eval=False
    ):
        row = stages.find(stage)
        if row is not None and dataset is not None:
            try:
                dataset = adapter_of(row).prepare(dataset, streaming=data_args.streaming)
            except BadData as error:
                raise _of_split(error, data_args, is_eval=is_eval) from None
        tokenized = original(dataset, data_args, training_args, stage, template, tokenizer, processor, is_eval)
        if row is None or tokenized is None or data_args.streaming:
            return tokenized
        raise_problems(tokenized["problem"])
        return tokenized.remove_columns("problem")

    return _get_preprocessed_dataset


def _of_split(error: BadData, data_args: Any, *, is_eval: bool) -> BadData:
    """The error with the name of the split, in problems of a data set as a whole."""
    if not is_eval:
        name = "the training split"
    elif data_args.eval_dataset:
        name = "the evaluation split, eval_dataset"
    else:
        name = f"the evaluation split, val_size {data_args.val_size}"
    return BadData([p if p.line else replace(p, file=name) for p in error.problems], error.total)


def get_dataset(original: Callable) -> Callable:
    """`get_dataset` that marks tokenised folders with the stage, and refuses another stage's (card `get-dataset`)."""

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
                current().datasets = [receipt.DatasetEntry(**entry) for entry in found["datasets"]]
        module = original(template, model_args, data_args, training_args, stage, tokenizer, processor)
        if row is not None and marker is not None and not marker.is_file() and training_args.should_save:
            datasets = [vars(entry) for entry in current().datasets]
            marker.write_text(json.dumps({**content, "datasets": datasets}, indent=2), encoding="utf-8")
        return module

    return get_dataset


def _describe(content: dict[str, str] | None) -> str:
    return f"stage {content['stage']} (rows {content['schema']})" if content else "a stage of the host"
