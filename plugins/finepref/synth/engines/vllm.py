"""The engine for many requests at a time: vLLM in this process.

Requests enter the engine in order as others finish, and each is yielded in the step that finishes it, so that a kill
loses only the requests in progress. The other requests of a step change a request's floating-point sums in the last
bits: if two tokens are almost equally probable, another run may choose the other one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from finepref.formats.problems import Problem
from finepref.formats.records import Message
from finepref.synth.engines.checkpoint import MERGED, identity, load_tokenizer, template_problems
from finepref.synth.engines.protocol import Completion, Request
from finepref.synth.engines.token_requests import Planned, completion, end_tokens, plan, too_long

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from vllm import EngineArgs

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


def engine_args(model: str, **options: Any) -> EngineArgs:
    """vLLM's settings for a model in this process, in the checkpoint's number format unless another is given.

    Raises:
        ValueError: vLLM has no such option.
    """
    # In this process: no child survives a kill, and the schedule depends on the requests only.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from transformers import AutoConfig
    from vllm import EngineArgs

    if unknown := options.keys() - {each.name for each in fields(EngineArgs)}:
        raise ValueError(f"vLLM has no option {', '.join(sorted(unknown))}")
    config = AutoConfig.from_pretrained(model)
    dtype = str(config.dtype).removeprefix("torch.") if config.dtype else "auto"
    quiet = {"disable_log_stats": True, "use_tqdm_on_load": False, "skip_tokenizer_init": True}
    return EngineArgs(model=model, generation_config="vllm", **({"dtype": dtype} | quiet | options))


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


def _completion(planned: Planned, output: Any, tokenizer: PreTrainedTokenizerBase, ends: list[int]) -> Completion:
    if output.finish_reason not in {"stop", "length"}:
        return Completion(planned.request.id, error=f"vLLM ended the request for the reason {output.finish_reason}")
    return completion(planned, list(output.token_ids), tokenizer, ends=ends)
