"""How many floating-point operations a training step takes, at least or as a peer makes it: counted, not measured.

Counted are matrix products, two operations per multiplication and addition, of a Llama with frozen weights and LoRA on
every linear layer but the head, under gradient checkpointing. Per token:

    layers, forward          2 W + 2 A             W weights and A adapter weights of all layers
    layers, with a gradient  2 x forward           the second time is the recomputation
                             + 2 W + 4 A           frozen weights: the gradient of activations only
    attention                4 h per token that is looked at, forward; 8 h backward; h = heads x head size
    head                     2 H V per position, forward; as much again for the gradient of its input

The bound of one of our arms is what is left when each record is one tree of tokens without padding, the head is
applied to needed positions only, nothing of [positions, V] is kept, and, with the cache, no reference model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Sizes:
    """Sizes of a Llama, and the rank of its adapter."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int
    rank: int = 8

    @property
    def linear(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers of a block."""
        narrow = self.hidden // self.heads * self.key_value_heads
        attention = [(self.hidden, self.hidden), (self.hidden, narrow), (self.hidden, narrow)]
        up = (self.hidden, self.intermediate)
        return [*attention, (self.hidden, self.hidden), up, up, (self.intermediate, self.hidden)]

    @property
    def weights(self) -> int:
        """Weights of the linear layers of all blocks."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear)

    @property
    def adapter(self) -> int:
        """Weights of the adapter."""
        return self.layers * sum(self.rank * (inputs + outputs) for inputs, outputs in self.linear)


class Work(NamedTuple):
    """Operations of the layers, and of the head."""

    layers: float = 0
    head: float = 0

    def __add__(self, other: Work) -> Work:  # type: ignore[override]
        return Work(self.layers + other.layers, self.head + other.head)

    @property
    def total(self) -> float:
        return self.layers + self.head


class Tokens(NamedTuple):
    """Tokens that a forward pass reads, and how many tokens they look at together."""

    count: int
    seen: int


Sequence_ = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of a response."""


class Record(NamedTuple):
    """The sequences of a record: those trained on, and those of which only the log-probability is read (KTO's KL)."""

    trained: list[Sequence_]
    read: list[Sequence_] = []


def padded(sequences: Sequence[Sequence_], multiple: int = 1) -> Tokens:
    """Rows of a batch, all as long as the longest, which is rounded up."""
    longest = max(len(prompt) + len(response) for prompt, response in sequences)
    longest += -longest % multiple
    return Tokens(len(sequences) * longest, len(sequences) * triangle(longest))


def triangle(length: int) -> int:
    """How many tokens those of a row look at together, each at itself too."""
    return length * (length + 1) // 2


def tree(sequences: Sequence[Sequence_], within: Sequence[Sequence_] = ()) -> Tokens:
    """Tokens of the sequences as one tree: a common beginning counts once, and not at all if it is `within` others."""
    before = {node for sequence in within for node in _nodes(sequence)}
    nodes = {node for sequence in sequences for node in _nodes(sequence)} - before
    return Tokens(len(nodes), sum(map(len, nodes)))


def needed(sequences: Sequence[Sequence_], within: Sequence[Sequence_] = ()) -> int:
    """Positions that predict a token of a response; a common one counts once."""
    before = {node for sequence in within for node in _predicting(sequence)}
    return len({node for sequence in sequences for node in _predicting(sequence)} - before)


def _nodes(sequence: Sequence_) -> list[tuple[int, ...]]:
    ids = (*sequence[0], *sequence[1])
    return [ids[:end] for end in range(1, len(ids) + 1)]


def _predicting(sequence: Sequence_) -> list[tuple[int, ...]]:
    prompt = len(sequence[0])
    return _nodes(sequence)[prompt - 1 : -1]


def forward(sizes: Sizes, tokens: Tokens, *, adapter: bool = True) -> Work:
    """One pass through the layers."""
    linear = sizes.weights + (sizes.adapter if adapter else 0)
    return Work(2 * linear * tokens.count + 4 * sizes.layers * sizes.hidden * tokens.seen)


def trained(sizes: Sizes, tokens: Tokens) -> Work:
    """Forward, recomputed forward and backward through the layers."""
    backward = (2 * sizes.weights + 4 * sizes.adapter) * tokens.count + 8 * sizes.layers * sizes.hidden * tokens.seen
    return Work(2 * forward(sizes, tokens).layers + backward)


def head(sizes: Sizes, positions: float, products: int) -> Work:
    """Matrix products of the head, each with `positions` rows."""
    return Work(head=2 * sizes.hidden * sizes.vocabulary * positions * products)


def _peer_pairs(reference: bool, products: int) -> Callable[[Sizes, Sequence[Record]], Work]:
    def count(sizes: Sizes, batch: Sequence[Record]) -> Work:
        tokens = padded([sequence for record in batch for sequence in record.trained], 8)
        work = trained(sizes, tokens) + head(sizes, tokens.count, products)
        if reference:
            work += forward(sizes, tokens, adapter=False) + head(sizes, tokens.count, 1)
        return work

    return count


def _peer_unpaired(products: int) -> Callable[[Sizes, Sequence[Record]], Work]:
    def count(sizes: Sizes, batch: Sequence[Record]) -> Work:
        rows = padded([sequence for record in batch for sequence in record.trained], 8)
        others = padded([sequence for record in batch for sequence in record.read], 8)
        work = trained(sizes, rows) + head(sizes, rows.count, products)
        work += forward(sizes, others) + head(sizes, others.count, 1)
        for tokens in (rows, others):
            work += forward(sizes, tokens, adapter=False) + head(sizes, tokens.count, 1)
        return work

    return count


def _our_pairs(reference: bool, share: float = 1.0) -> Callable[[Sizes, Sequence[Record]], Work]:
    def count(sizes: Sizes, batch: Sequence[Record]) -> Work:
        work = Work()
        for record in batch:
            tokens, positions = tree(record.trained), share * needed(record.trained)
            work += trained(sizes, tokens) + head(sizes, positions, 2)
            if reference:
                work += forward(sizes, tokens, adapter=False) + head(sizes, positions, 1)
        return work

    return count


def _our_tdpo(sizes: Sizes, batch: Sequence[Record]) -> Work:
    """The KL of the rejected response has a gradient of its own: log-probability and KL take a product each."""
    work = _our_pairs(reference=True)(sizes, batch)
    for record in batch:
        _, rejected = record.trained
        work += head(sizes, needed([rejected]), 1)
    return work


def _our_unpaired(reference: bool) -> Callable[[Sizes, Sequence[Record]], Work]:
    def count(sizes: Sizes, batch: Sequence[Record]) -> Work:
        work = Work()
        for record in batch:
            rows, others = tree(record.trained), tree(record.read, within=record.trained)
            positions, other_positions = needed(record.trained), needed(record.read, within=record.trained)
            work += trained(sizes, rows) + head(sizes, positions, 2)
            work += forward(sizes, others) + head(sizes, other_positions, 1)
            if reference:
                both = Tokens(rows.count + others.count, rows.seen + others.seen)
                work += forward(sizes, both, adapter=False) + head(sizes, positions + other_positions, 1)
        return work

    return count


COSTS: dict[str, Callable[[Sizes, Sequence[Record]], Work]] = {
    "all logits, one model": _peer_pairs(reference=False, products=2),
    "all logits": _peer_pairs(reference=True, products=2),
    "all logits, unpaired": _peer_unpaired(products=2),
    "recomputed head": _peer_pairs(reference=True, products=3),
    "recomputed head, unpaired": _peer_unpaired(products=3),
    "30 % of the tokens": _our_pairs(reference=False, share=0.3),
    "tokens": _our_pairs(reference=True),
    "tokens, cached": _our_pairs(reference=False),
    "tokens and KL": _our_tdpo,
    "unpaired": _our_unpaired(reference=True),
    "unpaired, cached": _our_unpaired(reference=False),
}
"""Name of a cost -> operations of a micro-batch of records."""


def work_of(cost: str, sizes: Sizes, records: Sequence[Record], batch: int) -> Work:
    """Operations of all micro-batches of an epoch in order, `batch` records each."""
    work = Work()
    for start in range(0, len(records), batch):
        work += COSTS[cost](sizes, records[start : start + batch])
    return work
