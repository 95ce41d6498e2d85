"""The responses of a record as one tree of tokens: what they have in common is read once, in training too.

The collators of both hosts make the trees, on the CPU and beside the training. Each fills one row of a batch: a token
attends to itself and its ancestors, and its position is its depth. A token that follows the same tokens in several
responses has one log-probability and one KL, which is computed once and placed into each of them; the backward pass
adds up what they give back.

Nodes are numbered in the order of a walk through the tree, which visits all of a branch before the next one, so the
descendants of node i are the nodes i + 1, ..., last[i].

M responses, R trees, W nodes of the largest, N needed log-probabilities, K places for them, L columns of the host's
rows, T = L - 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from finepref.hosts.token_values import Wanted
from finepref.synth.scorers.token_tree import mask

LEAST = 0.05
"""The smallest share of a batch's tokens, padding included, for which trees are made."""
MASK = 2**15
"""Elements of the masks that a saved token may cost: about as many as the hidden states that gradient checkpointing
keeps of a token in a model of 1B. Masks grow with the square of a tree."""
MULTIPLE = 8
"""The number of nodes in a row is a multiple of it, as the host's rows; kernels with a mask want that."""


class Row(NamedTuple):
    """A prompt with a response.

    Attributes:
        ids: [L'], its tokens.
        needed: bool [L'], the tokens of which the loss reads something. The first one cannot be.
        start: the column of its first token in the host's row.
    """

    ids: np.ndarray
    needed: np.ndarray
    start: int = 0


def rows_of(ids: Tensor, attention_mask: Tensor, needed: Tensor) -> list[Row]:
    """The rows of a padded batch: [M, L], [M, L], and bool [M, T] in label space."""
    there = attention_mask.numpy().astype(bool)
    marked = np.pad(needed.numpy(), ((0, 0), (1, 0)))
    first, count = there.argmax(1), there.sum(1)
    parts = [slice(start, start + size) for start, size in zip(first.tolist(), count.tolist(), strict=True)]
    return [Row(ids[i, part].numpy(), marked[i, part], part.start) for i, part in enumerate(parts)]


def together(names: Iterable[Any]) -> list[list[int]]:
    """The indices of equal names, each group in order."""
    groups: dict[Any, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    return [*groups.values()]


def common(one: np.ndarray, other: np.ndarray) -> int:
    """The length of the common beginning."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    first = int(differs.argmax()) if length else 0
    return first if length and differs[first] else length


def size(rows: Iterable[np.ndarray]) -> int:
    """The number of nodes of the tree of these token ids [L'] each, of one dtype. No tree is made."""
    found, before = 0, np.zeros(0, dtype=np.int64)
    for ids in sorted((ids[:-1] for ids in rows), key=np.ndarray.tobytes):
        found += len(ids) - common(before, ids)
        before = ids
    return found


class _Tree(NamedTuple):
    """One tree: tokens, depths and last descendants [n] of its nodes; (node, token) [E] of its edges, and for each
    row the edge to each of its tokens [L']; that to the first token stands for nothing.
    """

    tokens: np.ndarray
    depths: np.ndarray
    last: np.ndarray
    sources: np.ndarray
    targets: np.ndarray
    edges: list[np.ndarray]


def _grown(rows: Sequence[np.ndarray]) -> _Tree:
    """The tree of token ids [L'] of one dtype. A row's last token predicts nothing, so it is not a node.

    Sorted by the bytes of their tokens, rows with a common beginning are neighbours, so each has the most in common
    with the one before it, and what it does not have in common is new.
    """
    most = sum(map(len, rows))
    tokens, depths, last, sources, targets = (np.zeros(most, dtype=np.int64) for _ in range(5))
    nodes = edges = 0
    before, path, steps = rows[0][:0], last[:0], last[:0]
    found = {}
    for index in sorted(range(len(rows)), key=lambda i: rows[i].tobytes()):
        ids = rows[index]
        shared = common(before, ids)
        inner = max(len(ids) - 1, 0)
        kept = min(shared, len(path), inner)
        last[path[kept:]] = nodes - 1  # these branches end here
        end = nodes + inner - kept
        tokens[nodes:end], depths[nodes:end] = ids[kept:inner], np.arange(kept, inner)
        path = np.concatenate([path[:kept], np.arange(nodes, end)])
        more = edges + len(ids) - shared
        steps = np.concatenate([steps[:shared], np.arange(edges, more)])
        targets[edges:more] = ids[shared:]
        sources[edges + (shared == 0) : more] = path[max(shared, 1) - 1 :]
        nodes, edges, before, found[index] = end, more, ids, steps
    last[path] = nodes - 1
    ends = nodes, nodes, nodes, edges, edges
    cut = (values[:end] for values, end in zip((tokens, depths, last, sources, targets), ends, strict=True))
    return _Tree(*cut, [found[index] for index in range(len(rows))])


def make(
    rows: Sequence[Row], groups: Sequence[Sequence[int]], columns: int, *, chosen: int = 0, always: bool = False
) -> dict[str, Any] | None:
    """A micro-batch as trees: tensors on the CPU and Python's numbers, which hosts move as they move a batch.

    Args:
        rows: the responses, in the host's order.
        groups: the indices of the responses of each record, each index once.
        columns: L.
        chosen: the first so many rows are the chosen responses of pairs.
        always: whether to make rows in this form also where trees save less than `LEAST`, or cost more than `MASK`:
            then each response is a tree by itself, which does not branch and needs no mask.

    Returns:
        None if trees are not worth it, else what `Trees.of` takes:
            ids, depths, last: [R, W], see above.
            lengths: [R], the number of nodes.
            sources, targets: [N], flat indices of nodes, and the tokens after them.
            rejected_from: before this one of them, none is read for a rejected response.
            of, at: [K], which of the N values goes to which place in [M T]; the place M T stands for none.
            rows, columns: M, T.
            branching: whether a tree has several responses.
    """
    trees = [_grown([rows[i].ids for i in group]) for group in groups]
    cells = len(trees) * _width(trees)
    saved = len(rows) * columns - cells
    branching = saved >= LEAST * len(rows) * columns and cells * _width(trees) <= MASK * saved
    if not branching and not always:
        return None
    if not branching:
        groups, trees = [[i] for i in range(len(rows))], [_grown([row.ids]) for row in rows]
    width = _width(trees)
    ids, depths = np.zeros((2, len(trees), width), dtype=np.int64)
    last = np.tile(np.arange(width), (len(trees), 1))
    sources, targets, of, at, rejected = ([] for _ in range(5))
    count = 0
    for place, (tree, group) in enumerate(zip(trees, groups, strict=True)):
        nodes = len(tree.tokens)
        ids[place, :nodes], depths[place, :nodes], last[place, :nodes] = tree.tokens, tree.depths, tree.last
        read = [(i, np.flatnonzero(rows[i].needed), edges) for i, edges in zip(group, tree.edges, strict=True)]
        wanted, theirs = np.zeros((2, len(tree.sources)), dtype=bool)
        for i, marked, edges in read:
            wanted[edges[marked]] = True
            theirs[edges[marked]] |= i >= chosen
        numbers = count - 1 + wanted.cumsum()
        for i, marked, edges in read:
            of.append(numbers[edges[marked]])
            at.append(i * (columns - 1) + rows[i].start - 1 + marked)
        sources.append(place * width + tree.sources[wanted])
        targets.append(tree.targets[wanted])
        rejected.append(theirs[wanted])
        count += len(targets[-1])
    if not count:  # the output head stays in the graph on every rank
        sources, targets, of, at, rejected = [[0]], [[0]], [[0]], [[len(rows) * (columns - 1)]], [[True]]
    flat = {"sources": sources, "targets": targets, "of": of, "at": at, "rejected": rejected}
    flat = {name: np.concatenate(values).astype(np.int64) for name, values in flat.items()}
    theirs = flat.pop("rejected")
    order, ahead = theirs.argsort(kind="stable"), int((theirs == 0).sum())
    flat |= {name: flat[name][order] for name in ("sources", "targets")} | {"of": order.argsort()[flat["of"]]}
    return {
        "ids": torch.from_numpy(ids),
        "depths": torch.from_numpy(depths),
        "last": torch.from_numpy(last),
        "lengths": torch.tensor([len(tree.tokens) for tree in trees]),
        **{name: torch.from_numpy(values) for name, values in flat.items()},
        "rejected_from": ahead,
        "rows": len(rows),
        "columns": columns - 1,
        "branching": branching,
    }


def _width(trees: Sequence[_Tree]) -> int:
    longest = max(1, *(len(tree.tokens) for tree in trees))
    return -(-longest // MULTIPLE) * MULTIPLE


class Trees(NamedTuple):
    """Trees on the model's device: the inputs of a forward pass, and what is read of it, for the [M, T] responses."""

    inputs: dict[str, Tensor]
    wanted: Wanted

    @classmethod
    def of(cls, made: Mapping[str, Any], dtype: torch.dtype) -> Trees:
        """Trees that `make` has made and the host has moved. The mask [R, 1, W, W] is made where they are.

        Args:
            made: see `make`.
            dtype: of the mask, see `token_tree.mask`.
        """
        ids, last, lengths = made["ids"], made["last"], made["lengths"]
        numbers = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        seen = mask(numbers, last, dtype) if made["branching"] else (numbers < lengths.unsqueeze(1)).long()
        inputs = {"input_ids": ids, "attention_mask": seen, "position_ids": made["depths"]}
        shape, of, at = (made["rows"], made["columns"]), made["of"], made["at"]

        def place(values: Tensor) -> Tensor:
            flat = torch.zeros(shape[0] * shape[1] + 1, dtype=values.dtype, device=values.device)
            return flat.scatter(0, at, values.index_select(0, of))[:-1].view(shape)

        return cls(inputs, Wanted(made["sources"], made["targets"], place, made["rejected_from"]))
