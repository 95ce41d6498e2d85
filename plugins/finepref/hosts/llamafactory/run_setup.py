"""The receipt's entry `run` of a training on LLaMA-Factory."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

from finepref.hosts.llamafactory import reference
from finepref.hosts.model_identity import identity
from finepref.hosts.run_setup import Setup, command
from finepref.methods.pair_rows import fingerprint

TURNS = [{"role": role, "content": text} for role, text in (("user", "1 + 1?"), ("assistant", "2."))] * 2


def setup_of(
    args: Any, template: Any, tokenizer: Any, *, needs_reference: bool, shares_reference: bool = True
) -> Setup:
    """Describe a run.

    Args:
        args: the run's `HostArguments`.
        template: the host's template, in use.
        tokenizer: of the model.
        needs_reference: whether the stage's loss reads a reference model.
        shares_reference: whether its trainer can use the policy without its adapter.
    """
    model, data, training, finetuning = args.model, args.data, args.training, args.finetuning
    lora = finetuning.finetuning_type == "lora"
    processes, accumulation = training.world_size, training.gradient_accumulation_steps
    done = {"train": training.do_train, "evaluate": training.do_eval, "predict": training.do_predict}
    return Setup(
        host="llamafactory",
        purposes=[name for name, asked in done.items() if asked],
        model=identity(model.model_name_or_path),
        adapters=[identity(name) for name in model.adapter_name_or_path or ()],
        reference=reference.describe(args, needed=needs_reference, shared=shares_reference),
        tokenizer=fingerprint(tokenizer) if tokenizer.is_fast else None,
        template=data.template,
        input_template=None,
        chat_template_sha256=_digest(template, tokenizer),
        cutoff_len=data.cutoff_len,
        datasets=data.dataset or [],
        eval_datasets=data.eval_dataset or [],
        finetuning={
            "type": finetuning.finetuning_type,
            "rank": finetuning.lora_rank if lora else None,
            "alpha": finetuning.lora_alpha if lora else None,
            "dropout": finetuning.lora_dropout if lora else None,
            "target": ",".join(finetuning.lora_target) if lora else None,
            "quantization_bit": model.quantization_bit,
        },
        optimizer={
            "name": str(getattr(training.optim, "value", training.optim)),
            "learning_rate": training.learning_rate,
            "schedule": str(getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type)),
            "warmup_steps": training.warmup_steps,
            "warmup_ratio": getattr(training, "warmup_ratio", None),
            "min_lr_ratio": None,
            "weight_decay": training.weight_decay,
            "betas": [training.adam_beta1, training.adam_beta2],
            "max_grad_norm": training.max_grad_norm,
        },
        batch={
            "per_device": training.per_device_train_batch_size,
            "accumulation": accumulation,
            "processes": processes,
            "total": training.per_device_train_batch_size * accumulation * processes,
        },
        epochs=training.num_train_epochs,
        max_steps=training.max_steps if training.max_steps > 0 else None,
        precision="bf16" if training.bf16 or finetuning.pure_bf16 else "fp16" if training.fp16 else "fp32",
        command=command(sys.argv, finetuning.finepref_given),
    )


def _digest(template: Any, tokenizer: Any) -> str:
    """The SHA-256 of two turns and a system text as the template writes them."""
    prompt, response = template.encode_oneturn(tokenizer, TURNS, "Be brief.", None)
    ids = [*prompt, *response]
    return hashlib.sha256(tokenizer.decode(ids, skip_special_tokens=False).encode()).hexdigest()
