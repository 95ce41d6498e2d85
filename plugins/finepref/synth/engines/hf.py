"""The embedded engine: a Hugging Face causal language model in this process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from finepref.formats.records import Message
from finepref.synth.engines.protocol import Completion, Request

if TYPE_CHECKING:
    import torch
    from transformers import (
        GenerationConfig,
        LogitsProcessorList,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )


class Planned(NamedTuple):
    """A request with the token ids of its prompt and how many tokens may follow: none if the prompt is too long."""

    request: Request
    prompt: list[int]
    limit: int


class HfEngine:
    """A causal language model with its own chat template.

    Batches hold requests of similar length, the longest first. Decoding is greedy at temperature 0; else each request
    draws from its own seeded noise, so that its sample does not depend on its batch. The generation defaults in the
    model's folder (repetition penalty, top-k, ...) are not used, only its end tokens.

    Args:
        model: folder or hub name.
        batch_size: requests per batch. Floating-point sums depend on it, so a resumed job should keep it.
    """

    def __init__(self, model: str, *, batch_size: int = 8) -> None:
        self.name = model
        self.batch_size = batch_size
        self.model = f"hf:{folder_digest(Path(model)) if Path(model).is_dir() else model}"

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """Load the model (once), then answer batch by batch.

        Raises:
            ValueError: the tokenizer has no chat template or no end-of-sequence token.
        """
        model, tokenizer = self._loaded
        room = context_of(self.name)
        for batch in self._batches([plan(request, tokenizer, room=room) for request in requests]):
            yield _answer(model, tokenizer, batch) if batch[0].limit else [too_long(each, room) for each in batch]

    def groups(self, requests: Iterable[Request]) -> list[list[Request]]:
        """The batches of `generate`; no model is loaded for it."""
        tokenizer, room = load_tokenizer(self.name), context_of(self.name)
        batches = self._batches([plan(request, tokenizer, room=room) for request in requests])
        return [[each.request for each in batch] for batch in batches]

    def _batches(self, plans: Sequence[Planned]) -> Iterator[list[Planned]]:
        """First what has no room, all of it; then what is sampled alike, the longest prompts first."""
        if without_room := [each for each in plans if not each.limit]:
            yield without_room
        left = sorted((each for each in plans if each.limit), key=lambda each: (*_sampling(each), -len(each.prompt)))
        while left:
            batch = [each for each in left[: self.batch_size] if _sampling(each) == _sampling(left[0])]
            del left[: len(batch)]
            yield batch

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load_model(self.name)


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
        head: with its output head.
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


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that follows instructions.

    Raises:
        ValueError: it has no chat template or no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer of {name} has no chat template: give an instruction-tuned model")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {name} has no end-of-sequence token")
    return tokenizer


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """The token ids of a dialogue in the model's chat template, up to where the answer begins."""
    turns = [message._asdict() for message in messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def plan(request: Request, tokenizer: PreTrainedTokenizerBase, *, room: int) -> Planned:
    """A request with its prompt in tokens, for a model with room for so many of them."""
    prompt = prompt_ids(tokenizer, request.messages)
    return Planned(request, prompt, max(0, min(request.max_new_tokens, room - len(prompt))))


def too_long(plan: Planned, room: int) -> Completion:
    """The failure of a request whose prompt fills the model's context."""
    reason = f"the prompt has {len(plan.prompt)} tokens and the model room for {room}"
    return Completion(plan.request.id, prompt_tokens=len(plan.prompt), error=reason)


def completion(
    plan: Planned, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase, *, ends: Sequence[int]
) -> Completion:
    """What a model went on with, up to the first end token, which counts as a token and is not in the text."""
    end = next((i for i, token in enumerate(tokens[: plan.limit]) if token in ends), None)
    answer = tokens[: plan.limit if end is None else end]
    return Completion(
        id=plan.request.id,
        text=tokenizer.decode(answer, skip_special_tokens=True),
        stop_reason="length" if end is None else "stop",
        prompt_tokens=len(plan.prompt),
        completion_tokens=len(answer) + (end is not None),
    )


def end_tokens(defaults: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The end tokens of the tokenizer and of a model's generation defaults."""
    own = defaults.eos_token_id
    return sorted({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})


def context_of(model: str) -> int:
    """How many tokens a model can read, by its configuration."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model).get_text_config()
    return getattr(config, "max_position_embeddings", None) or 2**31


def left_padded(rows: Sequence[Sequence[int]], *, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids as one batch with the padding on the left: ids [B, T] and mask [B, T].

    The padding repeats a row's first token, so that a repetition penalty finds no token that the row does not have.
    """
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[*row[:1]] * (width - len(row)) + [*row] for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def folder_digest(folder: Path) -> str:
    """32 hex digits that depend on the weights, settings and tokenizer in a model folder, not on where it lies."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        if path.suffix in {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"}:
            with open(path, "rb") as file:
                digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _sampling(plan: Planned) -> tuple[float, ...]:
    request = plan.request
    return request.temperature, request.top_p, request.top_k, request.repetition_penalty


def _answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[Planned]) -> list[Completion]:
    import torch
    from transformers import GenerationConfig

    ends = end_tokens(model.generation_config, tokenizer)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=ends[0])
    ids, mask = left_padded([plan.prompt for plan in batch], device=model.device)  # [B, T]
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(plan.limit for plan in batch),
            do_sample=False,
            logits_processor=_processors([plan.request for plan in batch], model.device),
        )[:, ids.shape[1] :].tolist()
    return [completion(plan, tokens, tokenizer, ends=ends) for plan, tokens in zip(batch, output, strict=True)]


def _processors(requests: Sequence[Request], device: torch.device) -> LogitsProcessorList:
    """What logits go through before the argmax, which is a sample: Gumbel-max, each row's noise from its seed."""
    import torch
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    processors, first = LogitsProcessorList(), requests[0]
    if first.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(first.repetition_penalty))
    if first.temperature == 0:
        return processors
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]

    def add_noise(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # scores [B, V]
        uniform = torch.stack([torch.rand(scores.shape[1], generator=generator) for generator in generators])
        return scores.float() - uniform.clamp(min=1e-20).log().neg().log().to(device)

    processors.append(TemperatureLogitsWarper(first.temperature))
    if first.top_k:
        processors.append(TopKLogitsWarper(first.top_k))
    if first.top_p < 1:
        processors.append(TopPLogitsWarper(first.top_p))
    processors.append(add_noise)
    return processors
