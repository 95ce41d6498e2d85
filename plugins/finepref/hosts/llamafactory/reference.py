"""The reference model of a run on LLaMA-Factory: which one it is, and the one that the host does not have.

If a run continues an adapter (`adapter_name_or_path` without `create_new_adapter`), the host takes the base model
below that adapter as reference, so that the policy is away from its reference before the first step. The methods start
at the reference (loss ln 2). Here it is the model with the adapter as it was loaded.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from llamafactory.extras import logging

from finepref.hosts.foreign import require_same_tokens
from finepref.hosts.model_identity import identity

logger = logging.get_logger("llamafactory.finepref")  # the host shows what is below its own name

SHARED = {
    "base": "the model with its adapter switched off",
    "adapter": "the model with the adapter that is trained further, as it was loaded",
}
NO_COPY = (
    "the run continues the adapter {adapter}, and under {what} it cannot keep a copy of it as reference: set "
    "`ref_model: {model}` and `ref_model_adapters: {adapter}`"
)


PEFT = ("lora", "oft")
"""Values of `finetuning_type` with which the model below the adapter stays as it is."""


class Choice(NamedTuple):
    """Which model is the reference.

    Attributes:
        kind: "none"; "itself", the policy, in an evaluation; "base", the policy with its adapter switched off;
            "adapter", the policy with its adapter as it was loaded (`Frozen`); "model", a second model.
        path: of the model.
        adapters: those that are merged into it or put on it.
    """

    kind: str
    path: str | None = None
    adapters: tuple[str, ...] = ()


def choose(args: Any, *, needed: bool, shared: bool = True) -> Choice:
    """The reference of a run, without a second model where the policy has one below or in its adapter.

    Args:
        args: the run's `HostArguments`.
        needed: whether the stage's loss reads a reference model.
        shared: whether the trainer can use the policy without its adapter; else a `ref_model` is always loaded.
    """
    model, finetuning = args.model, args.finetuning
    path, adapters = model.model_name_or_path, _names(model.adapter_name_or_path)
    if not needed:
        return Choice("none")
    if not args.training.do_train and finetuning.ref_model is None:
        return Choice("itself", path, adapters)
    merged, resumed = _split(args)
    peft = finetuning.finetuning_type in PEFT and args.training.do_train
    if finetuning.ref_model is None:
        if not peft:
            return Choice("model", path, adapters)
        asked = (path, adapters)
    else:
        given = Choice("model", finetuning.ref_model, _names(finetuning.ref_model_adapters))
        quantised = finetuning.ref_model_quantization_bit, model.quantization_bit
        if not (peft and shared and _same(given.path, path) and quantised[0] == quantised[1]):
            return given
        asked = (given.path, given.adapters)
    if _all_same(asked[1], merged) and (finetuning.ref_model is not None or not resumed):
        return Choice("base", path, merged)
    elif (
        resumed and _all_same(asked[1], adapters) and not (finetuning.ref_model is not None and sharded(args.training))
    ):
        return Choice("adapter", path, adapters)
    return Choice("model", *asked)


def _split(args: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The adapters that the host merges into the model, and the one that it trains further, if it does."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    model, adapters = args.model, _names(args.model.adapter_name_or_path)
    # the host merges all adapters before it makes a new one, unless the model cannot be merged with them
    unmergeable = model.quantization_bit is not None or is_deepspeed_zero3_enabled() or model.use_kt
    if args.finetuning.create_new_adapter and not (unmergeable or model.use_unsloth):
        return adapters, ()
    return adapters[:-1], adapters[-1:]


def _same(one: str, other: str) -> bool:
    """Whether two models are the same folder, or have the same name on the hub."""
    return one == other or (os.path.isdir(one) and os.path.realpath(one) == os.path.realpath(other))


def _all_same(some: tuple[str, ...], others: tuple[str, ...]) -> bool:
    return len(some) == len(others) and all(map(_same, some, others))


def describe(args: Any, *, needed: bool, shared: bool = True) -> dict[str, Any]:
    """The receipt's entry `reference` (see `finepref.hosts.run_setup.Setup`), of what `choose` chooses."""
    chosen = choose(args, needed=needed, shared=shared)
    return {
        "kind": chosen.kind,
        "model": identity(chosen.path) if chosen.path else None,
        "adapters": [identity(name) for name in chosen.adapters],
    }


def _names(adapters: Any) -> tuple[str, ...]:
    """Adapters as a tuple: the host makes a list of some of its keys, and leaves others as text."""
    if not adapters:
        return ()
    return tuple(name.strip() for name in adapters.split(",")) if isinstance(adapters, str) else tuple(adapters)


def continues_adapter(args: Any) -> bool:
    """Whether the run trains the last adapter of `adapter_name_or_path` further, without a reference model given."""
    finetuning = args.finetuning
    return finetuning.finetuning_type in PEFT and finetuning.ref_model is None and bool(_split(args)[1])


def sharded(training_args: Any) -> str:
    """What keeps the weights in shards, "" if nothing does."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    return "DeepSpeed ZeRO-3" if is_deepspeed_zero3_enabled() else "FSDP" if under_fsdp(training_args) else ""


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
    if what := sharded(args.training):
        adapter = ",".join(_names(args.model.adapter_name_or_path))
        raise ValueError(NO_COPY.format(adapter=adapter, what=what, model=args.model.model_name_or_path))


def refuse_foreign(args: Any, tokenizer: Any) -> None:
    """Refuse a `ref_model` that reads other tokens than the model.

    Raises:
        ValueError: one line that names the key.
    """
    if args.finetuning.ref_model is not None:
        require_same_tokens(tokenizer, args.finetuning.ref_model, key="ref_model")


@contextmanager
def reference_model(trainer: Any, model: Any) -> Iterator[Any]:
    """The reference of a trainer, without gradients: a second model, the base model, or the adapter as it was loaded.

    Args:
        trainer: has the host's `ref_model` and `accelerator`, and `frozen`, a `Frozen` or None.
        model: the policy, as the host has wrapped it.
    """
    if trainer.frozen is not None:
        chosen, base = model, trainer.frozen.in_place()
    elif trainer.ref_model is None:
        chosen, base = model, trainer.accelerator.unwrap_model(model).disable_adapter()
    else:
        chosen, base = trainer.ref_model, nullcontext()
    with torch.no_grad(), base:
        yield chosen


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


def make(model: Any, args: Any, *, shared: bool = True) -> tuple[Any, Frozen | None]:
    """The reference model by the host's own function, and the weights that are kept for it.

    The model is None if the reference is the policy, with its adapter switched off or with the kept weights.
    The host's function fails if the model gets new tokens, since it splits their list again, and would give them
    other random embeddings in the reference. Here both have the same.

    Raises:
        ValueError: new tokens, and the model's weights are sharded.
    """
    from llamafactory.train.trainer_utils import create_ref_model
    from transformers.integrations import is_deepspeed_zero3_enabled

    chosen, key = choose(args, needed=True, shared=shared), args.finetuning.ref_model is not None
    if chosen.kind in SHARED:
        more = "`ref_model` is the model itself." if key else "Set `ref_model` for another one."
        logger.info_rank0(f"The reference is {SHARED[chosen.kind]}; no second model is loaded. {more}")
        return None, Frozen(model) if chosen.kind == "adapter" else None
    given = copy.copy(args.model)
    for name in ("adapter_name_or_path", "add_tokens", "add_special_tokens"):
        if isinstance(getattr(given, name), list):
            setattr(given, name, ",".join(getattr(given, name)))
    adds = given.add_tokens or given.add_special_tokens
    if adds and not key and is_deepspeed_zero3_enabled():
        raise ValueError(
            "`add_tokens` under DeepSpeed ZeRO-3 gives model and reference different embeddings of the new tokens: "
            "save the model with its new tokens first"
        )
    reference = create_ref_model(given, args.finetuning)
    if adds and not key and reference is not None:
        reference.load_state_dict(model.state_dict())
    return reference, None
