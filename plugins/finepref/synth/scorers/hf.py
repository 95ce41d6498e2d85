"""The scorer of a Hugging Face model, which reads the tokens once that several responses share.

A prompt and its responses form a tree of tokens, which fills one row of the batch: each token attends to its ancestors
only (a 4-D attention mask), and its position is its depth. The output head is applied only where a response token
follows, a chunk at a time. A trial at loading shows whether the model gives the same numbers that way; if not, every
response is read in a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING

from finepref.synth.engines.checkpoint import identity, load_network
from finepref.synth.scorers.protocol import Item, LocalScorer, Read
from finepref.synth.scorers.token_tree import Tree, ancestors, batches, tree

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

CHUNK = 128
"""Positions per call of the output head: on a CPU their logits should fit in the cache."""


class HfScorer(LocalScorer):
    """A `Scorer` with a Hugging Face model.

    Args:
        model: folder or hub name.
        adapter: folder or hub name of a peft adapter to put on the model.
        dtype: of the weights, such as float32; "auto" is the checkpoint's.
        batch_tokens: most tokens in a batch, padding included; a longer item gets its own batch.
    """

    def __init__(
        self, model: str, *, adapter: str | None = None, dtype: str = "auto", batch_tokens: int = 2048
    ) -> None:
        self.name, self.adapter, self.dtype, self.batch_tokens = model, adapter, dtype, batch_tokens
        self.model = f"hf:{identity(model, adapter)}:{dtype}"

    def groups(self, items: Iterable[Item]) -> list[list[Item]]:
        """The batches, see `token_tree.batches`."""
        return batches(items, batch_tokens=self.batch_tokens)

    @contextmanager
    def loaded(self, items: Sequence[Item]) -> Iterator[Read]:
        """See `LocalScorer`; all items of a batch are ready together."""
        network = load_network(self.name, adapter=self.adapter, dtype=self.dtype)
        reader = Reader(network)
        yield lambda batch: [list(zip([item.id for item in batch], reader.logps(batch), strict=True))]


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
        config = self.network.config.get_text_config()
        windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        self.window: int = min((window for window in windows if window), default=2**31)
        self.shares_prompt = self.plain_head = True
        with self._inference():
            self._try(config.vocab_size)

    def logps(self, items: Sequence[Item]) -> list[dict[str, Tensor]]:
        """For each item: response name -> log pi of each token, float32 [R] on the CPU; one batch."""
        longest = max(len(item.prompt) + len(response) for item in items for response in item.responses.values())
        shared = self.shares_prompt and longest <= self.window
        trees = [
            tree(item.prompt, group)
            for item in items
            for group in ([item.responses.values()] if shared else [[each] for each in item.responses.values()])
        ]
        with self._inference():
            found = (path for row in self._read(trees, branching=shared) for path in row)
        return [{name: next(found) for name in item.responses} for item in items]

    @contextmanager
    def _inference(self) -> Iterator[None]:
        import torch

        before = torch.get_float32_matmul_precision()
        autocast = torch.autocast(self.network.device.type, dtype=self.network.dtype, enabled=self.mixed)
        if self.mixed:  # for the head's product only; TF32 holds weights exactly that were bfloat16
            torch.set_float32_matmul_precision("high")
        try:
            with torch.inference_mode(), autocast:
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def _read(self, trees: Sequence[Tree], *, branching: bool) -> list[list[Tensor]]:
        """For each tree and response [R]. Without branches the model's causal mask is enough: padding comes last."""
        import torch

        from finepref.losses.chunked import head_at, logps_at

        device = self.network.device
        width = max(len(each.tokens) for each in trees)
        ids = torch.tensor([each.tokens + [0] * (width - len(each.tokens)) for each in trees], device=device)  # [B, T]
        inputs: dict[str, object] = {"input_ids": ids, "use_cache": False}
        if branching:
            seen, depths = ancestors(trees, width)
            lowest = torch.finfo(self.network.dtype).min
            mask = torch.zeros(seen.shape, dtype=self.network.dtype).masked_fill_(~seen, lowest)
            inputs |= {"attention_mask": mask.unsqueeze(1).to(device), "position_ids": depths.to(device)}
        edges = [(row * width + node, token) for row, each in enumerate(trees) for node, token in each.edges]
        sources, targets = torch.tensor(edges, device=device).unbind(1)  # [N], [N]
        if self.plain_head:
            hidden = self.network.base_model(**inputs).last_hidden_state.flatten(0, 1)  # [B T, H]
            chunks = zip(sources.split(CHUNK), targets.split(CHUNK), strict=True)
            logps = torch.cat([logps_at(self.head(hidden[part]), wanted) for part, wanted in chunks])  # [N]
        else:
            with head_at(self.head, sources):
                logps = logps_at(self.network(**inputs).logits[0], targets, chunk=CHUNK)
        by_tree = logps.cpu().split([len(each.edges) for each in trees])
        return [[values[path] for path in each.paths] for values, each in zip(by_tree, trees, strict=True)]

    def _try(self, vocabulary: int) -> None:
        """Set both flags: compare the head on one token, exactly, and a tree with two separate rows."""
        import torch

        one = torch.tensor([[vocabulary - 1]], device=self.network.device)
        own = self.head(self.network.base_model(input_ids=one).last_hidden_state)
        self.plain_head = torch.equal(own.float(), self.network(input_ids=one).logits.float())
        prompt, *answers = ([(seed + 7 * i) % vocabulary for i in range(8)] for seed in (1, 2, 3))
        try:
            shared = self._read([tree(prompt, answers)], branching=True)[0]
        except (RuntimeError, TypeError, ValueError):  # it supports no 4-D mask or no positions
            self.shares_prompt = False
            return
        alone = [row[0] for row in self._read([tree(prompt, [answer]) for answer in answers], branching=False)]
        tolerance = 1e-3 if self.network.dtype == torch.float32 else 0.1
        spread = torch.cat(alone).std().item()
        self.shares_prompt = bool((torch.cat(shared) - torch.cat(alone)).abs().max() <= tolerance * max(spread, 1e-3))


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
