"""A prompt and its responses as a tree of tokens, in which common beginnings are held once; batches of such trees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from finepref.synth.scorers.protocol import Item

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MOST_PADDING = 0.03
"""The most padding in a row, as a share of the batch's longest row."""


class Tree(NamedTuple):
    """Token sequences whose common beginnings are held once.

    Attributes:
        tokens: [N], of the nodes. A response's last token predicts nothing that is needed, so it is not a node.
        parents: [N], the node before each node, -1 before the first; always a smaller number.
        edges: [E] of (node, token after it): the log-probabilities that are needed.
        paths: for each response, the numbers of the edges along it, one per token.
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


def nodes(item: Item) -> Tree:
    """The tree of an item's prompt and all its responses."""
    return tree(item.prompt, item.responses.values())


def size(item: Item) -> int:
    """The number of nodes of an item's tree, without making the tree.

    In sorted order each sequence shares most with the one before it, so only what it does not share is new.
    """
    before: list[int] = []
    new = 0
    for tokens in sorted([*response[:-1]] for response in item.responses.values()):
        shared = next((i for i, pair in enumerate(zip(before, tokens)) if pair[0] != pair[1]), None)  # noqa: B905
        new += len(tokens) - (min(len(before), len(tokens)) if shared is None else shared)
        before = tokens
    return len(item.prompt) + new


def batches(items: Iterable[Item], *, batch_tokens: int) -> list[list[Item]]:
    """Items in batches of similar size, the largest first: B T <= batch_tokens, and little padding."""
    sized = sorted(((size(item), item) for item in items), key=lambda pair: -pair[0])
    made: list[list[Item]] = []
    width = 0
    for nodes_of_item, item in sized:
        full = not made or (len(made[-1]) + 1) * width > batch_tokens
        if full or nodes_of_item < (1 - MOST_PADDING) * width:
            made.append([])
            width = nodes_of_item
        made[-1].append(item)
    return made


def padding(made: Sequence[Sequence[Item]]) -> float:
    """The share of padding in batches of trees."""
    sizes = [[size(item) for item in batch] for batch in made]
    whole = sum(max(batch) * len(batch) for batch in sizes)
    return 1 - sum(map(sum, sizes)) / whole if whole else 0.0


class Packed(NamedTuple):
    """Trees as the rows of one batch, padded at the end; int64 on the CPU, small beside the mask [B, T, T].

    Attributes:
        ids: [B, T], 0 as padding.
        depths: [B, T], the number of ancestors; 0 as padding.
        first, last: [B, T], the numbers of a node and of its last descendant in a walk that visits a node before its
            children and each branch to its end. So j is i or an ancestor of i if first[j] <= first[i] <= last[j].
            Padding stands after all nodes, each token by itself.
        sources: [N], where an edge starts, in the flat [B T].
        targets: [N], the token that follows there.
    """

    ids: torch.Tensor
    depths: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    sources: torch.Tensor
    targets: torch.Tensor


def pack(trees: Sequence[Tree]) -> Packed:
    """Trees (one or more, with one edge or more) as one batch."""
    import torch

    width = max(len(each.tokens) for each in trees)
    rows = [(each.tokens + [0] * (width - len(each.tokens)), *_walk(each.parents, width)) for each in trees]
    ids, depths, first, last = (torch.tensor(column) for column in zip(*rows, strict=True))
    edges = [(row * width + node, token) for row, each in enumerate(trees) for node, token in each.edges]
    sources, targets = torch.tensor(edges).unbind(1)
    return Packed(ids, depths, first, last, sources.contiguous(), targets.contiguous())


def _walk(parents: Sequence[int], width: int) -> tuple[list[int], list[int], list[int]]:
    """Depths, first and last numbers as in `Packed`, each [T]. A parent has a smaller number than its children."""
    count = len(parents)
    sizes = [1] * count
    for node in range(count - 1, 0, -1):
        if parents[node] >= 0:
            sizes[parents[node]] += sizes[node]
    depths, first, free, roots = [0] * width, [*range(width)], [0] * count, 0
    for node, parent in enumerate(parents):
        if parent < 0:
            first[node], roots = roots, roots + sizes[node]
        else:
            first[node], depths[node] = free[parent], depths[parent] + 1
            free[parent] += sizes[node]
        free[node] = first[node] + 1
    last = [start + sizes[node] - 1 if node < count else start for node, start in enumerate(first)]
    return depths, first, last


def seen(first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """What each token attends to, itself and its ancestors: [B, T], [B, T] of `Packed` -> bool [B, T, T].

    It is made where the two tensors are, so that no mask is copied to an accelerator.
    """
    of = first.unsqueeze(2)  # the token that attends, [B, T, 1]
    return (first.unsqueeze(1) <= of) & (of <= last.unsqueeze(1))


def mask(first: torch.Tensor, last: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`seen` as a model takes it, [B, 1, T, T]: as it is for bool, else 0 where it is True and `dtype`'s least number.

    A kernel of `sdpa` takes the former, or the dtype of its queries; `eager` attention adds the latter to its scores.
    """
    import torch

    there = seen(first, last)
    if dtype == torch.bool:
        return there.unsqueeze(1)
    hidden = there.logical_not_()
    made = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return made.masked_fill_(hidden, torch.finfo(dtype).min).unsqueeze(1)


def by_response(trees: Sequence[Tree], values: Tensor) -> list[list[Tensor]]:
    """The values [N] of all response tokens, on the CPU, for each tree and response [R]."""
    by_tree = values.cpu().split([len(each.edges) for each in trees])
    return [[each[path] for path in one.paths] for each, one in zip(by_tree, trees, strict=True)]


def window_of(config: Any) -> int:
    """How many tokens back a model's attention reaches at least, by its configuration: a sliding window or a chunk."""
    found = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((window for window in found if window), default=2**31)


Reading = Callable[..., "list[list[Tensor]]"]
"""(trees, their `Packed`, branching=whether they branch) -> for each tree and response log pi [R], on the CPU."""


def why_apart(read: Reading, config: Any, dtype: torch.dtype) -> str:
    """Why a model must read each response in a row of its own; "" if it gives the same numbers in a tree.

    It is tried, with a prompt and two responses of 8 tokens.

    Args:
        read: the model. What it raises for a tree is a reason, such as that it supports no 4-D mask or no positions.
        config: of the model's text part.
        dtype: of its weights.
    """
    import torch

    vocabulary = config.vocab_size
    prompt, *answers = ([(seed + 7 * i) % vocabulary for i in range(8)] for seed in (1, 2, 3))
    try:
        whole = [tree(prompt, answers)]
        shared = read(whole, pack(whole), branching=True)[0]
    except Exception as error:  # whatever a model does with a mask that it does not know
        lines = str(error).splitlines() or [""]
        return f"it cannot read a tree of tokens ({type(error).__name__}: {lines[0]})"
    each = [tree(prompt, [answer]) for answer in answers]
    alone = [row[0] for row in read(each, pack(each), branching=False)]
    tolerance = 1e-3 if dtype in (torch.float32, torch.float64) else 0.1
    spread = torch.cat(alone).std().item()
    off = (torch.cat(shared) - torch.cat(alone)).abs().max()
    same = bool(off <= tolerance * max(spread, 1e-3))
    return "" if same else f"it gives other log-probabilities in a tree of tokens, by up to {off:.2g}"
