"""`finepref_receipt.json`: proof that our data and our loss were really used.

A typical failure is the silent no-op: a run that succeeds although the method was never used. So the receipt in each
checkpoint records how often our loss was called, which must equal the number of micro-batches, and what happened to
every row that was read. It also answers "what was trained?": model, reference, template, settings and command line.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from finepref.formats.files import replacing

FILE_NAME = "finepref_receipt.json"
EVALUATION = "finepref_evaluation_receipt.json"
"""Written instead by a run without training, into a folder that has the receipt of a training."""
PACKAGES = (
    "finepref",
    "llamafactory",
    "openrlhf",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
)


class UnprovenRun(RuntimeError):  # noqa: N818 - the name users read
    """A run whose receipt does not add up: a row went missing, or our loss was not called for every batch."""


@dataclass
class DatasetEntry:
    """One data set of the run. Counts are numbers of rows in its files."""

    name: str
    formatting: str
    files: dict[str, str]  # file name -> SHA-256
    read: int | None  # None when the host fetches the data itself or streams it
    skipped: int = 0  # beyond max_samples
    rejected: dict[str, int] = field(default_factory=dict)  # code -> rows with a problem, left out
    notes: dict[str, int] = field(default_factory=dict)  # code -> what of good rows has no place in their records


def micro_batches(*, first_step: int, last_step: int, accumulation: int, batches_per_epoch: int | None) -> int:
    """Number of micro-batches in the optimizer steps from first_step to last_step.

    It is steps x accumulation, except that the last step of an epoch has only the micro-batches that are left.

    Args:
        first_step: optimizer steps done before this process started; 0 unless it resumed.
        last_step: optimizer steps done now.
        accumulation: gradient_accumulation_steps.
        batches_per_epoch: length of this rank's data loader, None for a stream of unknown length.
    """
    steps = last_step - first_step
    if batches_per_epoch is None or batches_per_epoch % accumulation == 0:
        return steps * accumulation
    steps_per_epoch = batches_per_epoch // accumulation + 1
    short = sum(1 for step in range(first_step, last_step) if step % steps_per_epoch == steps_per_epoch - 1)
    return steps * accumulation - short * (accumulation - batches_per_epoch % accumulation)


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages among `PACKAGES`."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def read(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The receipt in a checkpoint or output folder, None if there is none.

    Raises:
        ValueError: the file is not a receipt.
    """
    file = Path(folder, FILE_NAME)
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if {"stage", "settings", "seed", "datasets", "rows", "first_step", "optimizer_steps"} <= content.keys():
            return dict(content)
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{file} is not a receipt of finepref: remove it if it was damaged")


def write(folder: str | os.PathLike[str], content: dict[str, Any], name: str = FILE_NAME) -> None:
    """Write the receipt atomically into a checkpoint or output folder."""
    with replacing(Path(folder, name)) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")
