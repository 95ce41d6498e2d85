"""A forward pass of OpenRLHF's unmodified Actor that computes log-probabilities where the loss reads them.

The same code serves padded, packed and ring-attention batches. The positions that predict a needed token are marked in
the layout that the Actor gives its model. Only these positions reach the output head (see
`finepref.hosts.token_values`), and the host's own functions bring the results back to label space. 2B responses,
L tokens, T = L - 1.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from openrlhf.models.ring_attn_utils import gather_and_pad_tensor, unpad_and_slice_tensor
from torch import Tensor

from finepref.hosts.sharing import Model
from finepref.hosts.token_values import (
    AllLogits,
    Pass,
    Reference,
    TokenValues,
    Wanted,
    read,
    read_reference,
)
from finepref.hosts.trees import Trees
from finepref.losses.positions import marked_positions, place_at


class Rows(NamedTuple):
    """The rows of a forward pass.

    Attributes:
        ids, attention_mask: [2B, L], padded on the right.
        needed: bool [2B, T], the tokens that the loss reads, in label space.
        count: how many there are, so that nobody waits for an accelerator to know it. With ring attention this rank
            has a part of them, and the host itself waits.
        ring: the ring-attention process group, or None.
        full: compute the logits of every position.
        rejected_from: see `Wanted`; of no use with ring attention.
    """

    ids: Tensor
    attention_mask: Tensor
    needed: Tensor
    count: int
    ring: Any
    full: bool
    rejected_from: int = 0

    def wanted(self, actor: Any) -> Wanted:
        """The needed tokens as positions of the layout in which the Actor runs its model."""
        batch, length = self.ids.shape
        marked = torch.nn.functional.pad(self.needed, (0, 1))  # [2B, L], at the predicting positions
        if actor.packing_samples:
            _, _, targets, gap, indices = unpad_and_slice_tensor(self.ids, self.attention_mask, self.ring)
            marked = unpad_and_slice_tensor(marked.long(), self.attention_mask, self.ring)[0].bool()  # [1, tokens]
        else:
            targets = self.ids.roll(-1, 1)
        positions = marked_positions(marked, self.count if self.ring is None else None)

        def place(values: Tensor) -> Tensor:
            there = place_at(values, positions, marked)
            if actor.packing_samples:
                there = gather_and_pad_tensor(there, self.ring, gap, indices, batch, length)
            return there[:, :-1]

        return Wanted(positions, targets.flatten()[positions], place, 0 if self.ring else self.rejected_from)


def model_of(actor: Any) -> Model:
    """An Actor without what it makes of rows: the model inside, and how it is run as the Actor runs it."""

    def run(inputs: dict[str, Tensor]) -> Tensor:
        return _output(actor, inputs)["logits"]

    return Model(_network(actor), run)


def values(actor: Any, rows: Rows | Trees, reference: Any = None, *, kl: str = "") -> tuple[TokenValues, Any]:
    """Values of the policy, and the model's output (for the balancing loss of mixtures of experts).

    Args:
        actor: the host's Actor, its model in a DeepSpeed engine or not.
        rows: what is read.
        reference: what `reference_of` has returned, or None.
        kl: as `Stage.kl`.
    """
    outputs: list[Any] = []
    with _as_it_runs(actor):
        if isinstance(rows, Rows) and rows.full:
            if isinstance(reference, Reference):  # of a file
                return _all_logits(actor, rows, outputs).values()._replace(reference=reference.logps), outputs[0]
            return _all_logits(actor, rows, outputs).values(reference, kl=kl), outputs[0]
        return read(_pass(actor, rows, outputs), _wanted(actor, rows), reference, kl=kl), outputs[0]


def reference_of(actor: Any, rows: Rows | Trees, policy: Any, *, kl: str = "") -> Reference | AllLogits:
    """The reference's pass, without gradients, for `values`.

    Args:
        actor: the reference.
        rows, kl: as there.
        policy: the Actor that is trained.
    """
    with torch.no_grad(), _as_it_runs(actor):
        if isinstance(rows, Rows) and rows.full:
            return _all_logits(actor, rows, [])
        return read_reference(_pass(actor, rows, []), _wanted(actor, rows), _network(policy), kl=kl)


def _as_it_runs(actor: Any) -> AbstractContextManager[Any]:
    """The state in which the Actor runs: with its adapter switched off, if it is `training.WithoutAdapter`."""
    return actor.switched_off() if hasattr(actor, "switched_off") else nullcontext()


def _all_logits(actor: Any, rows: Rows, outputs: list[Any]) -> AllLogits:
    ids = rows.ids
    outputs.append(
        actor(ids, None, rows.attention_mask, return_output=True, allgather_logits=True, ring_attn_group=rows.ring)
    )
    return AllLogits(outputs[0]["logits"].reshape(*ids.shape, -1), ids, rows.needed)


def _wanted(actor: Any, rows: Rows | Trees) -> Wanted:
    return rows.wanted if isinstance(rows, Trees) else rows.wanted(actor)


def _pass(actor: Any, rows: Rows | Trees, outputs: list[Any]) -> Pass:
    def run() -> Tensor:
        if isinstance(rows, Trees):
            outputs.append(_output(actor, rows.inputs))
        else:
            outputs.append(actor(rows.ids, None, rows.attention_mask, return_output=True, ring_attn_group=rows.ring))
        return outputs[0]["logits"]

    def one(ids: Tensor) -> Tensor:
        mask = None if actor.packing_samples else torch.ones_like(ids)
        return actor.model(ids, attention_mask=mask, position_ids=torch.zeros_like(ids))["logits"]

    return Pass(_network(actor), run, one if isinstance(rows, Trees) or rows.ring is None else None)


def _output(actor: Any, inputs: dict[str, Tensor]) -> Any:
    """The model's output of inputs with positions, which the Actor would compute from a mask of rows.

    Without the balancing loss, which the Actor always asks experts for: it would count tokens by a mask of rows.
    """
    ids, mask, positions = (inputs[name] for name in ("input_ids", "attention_mask", "position_ids"))
    config = _network(actor).config
    options = {"output_router_logits": False} if getattr(config, "output_router_logits", False) else {}
    return actor.model(ids, attention_mask=mask, position_ids=positions, **options)


def _network(actor: Any) -> Any:
    """The model inside an Actor and its DeepSpeed engine."""
    engine = actor.model
    return getattr(engine, "module", engine)
