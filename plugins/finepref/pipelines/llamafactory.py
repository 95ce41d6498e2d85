"""Command lines of LLaMA-Factory for the training steps of a pipeline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from finepref.formats.files import write_json


def train(recipe: str | Path, keys: Mapping[str, object]) -> list[str]:
    """`llamafactory-cli train RECIPE key=value ...`; the host goes on from a checkpoint in `output_dir` by itself."""
    return ["llamafactory-cli", "train", str(recipe), *_words(keys)]


def export(recipe: str | Path, keys: Mapping[str, object]) -> list[str]:
    """`llamafactory-cli export RECIPE key=value ...`."""
    return ["llamafactory-cli", "export", str(recipe), *_words(keys)]


def drop_torn_checkpoints(folder: Path) -> None:
    """Remove checkpoints of a training that was killed while it wrote them, of which it could not go on."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").is_file():  # the host writes it last
            shutil.rmtree(checkpoint)


def dataset(folder: Path, name: str, entry: Mapping[str, object]) -> Path:
    """Write a folder's dataset_info.json with one entry; returns the folder, the host's `dataset_dir`."""
    write_json(folder / "dataset_info.json", {name: entry})
    return folder


def _words(keys: Mapping[str, object]) -> list[str]:
    spelled = {
        key: json.dumps(value) if value is None or isinstance(value, bool) else value for key, value in keys.items()
    }
    return [f"{key}={value}" for key, value in spelled.items()]
