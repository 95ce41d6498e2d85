"""Runs of OpenRLHF on the tiny model, forked from this process or by the launchers: fixtures, and what they leave."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from warm import Warm, free_port

CACHE = tempfile.TemporaryDirectory(prefix="finepref-cache-")  # of all runs of this session
os.environ["HF_DATASETS_CACHE"] = CACHE.name
os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

DATA = {
    "selective": "scores",
    "tdpo": "spans",
    "kto": "sums",
    "apo_rm": "lists",
    "tgdpo": "scores",
    "tis_dpo": "scores",
}
DATA |= {"cdpo": "contrasts", "confpo": "spans", "simper": "spans", "dpo_pl": "lists"}
MODULE = "openrlhf.cli.train_{}"
HEAVY = ("openrlhf.cli.train_dpo", "openrlhf.cli.train_rm", "torch.utils.tensorboard")


@pytest.fixture
def flags(tiny_model: Path, sums: Path, tmp_path: Path):
    """The command line of a tiny run; keywords are flags, with __ for the dot; True has no value, None is left out."""

    def build(name: str, **given: object) -> tuple[list[str], Path]:
        folder = Path(str(given.get("ckpt__output_dir", tmp_path / "out")))
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
            **given,
        }
        arguments = []
        for key, value in settings.items():
            if value is not None and value is not False:
                arguments += [f"--{key.replace('__', '.')}"] + ([] if value is True else [str(value)])
        return arguments, folder

    return build


@pytest.fixture(scope="session")
def host() -> None:
    """The heavy libraries in this process, from which runs are forked: importing them takes most of a tiny run."""
    from finepref.hosts.openrlhf import compat

    compat.install()
    for name in HEAVY:
        importlib.import_module(name)


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """A process of its own that has imported the same, for commands that are not a training of ours."""
    with Warm(("finepref.hosts.openrlhf.compat:install", "finepref.cli", *HEAVY)) as process:
        yield process


@pytest.fixture
def attempt(flags, host, tmp_path: Path):
    """Train by `train_NAME` in forked processes; returns what there is to see of it."""

    def call(name: str, *, processes: int = 1, **given: object) -> SimpleNamespace:
        arguments, folder = flags(name, **given)
        output, port = tmp_path / "output.txt", free_port()
        children = []
        for rank in range(processes):
            child = os.fork()
            if child == 0:
                world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
                os.environ.update({key: str(value) for key, value in world.items()}, MASTER_ADDR="localhost")
                run_forked(MODULE.format(name), arguments, output.with_suffix(f".{rank}"))
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        return seen(max(map(abs, codes)), output.with_suffix(".0").read_text(), folder)

    return call


def run_forked(module: str, arguments: list[str], output: Path) -> None:
    """Run a command line's `main` in this process and end it."""
    code = 1
    try:
        with open(output, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        signal.alarm(240)
        torch.set_num_threads(1)  # renews the fork's thread pool before the threads that load weights do, at once
        sys.argv = [module, *arguments]
        importlib.import_module(module).main()
        code = 0
    except SystemExit as ended:
        print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@pytest.fixture
def train(attempt):
    """As `attempt`, for runs that must end well."""

    def call(name: str, **given: object) -> SimpleNamespace:
        done = attempt(name, **given)
        assert done.code == 0, done.output[-4000:]
        return done

    return call


@pytest.fixture
def command(flags):
    """Train by a launcher in a process of its own, which sees the installed package as users do."""

    def call(*program: str, name: str, environment: dict[str, str] | None = None, **given: object) -> SimpleNamespace:
        arguments, folder = flags(name, **given)
        process = subprocess.run(
            [str(BIN / program[0]), *program[1:], *arguments],
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **(environment or {})},
            capture_output=True,
            text=True,
            timeout=300,
            cwd=ROOT,
        )
        return seen(process.returncode, process.stdout + process.stderr, folder)

    return call


def seen(code: int, output: str, folder: Path) -> SimpleNamespace:
    """What a run has left."""
    receipt = folder / "finepref_receipt.json"
    return SimpleNamespace(
        code=code,
        output=output,
        folder=folder,
        receipt=json.loads(receipt.read_text()) if receipt.exists() else None,
        log=events(folder / "tb" / "run"),
    )


def events(folder: Path) -> dict[str, list[float]]:
    """What the host wrote for tensorboard, one list per name in the order of the steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not folder.is_dir():
        return {}
    read = EventAccumulator(str(folder))
    read.Reload()
    return {name: [event.value for event in read.Scalars(name)] for name in read.Tags()["scalars"]}


def tensors(folder: Path) -> dict:
    """All tensors of a saved model or adapter."""
    import torch
    from safetensors.torch import load_file

    found = sorted(folder.glob("*.safetensors"))
    return load_file(found[0]) if found else torch.load(folder / "adapter_model.bin")
