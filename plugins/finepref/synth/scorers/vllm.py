"""Log-probabilities of given responses from vLLM in this process.

Each response is one request, whose prompt is the item's prompt and the response without its last token. vLLM returns
the log-probability of each token of a prompt; that of the last token comes from the one position where it generates,
so that a response may fill the context. Requests enter in groups of items, and the engine is empty when the next group
enters, because the other requests of a step change a request's floating-point sums in the last bits. A group that was
interrupted is read again as a whole, so that a resumed job has the same numbers as one that was not stopped.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from finepref.synth.engines.checkpoint import identity
from finepref.synth.engines.vllm_settings import engine_args
from finepref.synth.scorers.protocol import Item, LocalScorer, Logps, Read

if TYPE_CHECKING:
    from torch import Tensor
    from vllm import LLMEngine

GROUP = 64
"""Items that enter the engine at a time."""
BATCH_TOKENS = 2048
OWN = {
    "dtype",
    "enable_lora",
    "logprobs_mode",
    "lora_target_modules",
    "max_lora_rank",
    "max_num_batched_tokens",
    "model",
}
"""Options of vLLM that have an argument here, or that change the meaning of a log-probability."""


class VllmScorer(LocalScorer):
    """A `Scorer` with a model in vLLM.

    Args:
        model: folder or hub name.
        adapter: folder or hub name of a LoRA adapter.
        dtype: of the weights, such as float32; "auto" is the checkpoint's, also if that is float32.
        batch_tokens: most tokens in a step of the engine (its max_num_batched_tokens). The engine holds their logits,
            [batch_tokens, V] in float32, more than once. None: 2048 on every device, because of these logits.
        options: options of vLLM (`EngineArgs`), such as tensor_parallel_size, max_model_len or enforce_eager.

    Raises:
        ValueError: the options contain one of `OWN`.
    """

    def __init__(
        self,
        model: str,
        *,
        adapter: str | None = None,
        dtype: str = "auto",
        batch_tokens: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.adapter, self.dtype = model, adapter, dtype
        self.batch_tokens = BATCH_TOKENS if batch_tokens is None else batch_tokens
        self.options = dict(options or {})
        if own := sorted(OWN & self.options.keys()):
            raise ValueError(f"vLLM's {', '.join(own)} cannot be set by options: scoring has its own settings")
        told = f":{json.dumps(self.options, sort_keys=True)}" if self.options else ""
        self.model = f"vllm:{identity(model, adapter)}:{dtype}{told}"

    def groups(self, items: Iterable[Item]) -> list[list[Item]]:
        """Items in order, in groups that are large enough to keep the engine busy."""
        ordered = [*items]
        return [ordered[start : start + GROUP] for start in range(0, len(ordered), GROUP)]

    @contextmanager
    def loaded(self, items: Sequence[Item]) -> Iterator[Read]:
        """See `LocalScorer` and `load`; an item is ready in the step that finishes its last response."""
        engine = self.load(items)
        try:
            yield partial(_read_all, engine, self.adapter)
        finally:
            engine.engine_core.shutdown()
            del engine
            gc.collect()  # it has reference cycles, and the next model needs its memory

    def load(self, items: Iterable[Item]) -> LLMEngine:
        """Load the model, with room for the items.

        Raises:
            ValueError: an item is longer than max_model_len, or vLLM refuses an option.
        """
        settings: dict[str, Any] = {
            "logprobs_mode": "raw_logprobs",
            "max_num_batched_tokens": self.batch_tokens,
            "max_num_seqs": min(2 * GROUP, self.batch_tokens),
            "enable_prefix_caching": False,  # tokens read from a cache have no log-probabilities
        }
        if self.dtype != "auto":
            settings["dtype"] = self.dtype
        args = engine_args(self.name, **settings | self.options)
        if self.adapter is not None:
            args.enable_lora = True  # for the adapter's modules only: a head that vLLM wraps reads no prompt
            args.max_lora_rank, args.lora_target_modules = _shape(self.adapter)
        config = args.create_engine_config()
        room = config.model_config.max_model_len
        for item in items:
            longest = len(item.prompt) + max(map(len, item.responses.values()))
            if longest > room:
                raise ValueError(f"record {item.id} has {longest} tokens and vLLM room for {room} (max_model_len)")
        from vllm import LLMEngine

        return LLMEngine.from_vllm_config(config, disable_log_stats=True)


def read(engine: LLMEngine, group: Sequence[Item], *, adapter: str | None = None) -> Iterator[list[tuple[str, Logps]]]:
    """(id, response name -> float32 [R]) of each item, in the step of the engine that finishes it.

    Raises:
        ValueError: vLLM cannot use the adapter.
    """
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    lora = LoRARequest("adapter", 1, adapter) if adapter else None
    asked: dict[str, tuple[Item, str]] = {}
    for item in group:
        for name, response in item.responses.items():
            prompt = {"prompt_token_ids": [*item.prompt, *response[:-1]]}
            settings = SamplingParams(
                temperature=0,
                max_tokens=1,
                prompt_logprobs=0,
                logprob_token_ids=[response[-1]],
                flat_logprobs=True,
                detokenize=False,
            )
            request = str(len(asked))
            asked[request] = item, name
            engine.add_request(request, prompt, settings, lora_request=lora)
    found: dict[str, dict[str, Tensor]] = {item.id: {} for item in group}
    while engine.has_unfinished_requests():
        ready: list[tuple[str, Logps]] = []
        for output in engine.step():
            if output.finished:
                item, name = asked[output.request_id]
                found[item.id][name] = _logps(output, len(item.prompt), item.responses[name])
                if len(found[item.id]) == len(item.responses):
                    ready.append((item.id, {each: found[item.id][each] for each in item.responses}))
        if ready:
            yield ready


def _read_all(
    engine: LLMEngine, adapter: str | None, groups: Iterable[Sequence[Item]]
) -> Iterator[list[tuple[str, Logps]]]:
    for group in groups:
        yield from read(engine, group, adapter=adapter)


def _shape(adapter: str) -> tuple[int, list[str]]:
    """Settings for an adapter: the smallest of vLLM's ranks that is enough, and the names of its modules.

    Raises:
        ValueError: it changes the output head, which vLLM then applies to one token of each request only.
    """
    from safetensors import safe_open
    from vllm.config.lora import MaxLoRARanks
    from vllm.lora.utils import get_adapter_absolute_path

    folder = Path(get_adapter_absolute_path(adapter))
    config = json.loads((folder / "adapter_config.json").read_text())
    needed = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        modules = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in file.keys()})  # noqa: SIM118
    if "lm_head" in modules:
        raise ValueError(f"{adapter} changes the output head, which vLLM cannot score with: merge it, or use hf")
    return next((rank for rank in get_args(MaxLoRARanks) if rank >= needed), needed), modules


def _logps(output: Any, start: int, response: Sequence[int]) -> Tensor:
    """float32 [R] from the finished request of a response that starts at `start`.

    Raises:
        ChildProcessError: vLLM ended the request without its one token.
    """
    import torch

    (made,) = output.outputs
    if made.finish_reason not in {"stop", "length"}:
        raise ChildProcessError(f"vLLM ended a request for the reason {made.finish_reason}")
    before = output.prompt_logprobs.logprobs[start - 1 :]  # flat, one of each token of a prompt but the first
    last = made.logprobs[0][response[-1]].logprob
    assert len(before) == len(response) - 1
    return torch.tensor([*before, last], dtype=torch.float32)
