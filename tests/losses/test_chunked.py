"""Cutting the output head to the needed positions and recomputing in chunks changes no number and no gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from finepref.losses.chunked import head_at, kl_at, logps_at, whole
from finepref.losses.ops import position_kl, token_logps
from finepref.losses.positions import needed_positions, place
from torch import nn
from waits import Elsewhere, Waits


class Tiny(nn.Module):
    """An embedding, one mixing layer and an output head; float64, 13 words."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Embedding(13, 6), nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Linear(6, 13)
        self.double()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(ids).cumsum(1))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 13, (3, 9), generator=generator)
    mask = torch.rand(3, 8, generator=generator) < 0.4
    mask[1] = False  # a row of which nothing is needed
    return ids, mask


def gradients(model: Tiny, value: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(value, list(model.parameters()))


@pytest.mark.parametrize("chunk", [1, 3, 1024])
def test_log_probabilities_and_their_gradients_equal_those_of_the_full_logits(batch, chunk):
    ids, mask = batch
    model, slope = Tiny(1), torch.randn(3, 8, dtype=torch.float64)
    labels = torch.cat((torch.full((3, 1), -100), torch.where(mask, ids[:, 1:], -100)), 1)
    plain = token_logps(model(ids), labels)
    with head_at(model.head, needed_positions(mask)):
        logits = model(ids)
    assert logits.shape == (1, int(mask.sum()), 13)
    ours = place(logps_at(logits[0], ids[:, 1:][mask], chunk=chunk), mask)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    for mine, theirs in zip(
        gradients(model, (ours * slope).sum()), gradients(model, (plain * slope).sum()), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 1024])
def test_the_kl_and_its_gradient_equal_those_of_the_full_logits(batch, chunk):
    ids, mask = batch
    policy, reference = Tiny(1), Tiny(2)
    plain = torch.where(mask, position_kl(policy(ids)[:, :-1], reference(ids)[:, :-1]), 0.0)
    cut = []
    for model in (policy, reference):
        with head_at(model.head, needed_positions(mask)):
            cut.append(model(ids)[0])
    ours = place(kl_at(*cut, chunk=chunk), mask)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    for mine, theirs in zip(gradients(policy, ours.sum()), gradients(policy, plain.sum()), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_a_batch_that_needs_nothing_still_runs_the_head_and_gives_it_a_zero_gradient(batch):
    ids, mask = batch
    model, nothing = Tiny(1), torch.zeros_like(mask)
    with head_at(model.head, needed_positions(nothing)):
        logits = model(ids)[0]
    values = place(logps_at(logits, ids.flatten()[:1]), nothing)
    assert values.shape == (3, 8)
    assert values.abs().sum() == 0
    assert all(gradient.abs().sum() == 0 for gradient in gradients(model, values.sum()))


def test_the_head_is_whole_again_afterwards_even_when_the_forward_fails(batch):
    ids, mask = batch
    model = Tiny(1)
    with pytest.raises(IndexError), head_at(model.head, needed_positions(mask)):
        model(ids + 13)
    assert model(ids).shape == (3, 9, 13)


def test_backward_keeps_no_float32_copy_of_the_chunks():
    """What autograd saves for 64 positions in bfloat16 is the logits and targets, not a [64, 500] float32 tensor."""
    logits = torch.randn(64, 500, dtype=torch.bfloat16, requires_grad=True)
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logps_at(logits, torch.arange(64), chunk=16).sum()
    assert not [tensor for tensor in saved if tensor.dtype == torch.float32 and tensor.numel() > 64]


def test_logits_that_were_not_cut_are_refused():
    with pytest.raises(ValueError, match=r"18 positions have logits, 5 were asked for.*`finepref_full_logits`"):
        logps_at(torch.zeros(18, 4), torch.zeros(5, dtype=torch.int64))


def test_a_model_that_was_compiled_before_is_cut_too_however_many_positions_are_needed():
    """Compiled code does not look for new hooks. In between and afterwards the compiled model gives all logits."""
    model = Tiny(1)
    compiled = torch.compile(model, backend="eager")
    compiled(torch.zeros(3, 9, dtype=torch.int64))
    generator = torch.Generator().manual_seed(2)
    for length in (9, 5, 7, 9, 6):
        ids = torch.randint(0, 13, (3, length), generator=generator)
        mask = torch.rand(3, length - 1, generator=generator) < 0.5
        with head_at(model.head, needed_positions(mask)):
            cut = compiled(ids)
        everywhere = model(ids)
        torch.testing.assert_close(cut[0], everywhere[:, :-1][mask], rtol=0, atol=1e-12)
        torch.testing.assert_close(compiled(ids), everywhere, rtol=0, atol=1e-12)


def test_positions_with_their_number_are_those_without_it(batch):
    _, mask = batch
    for needed in (mask, torch.zeros_like(mask), torch.ones_like(mask)):
        expected = torch.nn.functional.pad(needed, (0, 1)).flatten().nonzero()[:, 0].tolist() or [0]
        assert needed_positions(needed).tolist() == expected
        assert needed_positions(needed, int(needed.sum())).tolist() == expected


def test_nobody_waits_for_an_accelerator_from_positions_to_gradients(batch):
    """Neither forward nor backward asks a tensor for values, nor lies one on the CPU."""
    ids, mask = batch
    count = int(mask.sum())
    model, found = Tiny(1), Waits()
    with found.noting():
        positions = needed_positions(mask, count)
        with head_at(model.head, positions):
            logits = model(ids)[0]
        place(logps_at(logits, ids.flatten()[positions], chunk=3), mask).sum().backward()
    assert (found.ours, found.backward) == ([], [])
    model, ids, mask = Tiny(1).to("meta"), ids.to("meta"), mask.to("meta")
    with Elsewhere():
        positions = needed_positions(mask, count)
        with head_at(model.head, positions):
            logits = model(ids)[0]
        place(logps_at(logits, ids.flatten()[positions], chunk=3), mask).sum().backward()


def split_head(rank: int, folder: Path) -> None:
    """A head whose vocabulary is split over two ranks has the logits and the gradients of the whole head.

    Its logits are gathered by the host, or come split.
    """
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        ids = torch.arange(18).view(2, 9) % 13
        mask = ids[:, 1:] % 3 == 0
        for layout in (Replicate(), Shard(-1)):
            head = ColwiseParallel(output_layouts=layout, use_local_output=layout == Replicate())
            split, model = parallelize_module(Tiny(1), mesh, {"head": head}), Tiny(1)
            losses = []
            for each in (split, model):
                with head_at(each.head, needed_positions(mask)):
                    logits = whole(each(ids))[0]
                losses.append(place(logps_at(logits, ids[:, 1:][mask], chunk=2), mask).sum())
                losses[-1].backward()
            torch.testing.assert_close(*losses, rtol=0, atol=1e-12)
            for mine, theirs in zip(split.parameters(), model.parameters(), strict=True):
                torch.testing.assert_close(whole(mine.grad), theirs.grad, rtol=0, atol=1e-12)
        dist.barrier()  # no rank closes its connections while the other one still sends
    finally:
        dist.destroy_process_group()


def test_a_head_that_is_split_over_ranks_is_cut_and_gathered(tmp_path):
    mp.spawn(split_head, (tmp_path,), nprocs=2)
