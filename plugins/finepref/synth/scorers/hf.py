"""Log-probabilities of given responses: the protocol, and a Hugging Face model that reads once what responses share.

A prompt and its responses form a tree of tokens, which one row of the batch holds: each token sees its ancestors only
(a 4-D attention mask) and its position is its depth. The output head is applied to the tokens before each response
token, a chunk at a time. A model that gives other numbers that way is found out when it is loaded; it then reads
every response in a row of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from finepref.synth.engines.hf import folder_digest, load_model

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

CHUNK = 128
"""Positions that go through the output head at a time: on a CPU their logits should stay in its cache."""
MOST_PADDING = 0.03
"""A batch holds only rows so much shorter than its longest."""


class Item(NamedTuple):
    """One prompt and its responses as token ids; the responses end in the end-of-sequence token."""

    id: str
    prompt: Sequence[int]
    responses: Mapping[str, Sequence[int]]


class Tree(NamedTuple):
    """Token sequences whose common beginnings are held once.

    Attributes:
        tokens: [N], of the nodes; a response's last token predicts nothing that is asked for and is none.
        parents: [N], the node before each node, -1 before the first; always a smaller number.
        edges: [E] of (node, token after it): the log-probabilities asked for.
        paths: per response the edges along it, one per token.
    """

    tokens: list[int]
    parents: list[int]
    edges: list[tuple[int, int]]
    paths: list[list[int]]


def tree(prompt: Sequence[int], responses: Iterable[Sequence[int]]) -> Tree:
    """The tree of a prompt (one token or more) and its responses."""
    tokens, parents = list(prompt), list(range(-1, len(prompt) - 1))
    numbers: dict[tuple[int, int], int] = {}
    children: dict[tuple[int, int], int] = {}
    paths: list[list[int]] = []
    for response in responses:
        node, path = len(prompt) - 1, []
        for i, token in enumerate(response, start=1):
            edge = (node, token)
            path.append(numbers.setdefault(edge, len(numbers)))
            if i < len(response):
                if edge not in children:
                    children[edge] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                node = children[edge]
        paths.append(path)
    return Tree(tokens, parents, list(numbers), paths)


class Scorer(Protocol):
    """A causal language model that gives the log-probability of each token of given responses.

    Attributes:
        name: folder or hub name of the model.
        model: a name for what the numbers depend on, for the journal's manifest.
        batch_tokens: most tokens that are read at a time.
    """

    name: str
    model: str
    batch_tokens: int

    def logps(self, items: Iterable[Item], *, done: Iterable[str] = ()) -> Iterator[list[tuple[str, Logps]]]:
        """Load the model, then (id, response name -> float32 [R]) of each item, those together that got ready so.

        Which items are read together depends on the items alone, also where some are `done` and need not be read.
        """
        ...


class LocalScorer(ABC):
    """A `Scorer` that has its model in this process while its `logps` are read, one group of items after another."""

    name: str
    model: str
    batch_tokens: int

    @abstractmethod
    def groups(self, items: Iterable[Item]) -> list[list[Item]]:
        """Every item in one group, in groups whose numbers depend on the group alone."""

    @abstractmethod
    def loaded(self, items: Sequence[Item]) -> AbstractContextManager[Read]:
        """The model with room for the items: what reads a group, those together that get ready so."""

    def logps(self, items: Iterable[Item], *, done: Iterable[str] = ()) -> Iterator[list[tuple[str, Logps]]]:
        """See `Scorer`; a group is left out when all its ids are `done`. Raises what `loaded` raises."""
        ordered, finished = [*items], {*done}
        with self.loaded(ordered) as read:
            for group in unfinished(self.groups(ordered), finished):
                for together in read(group):
                    if new := [each for each in together if each[0] not in finished]:
                        yield new


def unfinished(groups: Iterable[list[Item]], finished: Set[str]) -> list[list[Item]]:
    """The groups that have more than what is finished."""
    return [group for group in groups if not finished >= {item.id for item in group}]


class HfScorer(LocalScorer):
    """A `Scorer` that is a Hugging Face model.

    Args:
        model: folder or hub name.
        adapter: folder or hub name of a peft adapter to put on the model.
        dtype: of the weights, such as float32; "auto" is the checkpoint's.
        batch_tokens: most tokens in a batch, padding included; a longer item has a batch of its own.
    """

    def __init__(
        self, model: str, *, adapter: str | None = None, dtype: str = "auto", batch_tokens: int = 2048
    ) -> None:
        self.name, self.adapter, self.dtype, self.batch_tokens = model, adapter, dtype, batch_tokens
        self.model = f"hf:{weights(model, adapter)}:{dtype}"

    def groups(self, items: Iterable[Item]) -> list[list[Item]]:
        """The batches."""
        return batches(items, batch_tokens=self.batch_tokens)

    @contextmanager
    def loaded(self, items: Sequence[Item]) -> Iterator[Read]:
        """See `LocalScorer`; a batch is ready at once."""
        network, _ = load_model(self.name, adapter=self.adapter, dtype=self.dtype)
        reader = Reader(network)
        yield lambda batch: [list(zip([item.id for item in batch], reader.logps(batch), strict=True))]


Logps = Mapping[str, "Tensor"]
Read = Callable[[Sequence[Item]], Iterable[list[tuple[str, Logps]]]]


class Reader:
    """A loaded model together with what is known of it: `shares_prompt` and `plain_head` by a trial.

    `plain_head` says whether the logits are the output head's own values, not scaled or capped afterwards.

    A reward is the small difference of two log-probabilities. So a model in bfloat16 or float16 multiplies matrices in
    that format, and keeps what its layers add up (the residual stream) and its logits in float32: the network that is
    given is changed to that.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        import torch

        self.network = network.get_base_model() if hasattr(network, "get_base_model") else network
        self.mixed = self.network.dtype in {torch.bfloat16, torch.float16}
        if self.mixed:
            self.network.get_input_embeddings().register_forward_hook(lambda *call: call[-1].float())
            self.network.set_output_embeddings(_float_head(self.network.get_output_embeddings()))
            for vector in (each for each in self.network.parameters() if each.dim() == 1):
                vector.data = vector.data.float()  # such as LayerNorm's, whose input is float32 now
        self.head = self.network.get_output_embeddings()
        config = self.network.config.get_text_config()
        windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        self.window: int = min((window for window in windows if window), default=2**31)
        self.shares_prompt = self.plain_head = True
        with self._inference():
            self._try(config.vocab_size)

    def logps(self, items: Sequence[Item]) -> list[dict[str, Tensor]]:
        """Per item: response name -> log pi of each token, float32 [R] on the CPU, in one batch."""
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
        if self.mixed:  # of the head's product alone, whose weights TF32 holds exactly if they were bfloat16
            torch.set_float32_matmul_precision("high")
        try:
            with torch.inference_mode(), autocast:
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def _read(self, trees: Sequence[Tree], *, branching: bool) -> list[list[Tensor]]:
        """Per tree and response [R]. Without branches the model's own causal mask does: the padding comes last."""
        import torch

        from finepref.losses.chunked import head_at, logps_at

        device = self.network.device
        width = max(len(each.tokens) for each in trees)
        ids = torch.tensor([each.tokens + [0] * (width - len(each.tokens)) for each in trees], device=device)  # [B, T]
        inputs: dict[str, object] = {"input_ids": ids, "use_cache": False}
        if branching:
            seen, depths = _ancestors(trees, width)
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
        """Set both flags: the head by one token, exactly; the tree against two rows of their own."""
        import torch

        one = torch.tensor([[vocabulary - 1]], device=self.network.device)
        own = self.head(self.network.base_model(input_ids=one).last_hidden_state)
        self.plain_head = torch.equal(own.float(), self.network(input_ids=one).logits.float())
        prompt, *answers = ([(seed + 7 * i) % vocabulary for i in range(8)] for seed in (1, 2, 3))
        try:
            shared = self._read([tree(prompt, answers)], branching=True)[0]
        except (RuntimeError, TypeError, ValueError):  # it takes no 4-D mask or no positions
            self.shares_prompt = False
            return
        alone = [row[0] for row in self._read([tree(prompt, [answer]) for answer in answers], branching=False)]
        tolerance = 1e-3 if self.network.dtype == torch.float32 else 0.1
        spread = torch.cat(alone).std().item()
        self.shares_prompt = bool((torch.cat(shared) - torch.cat(alone)).abs().max() <= tolerance * max(spread, 1e-3))


def _float_head(head: nn.Module) -> nn.Module:
    """A copy of an output head that computes in float32, whatever the format around it."""
    import torch

    class FloatHead(torch.nn.Module):
        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.head = deepcopy(head).float()

        def forward(self, hidden: Tensor) -> Tensor:
            with torch.autocast(hidden.device.type, enabled=False):
                return self.head(hidden.float())

    return FloatHead(head)


def batches(items: Iterable[Item], *, batch_tokens: int) -> list[list[Item]]:
    """Items in batches of similar size, the largest first: B T <= batch_tokens, and little padding in each."""
    sized = sorted(((len(nodes(item).tokens), item) for item in items), key=lambda pair: -pair[0])
    made: list[list[Item]] = []
    width = 0
    for size, item in sized:
        if not made or (len(made[-1]) + 1) * width > batch_tokens or size < (1 - MOST_PADDING) * width:
            made.append([])
            width = size
        made[-1].append(item)
    return made


def weights(model: str, adapter: str | None) -> str:
    """The digests of a model and its adapter, or the names of what is no folder here."""
    names = [model] if adapter is None else [model, adapter]
    return "+".join(folder_digest(Path(name)) if Path(name).is_dir() else name for name in names)


def padding(made: Sequence[Sequence[Item]]) -> float:
    """The share of padding in batches of trees."""
    sizes = [[len(nodes(item).tokens) for item in batch] for batch in made]
    whole = sum(max(batch) * len(batch) for batch in sizes)
    return 1 - sum(map(sum, sizes)) / whole if whole else 0.0


def nodes(item: Item) -> Tree:
    """The tree of an item's prompt and all its responses."""
    return tree(item.prompt, item.responses.values())


def _ancestors(trees: Sequence[Tree], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens each token sees: itself and its ancestors, bool [B, T, T]; and its depth, [B, T]."""
    import torch

    seen = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    depths = torch.zeros(len(trees), width, dtype=torch.long)
    for each, rows, depth in zip(trees, seen.numpy(), depths.numpy(), strict=True):
        for node, parent in enumerate(each.parents):
            if parent >= 0:
                rows[node] |= rows[parent]
                depth[node] = depth[parent] + 1
    return seen, depths
