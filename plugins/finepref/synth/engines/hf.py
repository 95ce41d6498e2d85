"""The embedded engine: a Hugging Face causal language model in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from finepref.formats.problems import Problem
from finepref.formats.records import Message
from finepref.synth.engines import letters
from finepref.synth.engines.checkpoint import (
    MERGED,
    accelerator,
    context_of,
    identity,
    input_device,
    load_model,
    load_tokenizer,
    template_problems,
)
from finepref.synth.engines.protocol import Completion, Request
from finepref.synth.engines.token_requests import Planned, completion, end_tokens, plan, too_long

if TYPE_CHECKING:
    import torch
    from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase


class HfEngine:
    """A causal language model with its own chat template.

    Batches hold requests of similar length, the longest first. Decoding is greedy at temperature 0; otherwise each
    request has its own seeded noise, so that its sample does not depend on its batch. The noise is drawn on the kind
    of device that was there when the engine was made, which its name tells unless that is the CPU: seeds mean other
    numbers there, so a journal of the one is not resumed by the other. Of the generation defaults in the model's
    folder only the end tokens are used (no repetition penalty, no top-k, ...).

    Args:
        model: folder or hub name.
        batch_size: requests per batch. Floating-point sums depend on it, so keep it when a job resumes.
        merge_system, variables: see `checkpoint.rendered`. The journal's `prompt_version` tells the variables.
        device_map: see `checkpoint.load_network`.
        adapter: folder or hub name of a peft adapter to put on the model.
    """

    def __init__(
        self,
        model: str,
        *,
        batch_size: int = 8,
        merge_system: bool = False,
        device_map: str = "",
        variables: Mapping[str, object] | None = None,
        adapter: str | None = None,
    ) -> None:
        self.name, self.adapter = model, adapter
        self.batch_size = batch_size
        self.written = {"merge_system": merge_system, "variables": variables}
        self.device_map = device_map
        device = accelerator()
        self.noise = "cpu" if device is None else device.type
        drawn = "" if device is None else f"+{device.type}-noise"
        self.model = f"hf:{identity(model, adapter)}" + (MERGED if merge_system else "") + drawn

    def prompt_problems(self, messages: Sequence[Message], *, file: str, line: int) -> list[Problem]:
        """See `protocol.prompt_problems`."""
        return template_problems(self._tokenizer, messages, file=file, line=line, **self.written)

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """Load the model (once), then answer batch by batch.

        Raises:
            ValueError: the tokenizer has no chat template or no end-of-sequence token.
        """
        yield from self._by_batch(requests, lambda batch, *loaded: _answer(*loaded, batch, self.noise))

    def letters(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """For each request the probabilities of the letters A to Z as the answer's first token, see `letters.read`.

        For a request with `candidates` the probabilities that the answer begins with each of them, lettered in order.
        One forward pass of the prompt; nothing is sampled. Raises like `generate`.
        """

        def answer(batch: list[Planned], *loaded: Any) -> list[Completion]:
            return (
                [_candidates(*loaded, each) for each in batch]
                if batch[0].request.candidates
                else _letters(*loaded, batch)
            )

        yield from self._by_batch(requests, answer)

    def _by_batch(
        self,
        requests: Iterable[Request],
        answer: Callable[[list[Planned], PreTrainedModel, PreTrainedTokenizerBase], list[Completion]],
    ) -> Iterator[list[Completion]]:
        model, tokenizer = self._loaded
        room = context_of(self.name)
        for batch in self._batches(self._plans(requests, tokenizer, room)):
            if batch[0].limit:
                yield answer(batch, model, tokenizer)
            else:
                yield [too_long(each, room) for each in batch]

    def groups(self, requests: Iterable[Request]) -> list[list[Request]]:
        """The batches of `generate`, without loading the model."""
        tokenizer, room = self._tokenizer, context_of(self.name)
        batches = self._batches(self._plans(requests, tokenizer, room))
        return [[each.request for each in batch] for batch in batches]

    def _plans(self, requests: Iterable[Request], tokenizer: PreTrainedTokenizerBase, room: int) -> list[Planned]:
        return [plan(request, tokenizer, room=room, **self.written) for request in requests]

    def _batches(self, plans: Sequence[Planned]) -> Iterator[list[Planned]]:
        """First all requests without room; then requests with the same sampling, the longest prompts first."""
        if without_room := [each for each in plans if not each.limit]:
            yield without_room
        left = sorted((each for each in plans if each.limit), key=lambda each: (*_sampling(each), -len(each.prompt)))
        while left:
            batch = [each for each in left[: self.batch_size] if _sampling(each) == _sampling(left[0])]
            del left[: len(batch)]
            yield batch

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.name)

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load_model(self.name, adapter=self.adapter, device_map=self.device_map)


def left_padded(rows: Sequence[Sequence[int]], *, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids as one batch with the padding on the left: ids [B, T] and mask [B, T].

    The padding repeats a row's first token, so that a repetition penalty sees no token that is not in the row.
    """
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[*row[:1]] * (width - len(row)) + [*row] for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _sampling(plan: Planned) -> tuple[float, ...]:
    request = plan.request
    return request.temperature, request.top_p, request.top_k, request.repetition_penalty


def _answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[Planned], noise: str
) -> list[Completion]:
    import torch

    ends = _ends(model, tokenizer)
    ids, mask = left_padded([plan.prompt for plan in batch], device=input_device(model))  # [B, T]
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(plan.limit for plan in batch),
            do_sample=False,
            logits_processor=_processors([plan.request for plan in batch], noise),
        )[:, ids.shape[1] :].tolist()
    return [completion(plan, tokens, tokenizer, ends=ends) for plan, tokens in zip(batch, output, strict=True)]


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The end tokens; of the model's generation defaults nothing else is used."""
    from transformers import GenerationConfig

    ends = end_tokens(model.generation_config, tokenizer)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=ends[0])
    return ends


def _letters(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[Planned]) -> list[Completion]:
    """See `HfEngine.letters`; the first step of a greedy generation, so that positions and masks are those of it."""
    import torch

    _ends(model, tokenizer)
    ids, mask = left_padded([plan.prompt for plan in batch], device=input_device(model))  # [B, T]
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    probabilities = made.logits[0].double().softmax(-1).cpu()  # [B, V]
    answers = []
    for planned, row in zip(batch, probabilities, strict=True):
        tokens = letters.letter_tokens(tokenizer, planned.prompt)
        found = {letter: float(row[own].sum().log()) for letter, own in tokens.items()}
        answers.append(letters.completion(planned.request.id, found, prompt_tokens=len(planned.prompt)))
    return answers


def _candidates(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, planned: Planned) -> Completion:
    """See `HfEngine.letters`: the rows of a batch are the prompt with each candidate, padded at the right."""
    import torch

    texts = planned.request.candidates
    answers = [letters.tokens_after(tokenizer, planned.prompt, text) for text in texts]
    width = max(map(len, answers))
    rows = [[*planned.prompt, *own, *[0] * (width - len(own))] for own in answers]
    ids = torch.tensor(rows, device=input_device(model))  # [R, T]
    with torch.inference_mode():
        logits = model(input_ids=ids, logits_to_keep=width + 1, use_cache=False).logits[:, :-1].float()  # [R, W, V]
    logps = logits.log_softmax(-1).gather(-1, ids[:, -width:, None].to(logits.device))[..., 0].double().cpu()  # [R, W]
    found = {
        letter: float(row[: len(own)].sum()) for letter, row, own in zip(letters.LETTERS, logps, answers, strict=False)
    }
    return letters.completion(planned.request.id, found, prompt_tokens=len(planned.prompt))


def _processors(requests: Sequence[Request], noise: str) -> LogitsProcessorList:
    """Processors of the logits before the argmax; with Gumbel noise from each row's seed the argmax is a sample.

    Args:
        requests: the rows, with the same sampling.
        noise: the kind of device to draw on: "cpu", or that of the logits, so that no [B, V] is copied for a token.
    """
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
    generators: list[torch.Generator] = []

    def add_noise(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # scores [B, V]
        device = torch.device("cpu") if noise == "cpu" else scores.device
        if not generators:
            generators.extend(torch.Generator(device).manual_seed(request.seed) for request in requests)
        drawn = [torch.rand(scores.shape[1], generator=generator, device=device) for generator in generators]
        return scores.float() - torch.stack(drawn).clamp(min=1e-20).log().neg().log().to(scores.device)

    processors.append(TemperatureLogitsWarper(first.temperature))
    if first.top_k:
        processors.append(TopKLogitsWarper(first.top_k))
    if first.top_p < 1:
        processors.append(TopPLogitsWarper(first.top_p))
    processors.append(add_noise)
    return processors
