"""Time and memory of the training steps of this process. Imported by the arms, in every environment."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

MIB = 2**20


class Measured(Exception):  # noqa: N818
    """Raised after the last step, so that nothing is saved."""


class Meter:
    """Memory is counted above the loaded model and the built trainer; the peak is that of the measured steps.

    On a GPU it is what torch has allocated. On a CPU it is resident memory, whose high-water mark the kernel resets,
    without the pages of files: libraries are read in when a kernel is first used.
    """

    def __init__(self) -> None:
        self.on_gpu = torch.cuda.is_available()
        self.loaded = 0
        self.steps = 0
        self.began: tuple[float, float] | None = None

    def load(self, *models: Any) -> None:
        """Note the memory of the models. Weights that are mapped from a file are read first."""
        for model in filter(None, models):
            for parameter in model.parameters():
                parameter.detach().sum().item()
        gc.collect()
        if not self.on_gpu:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.loaded = torch.cuda.memory_allocated() if self.on_gpu else resident("RssAnon")

    def start(self) -> None:
        """Start to measure."""
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")
        self.began = (time.perf_counter(), time.process_time())

    def stop(self, steps: int) -> dict[str, Any]:
        """The measurement."""
        if self.on_gpu:
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
        if self.on_gpu:
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = resident("VmHWM") - resident("RssFile") - resident("RssShmem")
        return {
            "wall": wall,
            "cpu": cpu,
            "steps": steps,
            "MiB": (peak - self.loaded) / MIB,
            "model_MiB": self.loaded / MIB,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }


def resident(name: str) -> int:
    """A number of bytes of this process, such as VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def watch_trainer() -> Any:
    """Measure an epoch of any Trainer of transformers. Returns the callback that it needs.

    The first micro-batch is trained on once more before, as a warm-up without an optimizer step, so that every row of
    the data is in the measurement, whatever the order.
    """
    from transformers import Trainer, TrainerCallback

    meter, step = Meter(), Trainer.training_step

    def training_step(self: Any, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        if meter.began is None:
            meter.load(model, getattr(self, "ref_model", None))
            step(self, model, dict(inputs), *rest, **named)
            model.zero_grad()
            gc.collect()
            meter.start()
        return step(self, model, inputs, *rest, **named)

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            if state.global_step >= state.max_steps:
                raise Measured(meter.stop(state.global_step))

    Trainer.training_step = training_step
    return Stop()


def told(measured: Measured) -> None:
    """Print the measurement as the last line, and end the process without its clean-up."""
    print(json.dumps(measured.args[0]))
    sys.stdout.flush()
    os._exit(0)


def skipped(why: str) -> None:
    """Print why there is nothing to measure, as the last line."""
    print(json.dumps({"skipped": why}))
    sys.exit(0)
