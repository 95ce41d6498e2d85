"""OpenRLHF's trainings and merges as steps of a pipeline.

A section of a pipeline's settings contains the host's own flags, nested at their dots or not: `train: {batch_size: 8}`
is `--train.batch_size 8`. true is a flag without a value; false and null leave it out.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from finepref.pipelines.steps import Pipeline, folders

Section = Mapping[str, object]

PLAIN_DPO = {"tdpo.variant": "dpo", "tdpo.masks": "none"}
"""Flags with which our train_tdpo is plain DPO."""
FREE_OF_DATA = ("data.max_len", "data.max_samples", "data.dataloader_num_workers", "data.disable_fast_tokenizer")
SET_HERE = ("ckpt.output_dir", "ckpt.path", "ckpt.load_enable", "model.model_name_or_path", "apo.keep_value_head")
"""Flags of data that a user may set, and other flags that a run sets itself."""


def launcher(given: str) -> list[str]:
    """The words before the name of a module."""
    return shlex.split(given or "deepspeed --module")


def check(run: Pipeline, sections: Mapping[str, Section]) -> None:
    """Check the folder of a run, and sections of flags by name.

    Raises:
        ValueError: a flag is LLaMA-Factory's or set by the run itself, or the folder's name has a meaning.
    """
    if set(",@") & set(str(run.folder)):
        raise ValueError(f"{run.folder}: for OpenRLHF a comma or @ in the path of a data set has a meaning")
    for name, section in sections.items():
        for flag in flat(section):
            if flag == "recipe":
                raise ValueError(f"{name}.recipe is LLaMA-Factory's: on OpenRLHF a section has the flags themselves")
            if flag in SET_HERE or (flag.startswith("data.") and flag not in FREE_OF_DATA):
                raise ValueError(f"{name}.{flag}: the run sets this itself")


def train(
    run: Pipeline,
    step: str,
    program: Sequence[str],
    section: Section,
    keys: Section,
    *,
    inputs: Sequence[Path],
    private: bool = False,
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
        private: see `Pipeline.run`.
    """
    saved, checkpoints = run.path(step, "model"), run.path(step, "checkpoints")
    _drop_torn_checkpoints(checkpoints)
    own = {"ckpt.output_dir": saved, "ckpt.path": checkpoints, "ckpt.load_enable": True, **keys}
    read = [*folders(str(own["model.model_name_or_path"])), *inputs]
    run.run(step, [*program, *spelled(flat(section) | own)], inputs=read, outputs=[saved], private=private)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return saved


def train_merged(
    run: Pipeline,
    steps: tuple[str, str],
    program: Sequence[str],
    section: Section,
    merging: Section,
    keys: Section,
    *,
    inputs: Sequence[Path],
    private: bool = False,
) -> str:
    """`train`, then `merge` if that made a LoRA adapter; returns the folder of the whole model.

    Args:
        run: the pipeline.
        steps: names of the two steps.
        program: see `train`.
        section: the host's flags for the training.
        merging: the host's flags for the merge.
        keys: flags on top of the training's.
        inputs: see `train`.
        private: see `Pipeline.run`.
    """
    trained = train(run, steps[0], program, section, keys, inputs=inputs, private=private)
    if not uses_lora(section):
        return str(trained)
    return str(merge(run, steps[1], merging, model=str(keys["model.model_name_or_path"]), adapter=trained))


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
