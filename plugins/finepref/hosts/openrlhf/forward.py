"""A forward pass of OpenRLHF's unmodified Actor that computes logits only where the loss reads them.

The same code serves padded, packed and ring-attention batches. The positions that predict a needed token are marked in
the layout that the Actor gives its model. Only these positions reach the output head (see `finepref.losses.chunked`),
and the host's own functions bring the results back to label space. 2B responses, L tokens, T = L - 1.
"""

from __future__ import annotations

from typing import Any

import torch
from openrlhf.models.ring_attn_utils import gather_and_pad_tensor, unpad_and_slice_tensor
from torch import Tensor

from finepref.hosts.logits import AllLogits, Logits, NeededLogits
from finepref.losses import chunked
from finepref.losses.positions import marked_positions, place_at


def run(
    actor: Any, ids: Tensor, attention_mask: Tensor, needed: Tensor, *, count: int, ring: Any, full: bool
) -> tuple[Logits, Any]:
    """One forward pass.

    Args:
        actor: the host's Actor, its model in a DeepSpeed engine or not.
        ids, attention_mask: [2B, L], padded on the right.
        needed: bool [2B, T], the tokens that the loss reads, in label space.
        count: how many there are, so that nobody waits for an accelerator to know it. With ring attention this rank
            has a part of them, and the host itself waits.
        ring: the ring-attention process group, or None.
        full: compute the logits of every position.

    Returns:
        The logits, and the model's output (for the balancing loss of mixtures of experts).
    """
    batch, length = ids.shape
    if full:
        output = actor(ids, None, attention_mask, return_output=True, allgather_logits=True, ring_attn_group=ring)
        return AllLogits(output["logits"].reshape(batch, length, -1), ids, needed), output

    marked = torch.nn.functional.pad(needed, (0, 1))  # [2B, L], at the predicting positions
    if actor.packing_samples:
        _, _, targets, gap, indices = unpad_and_slice_tensor(ids, attention_mask, ring)  # [1, all tokens / ring]
        marked = unpad_and_slice_tensor(marked.long(), attention_mask, ring)[0].bool()
    else:
        targets = ids.roll(-1, 1)

    positions = marked_positions(marked, count if ring is None else None)

    def place(values: Tensor) -> Tensor:
        there = place_at(values, positions, marked)
        if actor.packing_samples:
            there = gather_and_pad_tensor(there, ring, gap, indices, batch, length)
        return there[:, :-1]

    with chunked.head_at(head_of(actor), positions):
        output = actor(ids, None, attention_mask, return_output=True, ring_attn_group=ring)
    return NeededLogits(output["logits"].squeeze(0), targets.flatten()[positions], place), output


def head_of(actor: Any) -> Any:
    """The output head inside an Actor, its DeepSpeed engine and its LoRA wrapper."""
    engine = actor.model
    return getattr(engine, "module", engine).get_output_embeddings()
