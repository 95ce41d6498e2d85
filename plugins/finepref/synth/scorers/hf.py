"""The scorer of a Hugging Face model, which reads the tokens once that several responses share.

A prompt and its responses form a tree of tokens, which fills one row of the batch: each token attends to its ancestors
only (a 4-D attention mask), and its position is its depth. The output head is applied only where a response token
follows, a chunk at a time. A trial at loading shows whether the model gives the same numbers that way; if not, every
response is read in a row of its own.

A thread makes the trees of the next batches while the model reads; the masks are made on the model's device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from finepref.synth.ahead import ahead
from finepref.synth.engines.checkpoint import accelerator, identity, input_device, load_network
from finepref.synth.scorers.protocol import Item, LocalScorer, Logps, Read
from finepref.synth.scorers.token_tree import (
    Packed,
    Tree,
    batches,
    by_response,
    mask,
    pack,
    tree,
    why_apart,
    window_of,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

CHUNK = 128
"""Positions per call of the output head: on a CPU their logits should fit in the cache."""
ACCELERATOR_CHUNK = 1024
"""The same on an accelerator, where each call reads the whole head; 0.6 GiB of float32 logits at V = 152k."""
CPU_BATCH_TOKENS = 2048
ACCELERATOR_BATCH_TOKENS = 16384
"""A batch should keep the device busy for much longer than it takes to start its kernels."""


def default_batch_tokens(*, on_accelerator: bool) -> int:
    """The most tokens in a batch if nothing is given: by the kind of device, not by its memory or the model."""
    return ACCELERATOR_BATCH_TOKENS if on_accelerator else CPU_BATCH_TOKENS


class HfScorer(LocalScorer):
    """A `Scorer` with a Hugging Face model.

    Args:
        model: folder or hub name.
        adapter: folder or hub name of a peft adapter to put on the model.
        dtype: of the weights, such as float32; "auto" is the checkpoint's.
        batch_tokens: most tokens in a batch, padding included; a longer item gets its own batch. None:
            `default_batch_tokens` for the device that this process would use.
        device_map: see `checkpoint.load_network`.
    """

    def __init__(
        self,
        model: str,
        *,
        adapter: str | None = None,
        dtype: str = "auto",
        batch_tokens: int | None = None,
        device_map: str = "",
    ) -> None:
        if batch_tokens is None:
            batch_tokens = default_batch_tokens(on_accelerator=accelerator() is not None)
        self.name, self.adapter, self.dtype, self.batch_tokens = model, adapter, dtype, batch_tokens
        self.device_map = device_map
        self.model = f"hf:{identity(model, adapter)}:{dtype}"

    def groups(self, items: Iterable[Item]) -> list[list[Item]]:
        """The batches, see `token_tree.batches`."""
        return batches(items, batch_tokens=self.batch_tokens)

    @contextmanager
    def loaded(self, items: Sequence[Item]) -> Iterator[Read]:
        """See `LocalScorer`; all items of a batch are ready together."""
        network = load_network(self.name, adapter=self.adapter, dtype=self.dtype, device_map=self.device_map)
        yield partial(_read, Reader(network))


def _read(reader: Reader, groups: Iterable[Sequence[Item]]) -> Iterator[list[tuple[str, Logps]]]:
    for batch in ahead(reader.batch, groups):
        yield list(zip([item.id for item in batch.items], reader.read(batch), strict=True))


class Batch(NamedTuple):
    """What a reader needs of a batch of items; `shared`: all responses of an item are in one tree."""

    items: Sequence[Item]
    shared: bool
    trees: list[Tree]
    packed: Packed


class Reader:
    """A loaded model, with the results of a trial: `shares_prompt` and `plain_head`.

    `shares_prompt`: the model gives the same numbers if responses share one row. `plain_head`: the logits are the
    output head's own values, not scaled or capped afterwards.

    A reward is the small difference of two log-probabilities. Therefore a model in bfloat16 or float16 multiplies
    matrices in that format, but keeps the residual stream and its logits in float32. The given network is changed.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        import torch

        self.network = network.get_base_model() if hasattr(network, "get_base_model") else network
        self.mixed = self.network.dtype in {torch.bfloat16, torch.float16}
        if self.mixed:
            self.network.get_input_embeddings().register_forward_hook(lambda *call: call[-1].float())
            self.network.set_output_embeddings(_float_head(self.network.get_output_embeddings()))
            for vector in (each for each in self.network.parameters() if each.dim() == 1):
                vector.data = vector.data.float()  # such as LayerNorm's, whose input is now float32
        self.head = self.network.get_output_embeddings()
        self.device = input_device(self.network)
        config = self.network.config.get_text_config()
        self.window = window_of(config)
        self.shares_prompt = self.plain_head = True
        with self._inference():
            self._try(config)

    def logps(self, items: Sequence[Item]) -> list[dict[str, Tensor]]:
        """For each item: response name -> log pi of each token, float32 [R] on the CPU; one batch."""
        return self.read(self.batch(items))

    def batch(self, items: Sequence[Item]) -> Batch:
        """The trees of items, on the CPU and without the model, so that another thread can make them."""
        longest = max(len(item.prompt) + len(response) for item in items for response in item.responses.values())
        shared = self.shares_prompt and longest <= self.window
        trees = [
            tree(item.prompt, group)
            for item in items
            for group in ([item.responses.values()] if shared else [[each] for each in item.responses.values()])
        ]
        return Batch(items, shared, trees, pack(trees))

    def read(self, batch: Batch) -> list[dict[str, Tensor]]:
        """See `logps`."""
        with self._inference():
            rows = self._read(batch.trees, batch.packed, branching=batch.shared)
        found = (path for row in rows for path in row)
        return [{name: next(found) for name in item.responses} for item in batch.items]

    @contextmanager
    def _inference(self) -> Iterator[None]:
        import torch

        before = torch.get_float32_matmul_precision()
        autocast = torch.autocast(self.device.type, dtype=self.network.dtype, enabled=self.mixed)
        if self.mixed:  # for the head's product only; TF32 holds weights exactly that were bfloat16
            torch.set_float32_matmul_precision("high")
        try:
            with torch.inference_mode(), autocast:
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def _read(self, trees: Sequence[Tree], packed: Packed, *, branching: bool) -> list[list[Tensor]]:
        """For each tree and response [R]. Without branches the model's causal mask is enough: padding comes last."""
        import torch

        from finepref.losses.chunked import logps_at

        logps = torch.cat([logps_at(*each) for each in self._logits(packed, branching=branching)])  # [N]
        return by_response(trees, logps)

    def logits(self, packed: Packed, *, branching: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits [C, V] of the positions that predict a response token, and that token [C], C at a time."""
        made = self._logits(packed, branching=branching)
        while True:
            with self._inference():
                chunk = next(made, None)
            if chunk is None:
                return
            yield chunk

    def _logits(self, packed: Packed, *, branching: bool) -> Iterator[tuple[Tensor, Tensor]]:
        from finepref.losses.chunked import head_at

        chunk = CHUNK if self.device.type == "cpu" else ACCELERATOR_CHUNK
        inputs = model_inputs(packed, branching=branching, device=self.device, dtype=self.network.dtype)
        if self.plain_head:
            hidden = self.network.base_model(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)  # [B T, H]
            sources, targets = packed.sources.to(hidden.device), packed.targets.to(hidden.device)  # [N], [N]
            for part, wanted in zip(sources.split(chunk), targets.split(chunk), strict=True):
                logits = self.head(hidden[part])  # with a device map it may be on another device than the last layer
                yield logits, wanted.to(logits.device)
            return
        with head_at(self.head, packed.sources):
            whole = self.network(**inputs, use_cache=False).logits[0]
        yield from zip(whole.split(chunk), packed.targets.to(whole.device).split(chunk), strict=True)

    def _try(self, config: Any) -> None:
        """Set both flags: compare the head on one token, exactly, and a tree with two separate rows."""
        import torch

        one = torch.tensor([[config.vocab_size - 1]], device=self.device)
        own = self.head(self.network.base_model(input_ids=one).last_hidden_state)
        self.plain_head = torch.equal(own.float().cpu(), self.network(input_ids=one).logits.float().cpu())
        self.shares_prompt = not why_apart(self._read, config, self.network.dtype)


def model_inputs(packed: Packed, *, branching: bool, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """The arguments of a model's forward for a batch of trees, on its device.

    Args:
        packed: the batch.
        branching: with the mask [B, 1, T, T] and the positions [B, T] of trees that branch.
        device: of the model's embeddings. Only the tensors of `packed`, a number or two per token, are copied there.
        dtype: of the mask.
    """
    ids = packed.ids.to(device)
    if not branching:
        return {"input_ids": ids}
    seen = mask(packed.first.to(device), packed.last.to(device), dtype)
    return {"input_ids": ids, "attention_mask": seen, "position_ids": packed.depths.to(device)}


def _float_head(head: nn.Module) -> nn.Module:
    """A copy of an output head that always computes in float32."""
    import torch

    class FloatHead(torch.nn.Module):
        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.head = deepcopy(head).float()

        def forward(self, hidden: Tensor) -> Tensor:
            with torch.autocast(hidden.device.type, enabled=False):
                return self.head(hidden.float())

    return FloatHead(head)
