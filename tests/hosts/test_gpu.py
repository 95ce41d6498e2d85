"""`finepref doctor` where there is a GPU: nvidia-smi is a script on the PATH, torch is a stand-in."""

from __future__ import annotations

import json

import pytest
import torch
from finepref.cli import app
from finepref.hosts import gpu
from typer.testing import CliRunner

HEADER = "| NVIDIA-SMI 550.54.15   Driver Version: 550.54.15   CUDA Version: 12.4     |"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Installs a script that lists a number of GPUs as nvidia-smi does, or fails (None) as without a driver."""

    def install(count):
        listed = "\n".join(f"GPU {n}: NVIDIA L4 (UUID: GPU-{n})" for n in range(count or 0))
        body = "exit 9" if count is None else f'[ "$1" = -L ] && echo "{listed}" || echo "{HEADER}"'
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return install


def torch_is(monkeypatch, version, cuda, seen):
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)


@pytest.mark.parametrize(
    ("version", "cuda", "told"),
    [
        (
            "2.11.0",
            "13.0",
            "nvidia-smi shows 2 GPUs (driver 550.54.15, for CUDA up to 12.4), but torch 2.11.0 (CUDA 13.0) sees none: "
            "training would run on the CPU; install a newer driver, or a torch for CUDA 12, "
            "see docs/install.md, Drivers",
        ),
        (
            "2.13.0+cpu",
            None,
            "nvidia-smi shows 2 GPUs (driver 550.54.15, for CUDA up to 12.4), but torch 2.13.0+cpu is built without "
            "CUDA: training would run on the CPU; install a torch with CUDA, see docs/install.md, Drivers",
        ),
        (
            "2.7.1",
            "12.6",
            "nvidia-smi shows 2 GPUs (driver 550.54.15, for CUDA up to 12.4), but torch 2.7.1 (CUDA 12.6) sees none: "
            "training would run on the CPU; see docs/install.md, Drivers",
        ),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_told_with_both_versions_and_fails(
    nvidia_smi, monkeypatch, version, cuda, told
):
    nvidia_smi(2)
    torch_is(monkeypatch, version, cuda, 0)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert told in result.output.replace("\n", "")
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["gpus"]["problem"] == told


def test_a_gpu_that_torch_sees_is_one_line(nvidia_smi, monkeypatch):
    nvidia_smi(1)
    torch_is(monkeypatch, "2.7.1", "12.6", 1)
    result = CliRunner().invoke(app, ["doctor"])
    assert "GPU: 1, driver 550.54.15 (CUDA up to 12.4); torch 2.7.1 (CUDA 12.6) sees 1" in result.output
    assert json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)["gpus"]["problem"] == ""


@pytest.mark.parametrize("value", ["", "-1"])
def test_gpus_that_the_user_hides_are_no_problem(nvidia_smi, monkeypatch, value):
    nvidia_smi(1)
    torch_is(monkeypatch, "2.7.1", "12.6", 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert gpu.survey().problem == ""
    assert str(gpu.survey()).endswith("hidden from torch by CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize("count", [0, None])
def test_without_a_gpu_or_with_a_driver_that_does_not_answer_nothing_is_wrong(nvidia_smi, count):
    nvidia_smi(count)
    assert (gpu.survey().problem, str(gpu.survey())) == ("", "GPU: nvidia-smi shows none")


def test_without_nvidia_smi_nothing_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.survey() == gpu.Gpus()


def test_without_torch_there_is_nothing_to_compare(nvidia_smi, monkeypatch):
    nvidia_smi(1)
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    assert gpu.survey().problem == ""
    assert str(gpu.survey()).endswith("torch is not installed")
