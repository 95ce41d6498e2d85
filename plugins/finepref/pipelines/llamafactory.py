"""LLaMA-Factory's trainings and merges as steps of a pipeline.

A section of a pipeline's settings contains `recipe`, a YAML file of the host, and keys that override it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finepref.formats.files import write_json
from finepref.pipelines import settings
from finepref.pipelines.steps import Pipeline, folders

Section = Mapping[str, object]


def train(
    run: Pipeline, step: str, section: Section, keys: Section, *, inputs: Sequence[Path], private: bool = False
) -> Path:
    """`llamafactory-cli train` with a section, overridden by `keys`; returns the folder that it saves.

    A training that was killed resumes from the last complete checkpoint.

    Args:
        run: the pipeline.
        step: name of the step.
        section: the recipe, and keys on top of it.
        keys: further keys on top.
        inputs: files and folders that the training reads, besides the model and the recipe.
        private: see `Pipeline.run`.
    """
    saved = run.path(step, "model")
    _drop_torn_checkpoints(saved)
    own = {"output_dir": saved, "overwrite_output_dir": False, **keys}
    read = [*folders(str(own["model_name_or_path"])), *inputs]
    _run(run, step, "train", section, own, inputs=read, output=saved, private=private)
    return saved


def train_merged(
    run: Pipeline,
    steps: tuple[str, str],
    section: Section,
    export: Section,
    keys: Section,
    *,
    inputs: Sequence[Path],
    private: bool = False,
) -> str:
    """`train`, then `llamafactory-cli export` if that made a LoRA adapter; returns the folder of the whole model.

    Args:
        run: the pipeline.
        steps: names of the two steps.
        section: the recipe of the training, and keys on top of it.
        export: the recipe of the export, and keys on top of it.
        keys: further keys on top of the training's.
        inputs: see `train`.
        private: see `Pipeline.run`.
    """
    first, second = steps
    trained = train(run, first, section, keys, inputs=inputs, private=private)
    if not uses_lora(section):
        return str(trained)
    merged = run.path(second, "model")
    own = {name: keys[name] for name in ("model_name_or_path", "template") if name in keys}
    own |= {"adapter_name_or_path": trained, "export_dir": merged}
    _run(run, second, "export", export, own, inputs=[trained], output=merged, private=private)
    return str(merged)


def with_recipe(section: Section) -> dict[str, Any]:
    """The recipe, overridden by the section's keys."""
    recipe, keys = _split(section)
    return settings.load(recipe) | keys


def uses_lora(section: Section) -> bool:
    """Whether a training makes a LoRA adapter, which is the host's default."""
    return with_recipe(section).get("finetuning_type", "lora") == "lora"


def dataset(folder: Path, name: str, entry: Section) -> Path:
    """Write a dataset_info.json with one entry; returns its folder, the host's `dataset_dir`."""
    write_json(folder / "dataset_info.json", {name: entry})
    return folder


def spelled(keys: Section) -> list[str]:
    """Keys in the form of the host's command line: `bf16=false`."""
    texts = {
        key: json.dumps(value) if value is None or isinstance(value, bool) else value for key, value in keys.items()
    }
    return [f"{key}={value}" for key, value in texts.items()]


def _run(
    run: Pipeline,
    step: str,
    word: str,
    section: Section,
    keys: Section,
    *,
    inputs: Sequence[Path],
    output: Path,
    private: bool,
) -> None:
    """Run a command of the host.

    Args:
        run: the pipeline.
        step: name of the step.
        word: the command, train or export.
        section: the recipe, and keys on top of it.
        keys: further keys on top.
        inputs: files and folders that it reads, besides the recipe.
        output: the folder that it writes.
        private: see `Pipeline.run`.
    """
    recipe, own = _split(section)
    words = ["llamafactory-cli", word, str(recipe), *spelled(own | keys)]
    run.run(step, words, inputs=[recipe, *inputs], outputs=[output], private=private)


def _split(section: Section) -> tuple[Path, dict[str, object]]:
    return Path(str(section["recipe"])), {name: value for name, value in section.items() if name != "recipe"}


def _drop_torn_checkpoints(folder: Path) -> None:
    """Remove incomplete checkpoints of a killed training, which it could not resume from."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not _is_complete(checkpoint):
            shutil.rmtree(checkpoint)


def _is_complete(checkpoint: Path) -> bool:
    """Whether the host's last file is there and whole: it may have been killed while it wrote that one too."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, ValueError):
        return False
    return True
