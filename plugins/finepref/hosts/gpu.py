"""Does torch see the NVIDIA GPUs that the driver sees? If not, training would run on the CPU without a word."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec

HELP = "see docs/install.md, Drivers"
WAIT = 30
"""Seconds for nvidia-smi, which takes several on a machine with many GPUs."""


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """What the driver and torch say.

    Attributes:
        shown: number of GPUs that nvidia-smi lists; 0 without a driver.
        driver: version of the driver.
        driver_cuda: the newest CUDA that it supports, such as "12.4".
        hidden: CUDA_VISIBLE_DEVICES hides all of them, so that torch is meant to see none.
        torch: version of torch, "" if it is not installed.
        torch_cuda: CUDA that torch was built for, "" for a build without it.
        seen: number of GPUs that torch can use.
    """

    shown: int = 0
    driver: str = ""
    driver_cuda: str = ""
    hidden: bool = False
    torch: str = ""
    torch_cuda: str = ""
    seen: int = 0

    @property
    def problem(self) -> str:
        """Why torch sees none of the GPUs, "" if it sees one or is not meant to."""
        if not self.shown or self.seen or self.hidden or not self.torch:
            return ""
        found = f"nvidia-smi shows {self.shown} GPU{'s' * (self.shown > 1)} (driver {self.driver}, for CUDA up to "
        found += f"{self.driver_cuda}), but torch {self.torch}"
        if not self.torch_cuda:
            return f"{found} is built without CUDA: training would run on the CPU; install a torch with CUDA, {HELP}"
        found = f"{found} (CUDA {self.torch_cuda}) sees none: training would run on the CPU"
        if _number(self.torch_cuda)[0] > _number(self.driver_cuda)[0]:
            return f"{found}; install a newer driver, or a torch for CUDA {_number(self.driver_cuda)[0]}, {HELP}"
        return f"{found}; {HELP}"

    def __str__(self) -> str:
        """One line."""
        if self.problem:
            return self.problem
        if not self.shown:
            return "GPU: nvidia-smi shows none"
        line = f"GPU: {self.shown}, driver {self.driver} (CUDA up to {self.driver_cuda})"
        if not self.torch:
            return f"{line}; torch is not installed"
        if self.hidden:
            return f"{line}; hidden from torch by CUDA_VISIBLE_DEVICES"
        return f"{line}; torch {self.torch} (CUDA {self.torch_cuda}) sees {self.seen}"


def survey() -> Gpus:
    """Ask nvidia-smi, and torch if it is installed. Imports torch only if there is a GPU."""
    shown, driver, driver_cuda = _driver()
    if not shown:
        return Gpus()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}
    if find_spec("torch") is None:
        return Gpus(shown=shown, driver=driver, driver_cuda=driver_cuda, hidden=hidden)
    import torch

    return Gpus(
        shown=shown,
        driver=driver,
        driver_cuda=driver_cuda,
        hidden=hidden,
        torch=torch.__version__,
        torch_cuda=torch.version.cuda or "",
        seen=torch.cuda.device_count() if torch.cuda.is_available() else 0,
    )


def _driver() -> tuple[int, str, str]:
    """Number of GPUs, version of the driver and of its CUDA, by nvidia-smi; 0 GPUs if it is not there or fails."""
    if shutil.which("nvidia-smi") is None:
        return 0, "", ""
    outputs = []
    for arguments in ([], ["-L"]):
        try:
            done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=WAIT, check=True)
        except (OSError, subprocess.SubprocessError):
            return 0, "", ""
        outputs.append(done.stdout)
    header, listed = outputs
    versions = [re.search(rf"{name} Version: *([\d.]+)", header) for name in ("Driver", "CUDA")]
    driver, cuda = (found[1] if found else "unknown" for found in versions)
    return len(re.findall(r"^GPU \d+:", listed, re.MULTILINE)), driver, cuda


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version))) or (0,)
