"""What an install may move, the sets of exact versions, and which of them fits the driver of a machine."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MOVED_BY_HOSTS = {
    "torch",
    "torchvision",
    "torchaudio",
    "transformers",
    "accelerate",
    "peft",
    "llamafactory",
    "openrlhf",
}


def lock(name: str) -> dict[str, str]:
    lines = (ROOT / "locks" / f"{name}.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(package): version for package, version in pairs}


def test_an_install_without_an_extra_needs_nothing_of_a_host():
    assert not {Requirement(each).name for each in PROJECT["dependencies"]} & MOVED_BY_HOSTS


@pytest.mark.parametrize("extra", sorted({*PROJECT["optional-dependencies"]} - {"dev"}))
def test_an_extra_has_ranges_only_and_one_of_a_host_leaves_torch_alone(extra):
    requirements = [Requirement(each) for each in PROJECT["optional-dependencies"][extra]]
    assert not [str(each) for each in requirements for one in each.specifier if one.operator in {"==", "==="}]
    if extra in {"llamafactory", "openrlhf"}:
        assert "torch" not in {each.name for each in requirements}


@pytest.mark.parametrize("host", ["llamafactory", "openrlhf"])
def test_the_extra_of_a_host_admits_the_versions_of_its_patch_cards_and_of_every_lock(host):
    (requirement,) = (Requirement(each) for each in PROJECT["optional-dependencies"][host] if each.startswith(host))
    ranges = {tomllib.loads(path.read_text())["versions"] for path in (ROOT / "patches" / host).glob("*.toml")}
    assert {frozenset(each.split(",")) for each in ranges} == {frozenset(map(str, requirement.specifier))}
    for kind in ("cpu", "cu126", "cu128"):
        assert lock(f"{host}-{kind}")[host] in requirement.specifier


@pytest.mark.parametrize("kind", ["cu126", "cu128"])
@pytest.mark.parametrize("host", ["llamafactory", "openrlhf"])
def test_a_set_with_cuda_is_the_cpu_set_that_the_tests_ran_on_with_another_torch(host, kind):
    own = {"torch", "torchaudio", "triton", *(["deepspeed"] if host == "openrlhf" else [])}
    plain, built = lock(f"{host}-cpu"), lock(f"{host}-{kind}")
    assert {name: built.get(name) for name in plain if name not in own} == {
        name: version for name, version in plain.items() if name not in own
    }
    assert built["nvidia-cuda-runtime-cu12"].startswith(f"{kind[2:4]}.{kind[4:]}.")
    assert not [name for name in built if name.endswith("-cu13")]
    if host == "llamafactory":  # of one release, which no metadata asks for
        assert Version(built["torchaudio"]) == Version(built["torch"])
    assert {"bitsandbytes", "liger-kernel", "flash-attn"} <= built.keys()


@pytest.mark.parametrize(
    ("cuda", "capability", "ending"),
    [
        ("12.4", "8.0", "cu126"),
        ("13.0", "7.0", "cu126"),
        ("13.0", "9.0", "cu126"),
        ("12.8", "10.0", "cu128"),
        ("13.0", "12.0", "cu128"),
        ("fails", "", "cpu"),
    ],
)
def test_an_environment_is_made_from_the_set_that_driver_and_gpu_can_run(tmp_path, cuda, capability, ending):
    """12.8 is for Blackwell only: torch's wheels for it have no Volta (7.0)."""
    made = make(tmp_path, cuda, capability)
    assert made.stdout == f"making .venvs/llamafactory from locks/llamafactory-{ending}.txt\n"


def test_a_driver_older_than_every_set_is_told(tmp_path):
    made = make(tmp_path, "11.8", "7.0")
    assert (made.returncode, made.stdout) == (2, "")
    assert made.stderr == "the driver's CUDA (11.8) is older than 12: no set of versions fits it\n"


def make(folder: Path, cuda: str, capability: str) -> subprocess.CompletedProcess[str]:
    """scripts/make_env.sh in a copy, up to where it would install; nvidia-smi and Python are scripts."""
    for name in ("scripts", "locks"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    header = f"| NVIDIA-SMI 550.54.15   Driver Version: 550.54.15   CUDA Version: {cuda}     |"
    asked = f'if [ $# -gt 0 ]; then echo "{capability}"; else echo "{header}"; fi'
    scripts = {"python3.11": '[ "$1" = -c ]', "nvidia-smi": "exit 9" if cuda == "fails" else asked}
    (folder / "bin").mkdir()
    for name, text in scripts.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    path = f"{folder / 'bin'}:/usr/bin:/bin"
    return subprocess.run(
        ["bash", str(folder / "scripts" / "make_env.sh"), "llamafactory"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "MAKE_TERMOUT": ""},
    )


def test_the_package_is_written_in_the_oldest_python_that_it_supports():
    assert PROJECT["requires-python"] == ">=3.11"
    endings = (re.search(r"3\.\d+$", each) for each in PROJECT["classifiers"])
    assert {found[0] for found in endings if found} == {"3.11", "3.12", "3.13"}
    for path in (ROOT / "plugins").rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 11))
