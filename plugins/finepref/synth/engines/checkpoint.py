"""A model's checkpoint: its weights, tokenizer, chat template and context, and a digest of all of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finepref.formats.problems import Problem
from finepref.formats.records import Message

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    name: str, *, adapter: str | None = None, dtype: str = "auto", device_map: str = ""
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, see `load_network`, and its tokenizer.

    Raises:
        ValueError: the tokenizer has no chat template or no end-of-sequence token.
    """
    tokenizer = load_tokenizer(name)
    return load_network(name, adapter=adapter, dtype=dtype, device_map=device_map), tokenizer


def accelerator() -> torch.device | None:
    """The accelerator of this process: of several cards that of its LOCAL_RANK; None if there is only a CPU."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else torch.device(found.type, int(os.environ.get("LOCAL_RANK", "0")))


def load_network(
    name: str, *, adapter: str | None = None, dtype: str = "auto", head: bool = True, device_map: str = ""
) -> PreTrainedModel:
    """A causal language model, ready for inference on the accelerator or else the CPU.

    Weights are read straight to the accelerator, a tensor at a time, so that ranks do not each hold a model in the
    machine's memory.

    Args:
        name: folder or hub name.
        adapter: folder or hub name of a peft adapter to put on the model.
        dtype: of the weights, such as float32; "auto" is the checkpoint's.
        head: with or without its output head.
        device_map: as in `from_pretrained`, such as "auto", which divides the layers among all accelerators that this
            process sees; "" is one of them.

    Raises:
        ValueError: with the device map some weights would stay in the machine's memory or on the disk.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    device = accelerator()
    placing = {"device_map": device_map or {"": device}} if device_map or device is not None else {}
    model = (AutoModelForCausalLM if head else AutoModel).from_pretrained(name, dtype=dtype, **placing)
    if outside := [part for part, weight in model.named_parameters() if weight.is_meta]:
        raise ValueError(
            f"device_map {device_map} finds no room for {len(outside)} weights of {name} on the accelerators "
            f"({outside[0]} is the first): use more of them, or a smaller number format"
        )
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter, torch_device=str(input_device(model)))
    return model.eval()


def input_device(network: PreTrainedModel) -> torch.device:
    """Where a model takes its token ids: the device of its embeddings, also if its layers are on several."""
    return network.get_input_embeddings().weight.device


def load_tokenizer(name: str, *, chat_template: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of an instruction-tuned model.

    Args:
        name: folder or hub name.
        chat_template: whether it must have one.

    Raises:
        ValueError: it has no chat template or no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    if chat_template and tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer of {name} has no chat template: give an instruction-tuned model")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {name} has no end-of-sequence token")
    return tokenizer


MERGED = "+merged-system"
"""Added to the name of an engine whose prompts have a merged system turn where its template refuses one."""


class RefusedByTemplateError(ValueError):
    """The chat template has no form for a dialogue, such as "System role not supported".

    Attributes:
        field: what it refuses: "system" if it accepts the dialogue without its system turn, else "prompt".
    """

    def __init__(self, reason: str, field: str) -> None:
        super().__init__(f"the model's chat template refuses the dialogue: {reason}")
        self.field = field


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, answer: bool = True, merge_system: bool = False
) -> str:
    """A dialogue as text in the model's chat template.

    Args:
        tokenizer: has a chat template.
        messages: the dialogue.
        answer: go on up to the start of the next answer.
        merge_system: put a system turn that the template refuses before the text of the first user turn, with an
            empty line between them, as LLaMA-Factory's templates of such models do.

    Raises:
        RefusedByTemplateError: the template raises an error.
    """
    try:
        return _applied(tokenizer, messages, answer)
    except RefusedByTemplateError as error:
        first, *rest = messages
        if first.role != "system" or not rest:
            raise
        try:
            without = _applied(tokenizer, rest, answer)
        except RefusedByTemplateError:
            raise error from None
        if not merge_system or rest[0].role != "user":
            raise RefusedByTemplateError(str(error).partition(": ")[2], "system") from None
        if not first.content:
            return without
        return _applied(tokenizer, [Message("user", f"{first.content}\n\n{rest[0].content}"), *rest[1:]], answer)


def _applied(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: bool) -> str:
    from jinja2 import TemplateError

    turns = [message._asdict() for message in messages]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer)
    except (TemplateError, TypeError) as error:
        raise RefusedByTemplateError(" ".join(str(error).split()), "prompt") from error


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, merge_system: bool = False
) -> list[int]:
    """The token ids of a dialogue in the model's chat template, up to the start of the answer; see `rendered`."""
    text = rendered(tokenizer, messages, merge_system=merge_system)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def template_problems(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    file: str,
    line: int,
    merge_system: bool = False,
) -> list[Problem]:
    """FP240 if the chat template refuses the dialogue of a row, so that a job finds such rows before any work.

    Args:
        tokenizer, messages, merge_system: see `rendered`.
        file, line: place of the row.
    """
    try:
        rendered(tokenizer, messages, merge_system=merge_system)
    except RefusedByTemplateError as error:
        return [Problem(file, line, error.field, "FP240", str(error))]
    return []


def context_of(model: str) -> int:
    """The longest sequence that a model can read, in tokens, by its configuration."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model).get_text_config()
    return getattr(config, "max_position_embeddings", None) or 2**31


def vocabulary_of(model: str) -> int:
    """The number of token ids that a model knows, by its configuration."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model).get_text_config()
    return getattr(config, "vocab_size", None) or 2**31


def identity(model: str, adapter: str | None = None) -> str:
    """A name for a model (with an adapter) as it is now: the digests of local folders, and the names of hub models."""
    names = [model] if adapter is None else [model, adapter]
    return "+".join(folder_digest(Path(name)) if Path(name).is_dir() else name for name in names)


def folder_digest(folder: Path) -> str:
    """32 hex digits that depend on the weights, settings and tokenizer in a model folder, not on its path."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        if path.suffix in {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"}:
            with open(path, "rb") as file:
                digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()
