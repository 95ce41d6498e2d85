"""The real host on a tiny model made here; most tests run in this process, the command line where it matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from sample_rows import write_rows
from warm import Warm

os.environ.update(HF_HUB_OFFLINE="1", WANDB_DISABLED="true", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

ROOT = Path(__file__).parents[3]
HOST = ("llamafactory.train.tuner", "finepref.cli", "matplotlib.pyplot")  # what a training imports
DATASETS = {
    "seapo_kto": "sums",
    "sepo": "scores",
    "tdpo": "spans",
    "tgdpo": "scores",
    "tis_dpo": "scores",
    "cdpo": "contrasts",
    "confpo": "spans",
    "simper": "spans",
    "apo_rm": "lists",
    "dpo_pl": "lists",
    "granular_sft": "granular",
}
OF_A_LOSS = ("tgdpo", "tis_dpo", "cdpo", "confpo", "simper")
"""Stages that differ from `sepo` and `tdpo` in their weights and loss alone, so that what concerns ranks, streams and
devices is tested once."""
OF_A_BATCH = {stage: dataset for stage, dataset in DATASETS.items() if stage not in OF_A_LOSS}
RECIPES = {
    "seapo_kto": "seapo_kto",
    "sepo": "sepo",
    "tdpo": "tdpo_spans",
    "tgdpo": "tgdpo",
    "tis_dpo": "tis_dpo",
    "cdpo": "cdpo",
    "confpo": "confpo",
    "simper": "simper",
    "apo_rm": "apo_rm",
    "dpo_pl": "dpo_pl",
    "granular_sft": "granular_sft",
}


@pytest.fixture
def recipe(tiny_model: Path, sums: Path, tmp_path: Path):
    """The shipped recipe with what a tiny run overrides; keyword arguments override further."""
    import yaml

    def build(name: str = "seapo_kto", **overrides: object) -> dict:
        settings = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text(encoding="utf-8"))
        settings |= {
            "model_name_or_path": str(tiny_model),
            "template": "chatml",
            "dataset_dir": str(sums),
            "dataset": DATASETS.get("granular_sft" if settings.get("granular") else settings.get("stage"), "sums"),
            "output_dir": str(tmp_path / "out"),
            "bf16": False,
            "preprocessing_num_workers": 1,
            "dataloader_num_workers": 0,
            "gradient_accumulation_steps": 2,
            "logging_steps": 1,
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "warmup_steps": 0,
            "learning_rate": 1e-3,
            "plot_loss": False,
            "cache_dir": str(tmp_path / "cache"),
        }
        return settings | overrides

    return build


@pytest.fixture
def run(recipe):
    """Train in this process; returns the output folder, the receipt and the training log."""

    def train(**overrides: object) -> SimpleNamespace:
        from llamafactory.train.tuner import run_exp

        settings = recipe(**overrides)
        run_exp(dict(settings))
        folder = Path(settings["output_dir"])
        return SimpleNamespace(
            folder=folder,
            receipt=json.loads((folder / "finepref_receipt.json").read_text()),
            log=json.loads((folder / "trainer_state.json").read_text())["log_history"],
        )

    return train


@pytest.fixture
def recipe_file(recipe, tmp_path: Path):
    """Write a recipe without the keys that begin so; returns the file and the output folder."""

    def write(drop: tuple[str, ...] = (), **overrides: object) -> tuple[Path, Path]:
        import yaml

        settings = {key: value for key, value in recipe(**overrides).items() if not (drop and key.startswith(drop))}
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return file, Path(settings["output_dir"])

    return write


@pytest.fixture
def command(recipe_file):
    """Train by `llamafactory-cli train FILE` in new processes; returns how it ended and the output folder."""

    def call(
        *, environment: dict[str, str] | None = None, drop: tuple[str, ...] = (), **overrides: object
    ) -> SimpleNamespace:
        file, folder = recipe_file(drop, **overrides)
        bin_folder = str(Path(sys.executable).parent)
        process = subprocess.run(
            [f"{bin_folder}/llamafactory-cli", "train", str(file)],
            env={**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", **(environment or {})},
            capture_output=True,
            text=True,
            timeout=300,
            cwd=ROOT,
        )
        return ended(process.returncode, process.stdout + process.stderr, folder)

    return call


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """A process that has imported the host, which forks one for each command."""
    with Warm(HOST) as process:
        yield process


@pytest.fixture
def forked(warm, recipe_file):
    """As `command`, in forks of the warm process, or of another one; on `processes` ranks as torchrun has them."""

    def call(
        *, processes: int = 1, process: Warm = warm, drop: tuple[str, ...] = (), **overrides: object
    ) -> SimpleNamespace:
        file, folder = recipe_file(drop, **overrides)
        done = process.run(["llamafactory-cli", "train", file], processes=processes, folder=ROOT)
        return ended(done.code, done.output, folder)

    return call


def ended(code: int, output: str, folder: Path) -> SimpleNamespace:
    """What a training in a process of its own has left."""
    receipt = folder / "finepref_receipt.json"
    found = json.loads(receipt.read_text()) if receipt.exists() else None
    return SimpleNamespace(code=code, output=output, folder=folder, receipt=found)


@pytest.fixture
def refused(recipe, tmp_path, monkeypatch):
    """Run with changed records and options; the error, raised while no model could be loaded."""

    def attempt(records=None, entry=None, **overrides):
        from finepref.formats.check import BadData
        from llamafactory.train.tuner import run_exp

        monkeypatch.setattr("llamafactory.model.load_model", lambda *args, **kwargs: pytest.fail("a model was loaded"))
        if records is not None:
            overrides["dataset_dir"] = str(write_rows(tmp_path / "bad", records, **(entry or {})))
        with pytest.raises((BadData, ValueError, FileNotFoundError)) as caught:
            run_exp(recipe(**overrides))
        return str(caught.value)

    return attempt


def host_keys() -> set[str]:
    """Every key that a recipe may have, finepref's among them."""
    from dataclasses import fields

    from llamafactory import hparams

    names = ("Model", "Data", "Training", "Finetuning", "Generating")
    return {field.name for name in names for field in fields(getattr(hparams, f"{name}Arguments"))}


def losses(done: SimpleNamespace) -> list[float]:
    """The training losses of a run, one per step."""
    return [entry["loss"] for entry in done.log if "loss" in entry]


def weights(folder: Path) -> dict:
    """All tensors of a saved model or adapter."""
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
