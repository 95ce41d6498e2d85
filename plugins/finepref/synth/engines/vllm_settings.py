"""vLLM's settings for a model in this process, of the engine and of the scorer."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import EngineArgs


def engine_args(model: str, **options: Any) -> EngineArgs:
    """vLLM's settings for a model in this process, in the checkpoint's number format unless another is given.

    Raises:
        ValueError: vLLM has no such option.
    """
    # In this process: no child survives a kill, and the schedule depends on the requests only.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from transformers import AutoConfig
    from vllm import EngineArgs

    if unknown := options.keys() - {each.name for each in fields(EngineArgs)}:
        raise ValueError(f"vLLM has no option {', '.join(sorted(unknown))}")
    config = AutoConfig.from_pretrained(model)
    dtype = str(config.dtype).removeprefix("torch.") if config.dtype else "auto"
    quiet = {"disable_log_stats": True, "use_tqdm_on_load": False, "skip_tokenizer_init": True}
    return EngineArgs(model=model, generation_config="vllm", **({"dtype": dtype} | quiet | options))
