"""The reference model of a run on LLaMA-Factory: which one it is, and the one that the host does not have.

If a run continues an adapter (`adapter_name_or_path` without `create_new_adapter`), the host takes the base model
below that adapter as reference, so that the policy is away from its reference before the first step. The methods start
at the reference (loss ln 2). Here it is the model with the adapter as it was loaded.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from finepref.hosts.foreign import require_same_tokens
from finepref.hosts.model_identity import identity

NO_COPY = (
    "the run continues the adapter {adapter}, and under {what} it cannot keep a copy of it as reference: set "
    "`ref_model: {model}` and `ref_model_adapters: {adapter}`"
)


def describe(args: Any, *, needed: bool) -> dict[str, Any]:
    """The receipt's entry `reference` (see `finepref.hosts.run_setup.Setup`).

    Args:
        args: the run's `HostArguments`.
        needed: whether the stage's loss reads a reference model.
    """
    asked, model = args.finetuning.ref_model, args.model.model_name_or_path
    adapters: list[str] = []
    if not needed:
        kind, path = "none", None
    elif asked is not None:
        kind, path = "model", asked
        adapters = _names(args.finetuning.ref_model_adapters)
    elif not args.training.do_train:
        kind, path, adapters = "itself", model, _names(args.model.adapter_name_or_path)
    elif continues_adapter(args):
        kind, path, adapters = "adapter", model, _names(args.model.adapter_name_or_path)
    else:
        kind = "base" if args.finetuning.finetuning_type == "lora" else "model"
        path, adapters = model, _names(args.model.adapter_name_or_path)
    return {"kind": kind, "model": identity(path) if path else None, "adapters": [identity(name) for name in adapters]}


def _names(adapters: Any) -> list[str]:
    """Adapters as a list: the host makes one of some of its keys, and leaves others as text."""
    if not adapters:
        return []
    return [name.strip() for name in adapters.split(",")] if isinstance(adapters, str) else list(adapters)


def continues_adapter(args: Any) -> bool:
    """Whether the run trains the last adapter of `adapter_name_or_path` further, without a reference model given."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    model, finetuning = args.model, args.finetuning
    if finetuning.finetuning_type != "lora" or not model.adapter_name_or_path or finetuning.ref_model is not None:
        return False
    # the host merges the adapter into the model before it makes a new one, unless the model cannot be merged with it
    unmergeable = model.quantization_bit is not None or is_deepspeed_zero3_enabled() or model.use_kt
    return not finetuning.create_new_adapter or unmergeable or model.use_unsloth


def refuse_missing(args: Any, *, needed: bool) -> None:
    """Refuse the host's ASFT loss with LoRA and no `ref_model`: the host calls a reference model that is not there.

    Raises:
        ValueError: one line that names the keys.
    """
    lora = args.finetuning.finetuning_type == "lora"
    if needed and lora and args.training.do_train and args.finetuning.ref_model is None:
        raise ValueError(f"`use_asft_loss` with LoRA needs `ref_model`, such as {args.model.model_name_or_path}")


def under_fsdp(training_args: Any) -> bool:
    """Whether the weights will be sharded by FSDP, asked for by accelerate's launcher or the host's key `fsdp`."""
    return bool(training_args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def refuse_sharded(args: Any) -> None:
    """Refuse a run whose reference would be a copy of sharded weights.

    Raises:
        ValueError: one line that names the keys.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    what = "DeepSpeed ZeRO-3" if is_deepspeed_zero3_enabled() else "FSDP" if under_fsdp(args.training) else ""
    if what:
        adapter = ",".join(_names(args.model.adapter_name_or_path))
        raise ValueError(NO_COPY.format(adapter=adapter, what=what, model=args.model.model_name_or_path))


def refuse_foreign(args: Any, tokenizer: Any) -> None:
    """Refuse a `ref_model` that reads other tokens than the model.

    Raises:
        ValueError: one line that names the key.
    """
    if args.finetuning.ref_model is not None:
        require_same_tokens(tokenizer, args.finetuning.ref_model, key="ref_model")


class Frozen:
    """The trainable weights of a model as they are now. They are neither trained nor saved, nor part of the model."""

    def __init__(self, model: Any) -> None:
        self.weights = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the `with` block, the model has these weights. Only forward passes without gradients may be in it."""
        trained = [parameter.data for parameter, _ in self.weights]
        try:
            for index, (parameter, kept) in enumerate(self.weights):
                if (kept.dtype, kept.device) != (parameter.dtype, parameter.device):
                    kept = kept.to(parameter)  # DeepSpeed and the trainer move and cast the model later
                    self.weights[index] = parameter, kept
                parameter.data = kept
            with torch.no_grad():
                yield
        finally:
            for (parameter, _), data in zip(self.weights, trained, strict=True):
                parameter.data = data


def make(model: Any, args: Any) -> Any:
    """The reference model by the host's own function; None if it is the model itself without its adapter.

    The host's function fails if the model gets new tokens, since it splits their list again, and would give them
    other random embeddings in the reference. Here both have the same.

    Raises:
        ValueError: new tokens, and the model's weights are sharded.
    """
    from llamafactory.train.trainer_utils import create_ref_model
    from transformers.integrations import is_deepspeed_zero3_enabled

    given = copy.copy(args.model)
    for key in ("adapter_name_or_path", "add_tokens", "add_special_tokens"):
        if isinstance(getattr(given, key), list):
            setattr(given, key, ",".join(getattr(given, key)))
    adds = given.add_tokens or given.add_special_tokens
    own = args.finetuning.ref_model is None
    if adds and own and args.finetuning.finetuning_type != "lora" and is_deepspeed_zero3_enabled():
        raise ValueError(
            "`add_tokens` under DeepSpeed ZeRO-3 gives model and reference different embeddings of the new tokens: "
            "save the model with its new tokens first"
        )
    reference = create_ref_model(given, args.finetuning)
    if adds and own and reference is not None:
        reference.load_state_dict(model.state_dict())
    return reference
