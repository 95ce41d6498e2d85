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
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    name: str, *, adapter: str | None = None, dtype: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, see `load_network`, and its tokenizer.

    Raises:
        ValueError: the tokenizer has no chat template or no end-of-sequence token.
    """
    tokenizer = load_tokenizer(name)
    return load_network(name, adapter=adapter, dtype=dtype), tokenizer


def load_network(name: str, *, adapter: str | None = None, dtype: str = "auto", head: bool = True) -> PreTrainedModel:
    """A causal language model, ready for inference on the accelerator or else the CPU.

    Args:
        name: folder or hub name.
        adapter: folder or hub name of a peft adapter to put on the model.
        dtype: of the weights, such as float32; "auto" is the checkpoint's.
        head: with or without its output head.
    """
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    model = (AutoModelForCausalLM if head else AutoModel).from_pretrained(name, dtype=dtype)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    device = torch.device("cpu")
    if (accelerator := torch.accelerator.current_accelerator(check_available=True)) is not None:
        device = torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))
    return model.to(device).eval()


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
