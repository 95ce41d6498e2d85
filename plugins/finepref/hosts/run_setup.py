"""What a run was asked to do, in one shape for both hosts: the receipt's entry `run`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HIDDEN = "hidden"
SECRET = re.compile(r"(^|[._-])(token|api_key|wandb\.key|password|secret|webhook_url)$")


@dataclass(kw_only=True)
class Setup:
    """The settings that a model depends on, apart from data and options, which the receipt has beside it.

    Attributes:
        host: "llamafactory" or "openrlhf".
        purposes: what is done, of "train", "evaluate" and "predict".
        model: the model that is trained, see `model_identity.identity`.
        adapters: the adapters that the run starts from, likewise.
        reference: {kind, model, adapters}. Kind "none": the loss reads none. "base": the model without the new
            adapter. "adapter": the model with the adapter that is trained further, as it was loaded. "model": a model
            of its own. "itself": the model that is evaluated. `cache`: the names of the files in which its
            log-probabilities are (`reference_cache`), if it is read from there.
        tokenizer: its fingerprint, see `finepref.formats.scores.fingerprint`.
        template: the name of LLaMA-Factory's template; None if the tokenizer's chat template is used, or none.
        input_template: OpenRLHF's `--data.input_template`.
        chat_template_sha256: digest of how turns are written; None if no template is used.
        cutoff_len: the largest number of tokens of prompt and response.
        datasets, eval_datasets: names or files, in order.
        finetuning: {type, rank, alpha, dropout, target, quantization_bit}.
        optimizer: {name, learning_rate, schedule, warmup_steps, warmup_ratio, min_lr_ratio, weight_decay, betas,
            max_grad_norm}.
        batch: {per_device, accumulation, processes, total}, in records, or responses of an unpaired stage.
        epochs, max_steps: how long to train; max_steps, if it is given, decides.
        precision: "bf16", "fp16" or "fp32", of the computation.
        command: {argv, settings}: the command line, and the settings that it and its YAML give. Secrets are hidden.
    """

    host: str
    purposes: Sequence[str]
    model: Mapping[str, Any]
    adapters: Sequence[Mapping[str, Any]]
    reference: Mapping[str, Any]
    tokenizer: str | None
    template: str | None
    input_template: str | None
    chat_template_sha256: str | None
    cutoff_len: int
    datasets: Sequence[str]
    eval_datasets: Sequence[str]
    finetuning: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    batch: Mapping[str, Any]
    epochs: float | None
    max_steps: int | None
    precision: str
    command: Mapping[str, Any]


def command(argv: Sequence[str], settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entry `command`, without secrets. `settings` is None if they are all on the command line."""
    hidden = []
    for word in argv:
        name, given, _ = word.partition("=")
        before = hidden[-1] if hidden else ""
        if given and SECRET.search(name.lstrip("-")):
            word = f"{name}={HIDDEN}"
        elif before.startswith("--") and SECRET.search(before[2:]):
            word = HIDDEN
        hidden.append(word)
    return {"argv": hidden, "settings": None if settings is None else without_secrets(settings)}


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with `HIDDEN` in place of tokens, keys and passwords."""
    return {
        key: without_secrets(value) if isinstance(value, Mapping) else HIDDEN if value and _secret(key) else value
        for key, value in settings.items()
    }


def _secret(key: object) -> bool:
    return bool(SECRET.search(str(key)))


def device_name() -> str:
    """The name of this process's GPU, or "cpu"."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
