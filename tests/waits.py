"""Where a training step would make the CPU wait for an accelerator, found on a CPU.

An operation waits if the size of its result depends on values, or if it gives a Python number. `Waits` notes these of
any code. `Elsewhere` runs code on tensors of the device "meta", which have no values: what asks for one fails, and so
does what mixes them with tensors that lie on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import finepref
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OURS = str(Path(finepref.__file__).parent)
TORCH = str(Path(torch.__file__).parent)
ASKING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "masked_scatter_backward",
    "equal",
    "_unique2",
    "unique_dim",
    "repeat_interleave",
}
MADE = {"lift_fresh", "lift_fresh_copy"}  # torch.tensor([...]): on an accelerator a copy that is waited for
LOGGING = {"log", "save_logs_and_checkpoints", "write_receipt", "rank_report", "evaluate"}
ONCE = {"_trial"}  # of a model, at the first step
LOADER = str(Path(TORCH, "utils", "data"))  # what a collator does is done on the CPU, beside the accelerator's work


def waits(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an operation of ATen would wait."""
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        masks = any(isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        return masks and (name == "index" or args[2].numel() != 1)  # one value: masked_fill
    return name in ASKING or name in MADE


class Waits(TorchDispatchMode):
    """Notes what waits, outside logging, data loaders and what runs once.

    Attributes:
        ours: of finepref's code, as "file:line operation".
        backward: of backward passes, outside recomputed code.
        others: of the host's and of any other code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ours: list[str] = []
        self.backward: list[str] = []
        self.others: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if waits(name, args):
            self.note(name)
        return function(*args, **(kwargs or {}))

    def note(self, name: str) -> None:
        """Note an operation at the place in the code that is nearest to it."""
        frame, near = sys._getframe(1), None
        backward = False
        while frame is not None:
            file = frame.f_code.co_filename
            if frame.f_code.co_name in LOGGING | ONCE or file.startswith(LOADER):
                return
            backward = backward or (near is None and frame.f_code.co_name == "_engine_run_backward")
            if near is None and file != __file__ and not file.startswith(TORCH):
                near = f"{Path(file).name}:{frame.f_lineno} {name}", file.startswith(OURS)
            frame = frame.f_back
        place, mine = near or ("?", False)
        if mine and not backward:
            self.ours.append(place)
        elif name not in MADE:
            (self.backward if backward else self.others).append(place)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Within the `with` block operations are noted, and `tolist`, `numpy` and `cpu` too, which are none."""
        plain = {name: getattr(torch.Tensor, name) for name in ("tolist", "numpy", "cpu")}

        def noted(name: str):
            def method(tensor, *args, **kwargs):
                self.note(name)
                return plain[name](tensor, *args, **kwargs)

            return method

        for name in plain:
            setattr(torch.Tensor, name, noted(name))
        try:
            with self:
                yield
        finally:
            for name, method in plain.items():
                setattr(torch.Tensor, name, method)


class Elsewhere(TorchDispatchMode):
    """Fails where tensors of two devices meet, and where a copy to the accelerator is waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.dim()}
        if len(devices) > 1:
            raise AssertionError(f"{function} gets tensors of {sorted(devices)}")
        target = (kwargs or {}).get("device")
        if devices == {"cpu"} and str(target) == "meta" and not kwargs.get("non_blocking"):
            raise AssertionError(f"{function} copies to the accelerator and waits for it")
        return function(*args, **(kwargs or {}))


def moved(batch: Any) -> Any:
    """A batch as a host moves it to the accelerator: tensors to the device "meta", anything else as it is."""
    if isinstance(batch, torch.Tensor):
        return batch.to("meta")
    if isinstance(batch, Mapping):
        return {name: moved(value) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(moved, batch))
    return batch
