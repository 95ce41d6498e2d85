"""The real host on the tiny model and the rows of the other host's tests, forked here or by its launchers."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent

spec = importlib.util.spec_from_file_location("llamafactory_conftest", ROOT / "tests/hosts/llamafactory/conftest.py")
other_host = importlib.util.module_from_spec(spec)
spec.loader.exec_module(other_host)
rows, span_rows, scored_rows, write_rows = (
    getattr(other_host, name) for name in ("rows", "span_rows", "scored_rows", "write_rows")
)
tiny_model, sums = other_host.tiny_model, other_host.sums  # fixtures

DATA = {"selective": "scores", "tdpo": "spans", "kto": "sums"}


@pytest.fixture
def command(tiny_model: Path, sums: Path, tmp_path: Path):
    """Train by `train_NAME`; keyword arguments are flags, with __ for the dot. Returns what there is to see of it.

    `launcher` is the program before the module; True stands for a flag without a value, None leaves a flag out.
    """

    def call(
        name: str,
        *,
        launcher: tuple[str, ...] = ("python", "-m"),
        module: str = "finepref.hosts.openrlhf.train_{}",
        environment: dict[str, str] | None = None,
        **flags: object,
    ) -> SimpleNamespace:
        folder = Path(str(flags.get("ckpt__output_dir", tmp_path / "out")))
        settings = {
            "model__model_name_or_path": tiny_model,
            "data__dataset": DATA.get(name),
            "data__dataset_dir": sums,
            "data__apply_chat_template": True,
            "train__batch_size": 4,
            "train__micro_batch_size": 2,
            "adam__lr": 1e-3,
            "lr_warmup_ratio": 0.0,
            "logger__tensorboard_dir": folder / "tb",
            "logger__wandb__run_name": "run",
            "ckpt__output_dir": folder,
            "ckpt__path": folder / "ckpt",
            "ds__param_dtype": "fp32",
            **flags,
        }
        arguments = []
        for key, value in settings.items():
            if value is not None and value is not False:
                arguments += [f"--{key.replace('__', '.')}"] + ([] if value is True else [str(value)])
        program = [str(BIN / launcher[0]), *launcher[1:], *([module.format(name)] if module else []), *arguments]
        process = subprocess.run(
            program,
            env={
                **os.environ,
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "MASTER_PORT": free_port(),
                **(environment or {}),
            },
            capture_output=True,
            text=True,
            timeout=300,
            cwd=ROOT,
        )
        receipt = folder / "finepref_receipt.json"
        return SimpleNamespace(
            code=process.returncode,
            output=process.stdout + process.stderr,
            error=process.stderr.strip().rsplit("\n", 1)[-1],
            folder=folder,
            receipt=json.loads(receipt.read_text()) if receipt.exists() else None,
            log=events(folder / "tb" / "run"),
        )

    return call


@pytest.fixture
def train(command):
    """As `command`, for runs that must end well."""

    def call(name: str, **options: object) -> SimpleNamespace:
        done = command(name, **options)
        assert done.code == 0, done.output[-4000:]
        return done

    return call


def free_port() -> str:
    """A port for torch.distributed."""
    import socket

    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return str(listening.getsockname()[1])


def events(folder: Path) -> dict[str, list[float]]:
    """What the host wrote for tensorboard, one list per name in the order of the steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not folder.is_dir():
        return {}
    read = EventAccumulator(str(folder))
    read.Reload()
    return {name: [event.value for event in read.Scalars(name)] for name in read.Tags()["scalars"]}


def torchrun(processes: int) -> tuple[str, ...]:
    """The launcher for some processes."""
    return ("torchrun", f"--nproc-per-node={processes}", f"--master-port={free_port()}", "-m")


def tensors(folder: Path) -> dict:
    """All tensors of a saved model or adapter."""
    import torch
    from safetensors.torch import load_file

    found = sorted(folder.glob("*.safetensors"))
    return load_file(found[0]) if found else torch.load(folder / "adapter_model.bin")


def one_line(output: str) -> str:
    """Without line breaks."""
    return re.sub(r"\s+", " ", output)
