"""Adapts OpenRLHF to machines without flash-attn or without a GPU. Only names in OpenRLHF's own modules are rebound.

`without_flash_attn` acts if flash-attn is not installed: OpenRLHF imports four of its functions for packing, which are
plain indexing. `on_cpu` acts if DeepSpeed runs on the CPU: OpenRLHF calls torch.cuda in places where neither DeepSpeed
nor torch.distributed needs it. On other machines nothing is changed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import wraps
from types import ModuleType, SimpleNamespace
from typing import Any

from finepref.hosts.patching import HostDrift

RING = "openrlhf.models.ring_attn_utils"


def install() -> None:
    """Adapt OpenRLHF to this machine. Must run before any other module of OpenRLHF is imported."""
    without_flash_attn()
    on_cpu()


def has_flash_attn() -> bool:
    """Whether flash-attn is installed."""
    return importlib.util.find_spec("flash_attn") is not None


def without_flash_attn() -> None:
    """Make `openrlhf.models` importable without flash-attn, which sdpa and eager attention do not use."""
    if has_flash_attn() or RING in sys.modules:
        return
    import torch  # before the stand-ins are installed, since no other library may see them

    stand_ins = _flash_attn(torch)
    spec = importlib.util.spec_from_file_location(RING, file_of(RING))
    module = importlib.util.module_from_spec(spec)
    sys.modules.update(stand_ins)
    try:
        spec.loader.exec_module(module)
    finally:
        for name in stand_ins:
            del sys.modules[name]
    sys.modules[RING] = module


def file_of(name: str) -> str:
    """The file of an OpenRLHF module, without importing its package.

    Raises:
        HostDrift: OpenRLHF is not installed.
    """
    host = importlib.util.find_spec("openrlhf")
    if host is None:
        raise HostDrift("openrlhf is not installed in this environment")
    (folder,) = host.submodule_search_locations
    return "/".join((folder, *name.split(".")[1:])) + ".py"


def _flash_attn(torch: Any) -> dict[str, ModuleType]:
    """The four functions that OpenRLHF imports, on tensors flattened to [batch * length, ...]."""
    from einops import rearrange

    def index_first_axis(x, indices):
        return x[indices]

    def unpad_input(hidden, attention_mask):
        lengths = attention_mask.sum(-1, dtype=torch.int32)
        indices = attention_mask.flatten().nonzero().flatten()
        starts = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return hidden.flatten(0, 1)[indices], indices, starts, int(lengths.max()), lengths

    def pad_input(hidden, indices, batch, length):
        flat = hidden.new_zeros(batch * length, *hidden.shape[1:]).index_copy(0, indices, hidden)
        return flat.unflatten(0, (batch, length))

    def all_gather(*arguments):
        raise RuntimeError("ring attention needs flash-attn and ring-flash-attn")

    names = ("flash_attn", "flash_attn.bert_padding", "flash_attn.utils", "flash_attn.utils.distributed")
    modules = {name: ModuleType(name) for name in names}
    padding = {"index_first_axis": index_first_axis, "unpad_input": unpad_input, "pad_input": pad_input}
    vars(modules[names[1]]).update(padding, rearrange=rearrange)
    vars(modules[names[3]]).update(all_gather=all_gather)
    return modules


def is_cpu() -> bool:
    """Whether DeepSpeed runs on the CPU."""
    from deepspeed.accelerator import get_accelerator

    return get_accelerator().device_name() == "cpu"


def on_cpu() -> None:
    """Make OpenRLHF's DeepSpeed strategy run on the CPU, without compiled DeepSpeed operators."""
    if not is_cpu():
        return
    import deepspeed.ops
    import torch
    from openrlhf.utils.deepspeed import deepspeed as strategy

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    strategy.torch = _View(
        torch,
        cuda=_View(
            torch.cuda,
            set_device=lambda device: None,
            current_device=lambda: torch.device("cpu"),
            empty_cache=lambda: None,
            synchronize=lambda: None,
        ),
    )
    mesh = torch.distributed.device_mesh.init_device_mesh
    strategy.init_device_mesh = lambda device, shape, **names: mesh("cpu", shape, **names)
    strategy.torch_dist_barrier_and_cuda_sync = torch.distributed.barrier
    config = strategy.DeepspeedStrategy.get_ds_train_config

    @wraps(config)
    def with_torch_adam(self: Any, optim_dict: dict[str, Any] | None = None, **rest: Any) -> Any:
        if optim_dict is not None and optim_dict["type"] == "AdamW":
            optim_dict = {**optim_dict, "params": {**optim_dict["params"], "torch_adam": True}}
        return config(self, optim_dict, **rest)

    strategy.DeepspeedStrategy.get_ds_train_config = with_torch_adam


class _View(SimpleNamespace):
    """Another object with some of its attributes replaced."""

    def __init__(self, behind: Any, **own: Any) -> None:
        super().__init__(behind=behind, **own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)


def require_sound_deepspeed(zero_stage: int, world_size: int) -> None:
    """Refuse a DeepSpeed that corrupts weights.

    Raises:
        ValueError: ZeRO-3 over gloo with DeepSpeed before 0.19.8, which waited only for the last of several gathers.
    """
    import deepspeed
    from packaging.version import Version

    if zero_stage == 3 and world_size > 1 and is_cpu() and Version(deepspeed.__version__) < Version("0.19.8"):
        raise ValueError(
            f"DeepSpeed {deepspeed.__version__} corrupts ZeRO-3 weights on the CPU at random: install 0.19.8 or newer"
        )


def allow_fp32() -> None:
    """Let the host's models be loaded in float32, for tests and comparisons."""
    import torch
    from openrlhf.utils import utils

    convert = utils.convert_to_torch_dtype
    utils.convert_to_torch_dtype = lambda name: torch.float32 if name == "fp32" else convert(name)
