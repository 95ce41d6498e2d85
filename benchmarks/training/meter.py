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
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt


class Measured(Exception):  # noqa: N818
    """Raised after the last step, so that nothing is saved."""


class Meter:
    """First the peak of memory, above the loaded model and the built trainer, in steps that are not timed; then time.

    On a GPU memory is what torch has allocated. On a CPU it is resident memory, whose high-water mark the kernel
    resets, without the pages of files: libraries are read in when a kernel is first used. The C library keeps freed
    memory, 0.4 to 0.7 GiB in these steps. So while memory is watched, blocks of 1 MiB and more go back at once; in the
    timed steps those of 32 MiB and more, as it is without a benchmark after the first large block.
    """

    def __init__(self) -> None:
        self.on_gpu = torch.cuda.is_available()
        self.loaded = self.peak = 0
        self.steps = 0
        self.began: tuple[float, float] | None = None

    def load(self, *models: Any) -> None:
        """Note the memory of the models, whose mapped files are read first, and watch it from here."""
        for model in filter(None, models):
            for parameter in model.parameters():
                parameter.detach().sum().item()
        gc.collect()
        if self.on_gpu:
            self.loaded = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            return
        gives_back(MIB)
        self.loaded = resident("RssAnon")
        Path("/proc/self/clear_refs").write_text("5")

    def start(self) -> None:
        """Note the peak of memory, and start to measure time."""
        if self.on_gpu:
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated()
        else:
            self.peak = resident("VmHWM") - resident("RssFile") - resident("RssShmem")
            gives_back(32 * MIB)
        self.began = (time.perf_counter(), time.process_time())

    def stop(self, steps: int) -> dict[str, Any]:
        """The measurement."""
        if self.on_gpu:
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
        return {
            "wall": wall,
            "cpu": cpu,
            "steps": steps,
            "MiB": (self.peak - self.loaded) / MIB,
            "model_MiB": self.loaded / MIB,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }


def gives_back(size: int) -> None:
    """From now on the C library gives blocks of this many bytes and more back when they are freed."""
    library = ctypes.CDLL("libc.so.6")
    library.mallopt(M_MMAP_THRESHOLD, size)
    library.mallopt(M_TRIM_THRESHOLD, 2 * size)
    library.malloc_trim(0)


def resident(name: str) -> int:
    """A number of bytes of this process, such as VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def watch_trainer() -> Any:
    """Measure an epoch of any Trainer of transformers. Returns the callback that it needs.

    Before it, all of its micro-batches are trained on without an optimizer step, as a warm-up and for the memory.
    """
    from transformers import Trainer, TrainerCallback

    meter, step = Meter(), Trainer.training_step

    def training_step(self: Any, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        if meter.began is None:
            batches = [*self.get_train_dataloader()]
            meter.load(model, getattr(self, "ref_model", None))
            for batch in batches:
                step(self, model, batch, *rest, **named)
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
