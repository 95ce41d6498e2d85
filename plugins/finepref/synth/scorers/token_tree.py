"""A prompt and its responses as a tree of tokens, in which common beginnings are held once; batches of such trees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from finepref.synth.scorers.protocol import Item

if TYPE_CHECKING:
    import torch

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


def batches(items: Iterable[Item], *, batch_tokens: int) -> list[list[Item]]:
    """Items in batches of similar size, the largest first: B T <= batch_tokens, and little padding."""
    sized = sorted(((len(nodes(item).tokens), item) for item in items), key=lambda pair: -pair[0])
    made: list[list[Item]] = []
    width = 0
    for size, item in sized:
        if not made or (len(made[-1]) + 1) * width > batch_tokens or size < (1 - MOST_PADDING) * width:
            made.append([])
            width = size
        made[-1].append(item)
    return made


def padding(made: Sequence[Sequence[Item]]) -> float:
    """The share of padding in batches of trees."""
    sizes = [[len(nodes(item).tokens) for item in batch] for batch in made]
    whole = sum(max(batch) * len(batch) for batch in sizes)
    return 1 - sum(map(sum, sizes)) / whole if whole else 0.0


def ancestors(trees: Sequence[Tree], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that each token attends to (itself and its ancestors), bool [B, T, T]; and its depth, [B, T]."""
    import torch

    seen = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    depths = torch.zeros(len(trees), width, dtype=torch.long)
    for each, rows, depth in zip(trees, seen.numpy(), depths.numpy(), strict=True):
        for node, parent in enumerate(each.parents):
            if parent >= 0:
                rows[node] |= rows[parent]
                depth[node] = depth[parent] + 1
    return seen, depths
