"""Checks before OpenRLHF runs: the arguments fit together, the patch cards hold, the host can be imported."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, Protocol

from finepref import stages
from finepref.hosts import patching
from finepref.hosts.missing_model import missing_model_hint
from finepref.hosts.openrlhf import compat

HIDDEN = "hidden"


class Request(Protocol):
    """The part of a `command_line.Request` that `check` reads."""

    stage: stages.Stage
    host: Any
    attention: str


def check(request: Request) -> None:
    """Check the arguments, adapt the host to this machine, and check the patch cards.

    Raises:
        HostDrift: a card of the stage is not in place.
        ValueError, FileNotFoundError: one line naming the flag or the folder.
    """
    args = request.host
    if "RANK" not in os.environ:
        start_alone()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    _check_arguments(args, processes)
    hide_key(args.logger.wandb)
    compat.install()
    if not compat.has_flash_attn() or compat.is_cpu():
        args.ds.attn_implementation = request.attention
    patching.require(request.stage.openrlhf_cards, needed_by=request.stage.command)
    compat.require_sound_deepspeed(args.ds.zero_stage, processes)
    compat.allow_fp32()


def start_alone() -> None:
    """Set a launcher's variables for a single process; without them DeepSpeed would look for MPI."""
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        port = listening.getsockname()[1]
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in alone.items()})


def _check_arguments(args: Any, processes: int) -> None:
    needed = {"model.model_name_or_path": args.model.model_name_or_path, "data.dataset": args.data.dataset}
    for flag, value in needed.items():
        if not value:
            raise ValueError(f"--{flag} is missing")
    reference = args.ref.model_name_or_path if hasattr(args, "ref") else None
    for path in filter(None, (args.model.model_name_or_path, reference)):
        if hint := missing_model_hint(path):
            raise FileNotFoundError(hint)
    _refuse_adapter(args.model.model_name_or_path, "--model.model_name_or_path")
    if reference and Path(reference, "config.json").is_file():
        _refuse_adapter(reference, "--ref.model_name_or_path")
    per_step = args.train.micro_batch_size * processes
    samples = args.train.batch_size * args.ds.ring_attn_size * args.ds.tensor_parallel_size
    if args.train.batch_size < 1 or samples % per_step:
        raise ValueError(
            f"--train.batch_size {args.train.batch_size} is not a multiple of --train.micro_batch_size "
            f"{args.train.micro_batch_size} on each of {processes} processes"
        )


def _refuse_adapter(path: str, flag: str) -> None:
    """Refuse a folder with an adapter: the host trains another one instead of it, or fails.

    The adapters that the host itself saves have a config.json beside them, which transformers then takes for a model.
    """
    file = Path(path, "adapter_config.json")
    if not file.is_file():
        return
    base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path", "BASE")
    raise ValueError(
        f"{flag} {path} is an adapter, which OpenRLHF does not train further; merge it first, with "
        f"`python -m openrlhf.cli.lora_combiner --model_path {base} --lora_path {path} --output_path MERGED`"
    )


def hide_key(wandb: Any) -> None:
    """Pass wandb's key by its environment variable, and remove it from the arguments.

    The host writes its arguments into wandb's config, and wandb records the command line; the key must be in neither.
    """
    if wandb.key:
        os.environ["WANDB_API_KEY"] = wandb.key
        sys.argv = [argument.replace(wandb.key, HIDDEN) for argument in sys.argv]
        wandb.key = HIDDEN
