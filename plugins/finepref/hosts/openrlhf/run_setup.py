"""The receipt's entry `run` of a training on OpenRLHF, and the checkpoint that it resumes from."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from finepref.hosts.foreign import require_same_tokens
from finepref.hosts.model_identity import identity
from finepref.hosts.openrlhf.command_line import Request
from finepref.hosts.run_setup import Setup, command
from finepref.methods.pair_rows import fingerprint


def resumed_from(args: Any) -> Path | None:
    """The checkpoint that the host is going to load, None if it starts anew.

    Args:
        args: the host's arguments.
    """
    latest = Path(args.ckpt.path, "latest")
    if not args.ckpt.load_enable or not latest.is_file():
        return None
    return latest.with_name(latest.read_text(encoding="utf-8").strip())


def shares_reference(args: Any) -> bool:
    """Whether the reference model is the model below the new LoRA adapter, so that no second one is needed.

    Args:
        args: the host's arguments.
    """
    return bool(args.ds.lora.rank) and same_model(args)


def same_model(args: Any) -> bool:
    """Whether the reference is the model that is trained, by its name or folder.

    Args:
        args: the host's arguments.
    """
    reference, model = args.ref.model_name_or_path, args.model.model_name_or_path
    same_folder = os.path.isdir(reference) and os.path.realpath(reference) == os.path.realpath(model)
    return bool(reference == model or same_folder)


def setup_of(request: Request) -> Setup:
    """Describe a run.

    Raises:
        ValueError: the reference model reads other tokens than the model.
    """
    from openrlhf.utils import get_tokenizer

    args, lora = request.host, request.host.ds.lora
    path = args.model.model_name_or_path
    tokenizer = get_tokenizer(path, None, "right", None, use_fast=not args.data.disable_fast_tokenizer)
    needs_reference = request.stage.needs_reference(request.options)
    if needs_reference and args.ref.model_name_or_path != path:
        require_same_tokens(tokenizer, args.ref.model_name_or_path, key="--ref.model_name_or_path")
    chat = args.data.tokenizer_chat_template or tokenizer.chat_template
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    copies = args.ds.ring_attn_size * args.ds.tensor_parallel_size
    muon = args.optim == "muon"
    return Setup(
        host="openrlhf",
        purposes=["train", "evaluate"] if args.eval.dataset else ["train"],
        model=identity(path),
        adapters=[],
        reference={
            "kind": "none" if not needs_reference else "base" if shares_reference(args) else "model",
            "model": identity(args.ref.model_name_or_path) if needs_reference else None,
            "adapters": [],
        },
        tokenizer=fingerprint(tokenizer),
        template=None,
        input_template=None if args.data.apply_chat_template else args.data.input_template,
        chat_template_sha256=hashlib.sha256(chat.encode()).hexdigest() if args.data.apply_chat_template else None,
        cutoff_len=args.data.max_len,
        datasets=_names(args.data.dataset),
        eval_datasets=_names(args.eval.dataset),
        finetuning={
            "type": "lora" if lora.rank else "full",
            "rank": lora.rank or None,
            "alpha": lora.alpha if lora.rank else None,
            "dropout": lora.dropout if lora.rank else None,
            "target": _joined(lora.target_modules) if lora.rank else None,
            "quantization_bit": 4 if args.ds.load_in_4bit else None,
        },
        optimizer={
            "name": args.optim,
            "learning_rate": args.muon.lr if muon else args.adam.lr,
            "schedule": args.lr_scheduler,
            "warmup_steps": None,
            "warmup_ratio": args.lr_warmup_ratio,
            "min_lr_ratio": args.min_lr_ratio,
            "weight_decay": args.adam.weight_decay,
            "betas": [*args.adam.betas],
            "max_grad_norm": args.max_norm,
        },
        batch={
            "per_device": args.train.micro_batch_size,
            "accumulation": args.train.batch_size * copies // (args.train.micro_batch_size * processes),
            "processes": processes,
            "total": args.train.batch_size,
        },
        epochs=args.train.max_epochs,
        max_steps=None,
        precision=args.ds.param_dtype,
        command=command(sys.argv, request.given),
    )


def _names(names: str | None) -> list[str]:
    """The data sets by the names that the receipt has: a file without its folders."""
    return [Path(name.strip()).name for name in names.split(",")] if names else []


def _joined(modules: Any) -> str:
    return modules if isinstance(modules, str) else ",".join(modules)
