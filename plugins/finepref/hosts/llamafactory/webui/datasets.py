"""The data sets that the web UI offers for a stage, and previews of those that finepref ships."""

from __future__ import annotations

import functools
from collections.abc import Callable

import gradio as gr
from llamafactory.extras.constants import TRAINING_STAGES

from finepref import stages
from finepref.formats import dataset_info
from finepref.hosts.llamafactory import data

FIRST = next(iter(TRAINING_STAGES))


def list_fitting(original: Callable) -> Callable:
    """`list_datasets` by format: for our stages what they train on, for the host's none of ours (card
    `webui-datasets`)."""

    @functools.wraps(original)
    def list_datasets(dataset_dir=None, training_stage=FIRST):
        row = stages.find(TRAINING_STAGES[training_stage])
        if row is not None:
            return gr.Dropdown(choices=fitting(row, dataset_dir))
        dropdown = original(dataset_dir, training_stage)
        entries = data.entries_of(_folder(dataset_dir))
        ours = {name for name, entry in entries.items() if data.is_ours(entry)}
        return gr.Dropdown(choices=[name for name, _ in dropdown.choices if name not in ours])

    return list_datasets


def fitting(row: stages.Stage, dataset_dir: str | None) -> list[str]:
    """Names of the data sets that the stage trains on: those of the folder, then those that finepref ships."""
    entries = data.entries_of(_folder(dataset_dir))
    shipped = dataset_info.table(dataset_info.shipped_dir())
    there = {name: entry for name, entry in shipped.items() if _is_there(entry) and name not in entries}
    return [name for name, entry in (entries | there).items() if data.fits(entry, row)]


def _is_there(entry: dict) -> bool:
    return "file_name" in entry and (dataset_info.shipped_dir() / entry["file_name"]).exists()


def _folder(dataset_dir: str | None) -> str:
    from llamafactory.webui.common import DEFAULT_DATA_DIR

    return DEFAULT_DATA_DIR if dataset_dir is None else dataset_dir


def preview_shipped(original: Callable) -> Callable:
    """`can_preview` or `get_preview` that finds our shipped data sets (cards `webui-can-preview`,
    `webui-get-preview`)."""

    @functools.wraps(original)
    def preview(dataset_dir, dataset, *page):
        shipped = dataset_info.table(dataset_info.shipped_dir())
        if dataset and dataset[0] in shipped and dataset[0] not in data.entries_of(dataset_dir):
            dataset_dir = str(dataset_info.shipped_dir())
        return original(dataset_dir, dataset, *page)

    return preview
