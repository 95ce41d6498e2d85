"""OpenRLHF's trainings and merges as steps of a pipeline.

A section of a pipeline's settings contains the host's own flags, nested at their dots or not: `train: {batch_size: 8}`
is `--train.batch_size 8`. true is a flag without a value; false and null leave it out.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from finepref.pipelines.steps import Pipeline, folders

Section = Mapping[str, object]


def train(
    run: Pipeline, step: str, program: Sequence[str], section: Section, keys: Section, *, inputs: Sequence[Path]
) -> Path:
    """Train with the flags of a section, overridden by `keys`; returns the folder that the host saves.

    A training that was killed resumes from the last complete checkpoint if the section has `ckpt: {save_steps: N}`;
    otherwise it starts again. Checkpoints are removed at the end.

    Args:
        run: the pipeline.
        step: name of the step.
        program: a launcher and the module of a command line, such as deepspeed --module openrlhf.cli.train_sft.
        section: the host's flags.
        keys: flags on top of them.
        inputs: files and folders that the training reads, besides the model.
    """
    saved, checkpoints = run.path(step, "model"), run.path(step, "checkpoints")
    _drop_torn_checkpoints(checkpoints)
    own = {"ckpt.output_dir": saved, "ckpt.path": checkpoints, "ckpt.load_enable": True, **keys}
    read = [*folders(str(own["model.model_name_or_path"])), *inputs]
    run.run(step, [*program, *spelled(flat(section) | own)], inputs=read, outputs=[saved])
    shutil.rmtree(checkpoints, ignore_errors=True)
    return saved


def merge(run: Pipeline, step: str, section: Section, *, model: str, adapter: Path) -> Path:
    """`openrlhf.cli.lora_combiner`: merge an adapter into its model; returns the folder of the merged model.

    Args:
        run: the pipeline.
        step: name of the step.
        section: the host's flags.
        model: folder or name of the model.
        adapter: folder of the LoRA adapter.
    """
    merged = run.path(step, "model")
    own = {"model_path": model, "lora_path": adapter, "output_path": merged}
    words = ["python", "-m", "openrlhf.cli.lora_combiner", *spelled(flat(section) | own)]
    run.run(step, words, inputs=[*folders(model), adapter], outputs=[merged])
    return merged


def flat(section: Section, prefix: str = "") -> dict[str, object]:
    """{train: {batch_size: 8}} -> {train.batch_size: 8}, without what is null."""
    found: dict[str, object] = {}
    for name, value in section.items():
        if value is not None:
            key = f"{prefix}{name}"
            found |= flat(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return found


def spelled(flags: Section) -> list[str]:
    """Flags as words: {adam.betas: [0.9, 0.95], ref.offload: true} -> --adam.betas 0.9 0.95 --ref.offload."""
    words: list[str] = []
    for name, value in flags.items():
        if value is not False:
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, values)]
    return words


def uses_lora(section: Section) -> bool:
    """Whether a training makes a LoRA adapter."""
    return bool(flat(section).get("ds.lora.rank"))


def _drop_torn_checkpoints(folder: Path) -> None:
    """Remove checkpoints that the host could not resume from, because it was killed before one was complete.

    Its file `latest` names the last complete one, and is written after it.
    """
    latest = folder / "latest"
    name = latest.read_text().strip() if latest.is_file() else ""
    if folder.is_dir() and not (name and (folder / name).is_dir()):
        shutil.rmtree(folder)
