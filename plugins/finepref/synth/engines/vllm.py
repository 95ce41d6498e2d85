"""The engine for many requests at a time: vLLM in this process.

Requests enter the engine in order as others finish, and each is yielded in the step that finishes it, so that a kill
loses only the requests in progress. The other requests of a step change a request's floating-point sums in the last
bits: if two tokens are almost equally probable, another run may choose the other one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from finepref.formats.problems import Problem
from finepref.formats.records import Message
from finepref.synth.engines import letters
from finepref.synth.engines.checkpoint import MERGED, identity, load_tokenizer, template_problems
from finepref.synth.engines.protocol import Completion, Request
from finepref.synth.engines.token_requests import Planned, completion, end_tokens, plan, too_long
from finepref.synth.engines.vllm_settings import engine_args
from finepref.synth.scorers.protocol import Item
from finepref.synth.scorers.vllm import read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from vllm import LLMEngine

GROUP = 256
"""Requests that a worker receives at a time if several workers divide the work (`groups`)."""


class VllmEngine:
    """A causal language model with its own chat template, in vLLM.

    Prompts have the same token ids as in the engine `hf`, answers end at the same end tokens, and the generation
    defaults in the model's folder are not used. The number format is the checkpoint's, also if that is float32.

    Args:
        model: folder or hub name.
        merge_system, variables: see `checkpoint.rendered`. The journal's `prompt_version` tells the variables.
        options: options of vLLM (`EngineArgs`), such as tensor_parallel_size, max_model_len, or enforce_eager, which
            avoids minutes of compilation on a CPU.
    """

    def __init__(
        self,
        model: str,
        *,
        merge_system: bool = False,
        variables: Mapping[str, object] | None = None,
        **options: Any,
    ) -> None:
        self.name, self.options = model, options
        self.written = {"merge_system": merge_system, "variables": variables}
        told = f":{json.dumps(options, sort_keys=True)}" if options else ""
        self.model = f"vllm:{identity(model)}{MERGED if merge_system else ''}{told}"

    def prompt_problems(self, messages: Sequence[Message], *, file: str, line: int) -> list[Problem]:
        """See `protocol.prompt_problems`."""
        return template_problems(self._tokenizer, messages, file=file, line=line, **self.written)

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """Load the model (once), then answer.

        Raises:
            ValueError: the tokenizer has no chat template or no end token, or vLLM refuses an option or a setting.
        """
        engine, tokenizer, ends = self._loaded
        room, window = engine.model_config.max_model_len, 2 * engine.vllm_config.scheduler_config.max_num_seqs
        waiting, under_way = iter(requests), dict[str, Planned]()
        names: dict[str, str] = {}
        try:
            while True:
                while len(under_way) < window and (request := next(waiting, None)) is not None:
                    planned = plan(request, tokenizer, room=room, **self.written)
                    if not planned.limit:
                        yield [too_long(planned, room)]
                        continue
                    prompt = {"prompt_token_ids": planned.prompt}
                    names[request.id] = engine.add_request(request.id, prompt, _sampling(planned, ends))
                    under_way[request.id] = planned
                if not under_way:
                    break
                finished = [output for output in engine.step() if output.finished]
                if finished:
                    yield [
                        _completion(under_way.pop(output.request_id), output.outputs[0], tokenizer, ends)
                        for output in finished
                    ]
        finally:
            engine.abort_request([names[request_id] for request_id in under_way], internal=True)

    def letters(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """See `HfEngine.letters`; the probabilities are the model's own, before any sampling setting.

        Raises:
            ValueError: as `generate`; or the options have `logprobs_mode`, which would change the probabilities.
        """
        if "logprobs_mode" in self.options:
            raise ValueError("vLLM's option logprobs_mode changes the probabilities: remove it")
        engine, tokenizer, _ = self._loaded
        room = engine.model_config.max_model_len
        for group in self.groups(requests):
            plans, texts = [], []
            for planned in (plan(request, tokenizer, room=room, **self.written) for request in group):
                answers = {
                    letter: letters.tokens_after(tokenizer, planned.prompt, text)
                    for letter, text in zip(letters.LETTERS, planned.request.candidates, strict=False)
                }
                if not planned.limit or len(planned.prompt) + max(map(len, answers.values()), default=0) > room:
                    yield [too_long(planned, room)]
                elif answers:
                    texts.append((planned, answers))
                else:
                    plans.append(planned)
            yield from _letters(engine, tokenizer, plans)
            yield from _candidates(engine, texts)

    def groups(self, requests: Iterable[Request]) -> list[list[Request]]:
        """Requests in order, in groups that are large enough to keep an engine busy."""
        ordered = [*requests]
        return [ordered[start : start + GROUP] for start in range(0, len(ordered), GROUP)]

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.name)

    @cached_property
    def _loaded(self) -> tuple[Any, PreTrainedTokenizerBase, list[int]]:
        from transformers import AutoConfig, GenerationConfig

        tokenizer = self._tokenizer
        try:
            defaults = GenerationConfig.from_pretrained(self.name)
        except OSError:  # the folder has none
            defaults = GenerationConfig.from_model_config(AutoConfig.from_pretrained(self.name))
        settings = engine_args(self.name, **self.options)
        from vllm import LLMEngine

        return LLMEngine.from_engine_args(settings), tokenizer, end_tokens(defaults, tokenizer)


def _sampling(planned: Planned, ends: list[int]) -> Any:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    request = planned.request
    try:
        return SamplingParams(
            max_tokens=planned.limit,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            repetition_penalty=request.repetition_penalty,
            seed=request.seed if request.temperature else None,
            stop_token_ids=ends,
            detokenize=False,
        )
    except VLLMValidationError as error:
        raise ValueError(str(error)) from None


def _letters(
    engine: LLMEngine, tokenizer: PreTrainedTokenizerBase, plans: Iterable[Planned]
) -> Iterator[list[Completion]]:
    """See `VllmEngine.letters`: of one generated token, the log-probability of each token that writes a letter."""
    from vllm import SamplingParams

    asked: dict[str, tuple[Planned, dict[str, list[int]]]] = {}
    for planned in plans:
        tokens = letters.letter_tokens(tokenizer, planned.prompt)
        if not tokens:
            yield [letters.completion(planned.request.id, {}, prompt_tokens=len(planned.prompt))]
            continue
        wanted = sorted({token for own in tokens.values() for token in own})
        settings = SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=wanted, detokenize=False)
        engine.add_request(str(len(asked)), {"prompt_token_ids": planned.prompt}, settings)
        asked[str(len(asked))] = planned, tokens
    while engine.has_unfinished_requests():
        ready = []
        for output in engine.step():
            if output.finished:
                (planned, tokens), logps = asked[output.request_id], output.outputs[0].logprobs[0]
                found = {
                    letter: math.log(math.fsum(math.exp(logps[token].logprob) for token in own))
                    for letter, own in tokens.items()
                }
                ready.append(letters.completion(planned.request.id, found, prompt_tokens=len(planned.prompt)))
        if ready:
            yield ready


def _candidates(
    engine: LLMEngine, texts: Sequence[tuple[Planned, Mapping[str, Sequence[int]]]]
) -> Iterator[list[Completion]]:
    """See `VllmEngine.letters`: each text is scored as a response to the prompt."""
    asked = {str(number): planned for number, (planned, _) in enumerate(texts)}
    items = [Item(str(number), planned.prompt, answers) for number, (planned, answers) in enumerate(texts)]
    for ready in read(engine, items):
        yield [
            letters.completion(
                asked[number].request.id,
                {letter: float(logps.double().sum()) for letter, logps in own.items()},
                prompt_tokens=len(asked[number].prompt),
            )
            for number, own in ready
        ]


def _completion(planned: Planned, output: Any, tokenizer: PreTrainedTokenizerBase, ends: list[int]) -> Completion:
    if output.finish_reason not in {"stop", "length"}:
        return Completion(planned.request.id, error=f"vLLM ended the request for the reason {output.finish_reason}")
    return completion(planned, list(output.token_ids), tokenizer, ends=ends)
