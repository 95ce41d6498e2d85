"""Log-probabilities and KL from hidden states equal those of stored logits, and so do their gradients, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from finepref.losses import fused_head, output_head
from finepref.losses.ops import LOG_ZERO, position_kl
from torch import Tensor

N, H, V = 37, 8, 29


def plain(logits: Tensor, targets: Tensor) -> Tensor:
    """log pi(y) of stored logits."""
    return logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1).clamp(min=LOG_ZERO)


def head_of(*, frozen: bool, bias: bool, impossible: bool = False, **processing: float) -> fused_head.Head:
    weight = torch.randn(V, H, dtype=torch.float64)
    offset = torch.randn(V, dtype=torch.float64) if bias else None
    if impossible:
        offset[3] = offset[5] = -torch.inf
    for each in (weight, offset):
        if each is not None:
            each.requires_grad_(not frozen)
    return fused_head.Head(weight, offset, **processing)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """16 positions each: two whole chunks and a short one."""
    torch.manual_seed(0)
    monkeypatch.setattr(output_head, "CPU_BYTES", 4 * V * 16)


def values_of(kind: str, hidden: Tensor, head: fused_head.Head, targets: Tensor, reference=None, **options):
    if kind == "linear":
        return fused_head.values(hidden, head, targets, reference, **options)
    return fused_head.through(head.logits, hidden, targets, reference, **options)


@pytest.mark.parametrize("kind", ["linear", "through"])
@pytest.mark.parametrize("kl", ["", "metric", "loss", "rejected"])
@pytest.mark.parametrize(
    ("frozen", "bias", "processing"),
    [
        *itertools.product([True, False], [True, False], [{}]),
        (True, False, {"scale": 0.7}),
        (False, False, {"softcap": 3.0}),
        (True, True, {"scale": 0.5, "softcap": 2.0}),
    ],
)
def test_values_and_gradients_equal_those_of_stored_logits(kind, kl, frozen, bias, processing):
    hidden = torch.randn(N, H, dtype=torch.float64, requires_grad=True)
    head, targets = head_of(frozen=frozen, bias=bias, **processing), torch.randint(0, V, (N,))
    theirs, slopes = torch.randn(N, V, dtype=torch.float64), torch.randn(2, N, dtype=torch.float64)
    kl_from = {"loss": 0, "rejected": 20}.get(kl, N)
    slopes[1, :kl_from] = 0
    reference = (lambda start, stop: theirs[start:stop]) if kl else None
    logits = head.logits(hidden)
    logps, divergence = plain(logits, targets), position_kl(logits, theirs)
    expected = (logps * slopes[0]).sum() + (divergence * slopes[1]).sum()

    found = values_of(kind, hidden, head, targets, reference, kl_from=kl_from)
    torch.testing.assert_close(found.logps, logps, rtol=0, atol=1e-12)
    loss = (found.logps * slopes[0]).sum()
    if kl:
        torch.testing.assert_close(found.kl, divergence, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.reference, plain(theirs, targets), rtol=0, atol=1e-12)
        assert found.kl.requires_grad == (kl_from < N)
        assert not found.reference.requires_grad
    if kl_from < N:
        loss = loss + (found.kl * slopes[1]).sum()
    leaves = [each for each in (hidden, head.weight, head.bias) if each is not None and each.requires_grad]
    for mine, wanted in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-12)


def test_impossible_tokens_give_finite_values_and_no_gradient_as_with_stored_logits():
    """Two tokens have a bias of -inf, one of them is a target; where the policy excludes it, so does the reference."""
    hidden = torch.randn(N, H, dtype=torch.float64, requires_grad=True)
    head, targets = head_of(frozen=True, bias=True, impossible=True), torch.randint(0, V, (N,))
    targets[0] = 3
    theirs = torch.randn(N, V, dtype=torch.float64)
    theirs[:20, [3, 5]] = -torch.inf
    slopes = torch.randn(2, N, dtype=torch.float64)
    slopes[1, 20:] = 0  # the KL is huge there
    logits = head.logits(hidden)
    found = fused_head.values(hidden, head, targets, lambda start, stop: theirs[start:stop])
    assert found.logps[0] == LOG_ZERO
    assert (found.kl[20:] > 1e26).all()
    torch.testing.assert_close(found.kl[:20], position_kl(logits, theirs)[:20], rtol=0, atol=1e-12)
    expected = (plain(logits, targets) * slopes[0]).sum() + (position_kl(logits, theirs) * slopes[1]).sum()
    mine = (found.logps * slopes[0]).sum() + (found.kl * slopes[1]).sum()
    got, wanted = (torch.autograd.grad(each, hidden)[0] for each in (mine, expected))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def saved_by(function) -> list[Tensor]:
    """What autograd keeps for the backward pass."""
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(each) or each, lambda each: each):
        function().sum().backward()
    return saved


@pytest.mark.parametrize("kind", ["linear", "through"])
@pytest.mark.parametrize("frozen", [True, False])
def test_nothing_as_large_as_the_logits_is_kept_for_the_backward_pass(kind, frozen):
    hidden, targets = torch.randn(64, H, requires_grad=True), torch.arange(64) % 500
    head = fused_head.Head(torch.randn(500, H, requires_grad=not frozen))
    saved = saved_by(lambda: values_of(kind, hidden, head, targets).logps)
    assert not [each for each in saved if each.numel() > 500 * H]  # the weight's own size


def test_a_frozen_head_is_multiplied_as_often_as_with_stored_logits_and_a_trained_one_once_more():
    """Matrix products of [16, H] x [H, V] size, forward and backward: logits and d h; then logits again and d W."""
    from torch.utils.flop_counter import FlopCounterMode

    def in_place(_, a, b, **shape):
        return 2 * a[0] * a[1] * b[1]

    hidden, targets = torch.randn(32, H, requires_grad=True), torch.arange(32) % V
    one = 2 * 32 * H * V
    for frozen, products in ((True, 2), (False, 4)):
        head = fused_head.Head(torch.randn(V, H, requires_grad=not frozen))
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counted:
            fused_head.values(hidden, head, targets).logps.sum().backward()
        assert counted.get_total_flops() == products * one


@pytest.mark.parametrize(("kl_from", "products"), [(0, 3), (16, 2.5), (32, 2)])
def test_the_gradient_of_the_kl_costs_one_more_product_at_the_positions_that_have_one(kl_from, products):
    from torch.utils.flop_counter import FlopCounterMode

    hidden, targets, theirs = torch.randn(32, H, requires_grad=True), torch.arange(32) % V, torch.randn(32, V)
    head = fused_head.Head(torch.randn(V, H))
    with FlopCounterMode(display=False) as counted:
        found = fused_head.values(hidden, head, targets, lambda start, stop: theirs[start:stop], kl_from=kl_from)
        found.logps.sum().backward()
    assert counted.get_total_flops() == products * 2 * 32 * H * V + 2 * 32 * V  # the KL's sum over V


@pytest.mark.parametrize("frozen", [True, False])
def test_under_autocast_logits_are_rounded_as_the_heads_own_and_summed_in_float32(frozen):
    hidden = torch.randn(N, H, requires_grad=True)
    head, targets = fused_head.Head(torch.randn(V, H, requires_grad=not frozen)), torch.randint(0, V, (N,))
    theirs = torch.randn(N, H)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, ref = head.logits(hidden), head.logits(theirs).detach()
        found = fused_head.values(hidden, head, targets, lambda start, stop: head.logits(theirs[start:stop]).detach())
    assert logits.dtype == torch.bfloat16
    assert found.logps.dtype == found.kl.dtype == torch.float32
    torch.testing.assert_close(found.logps, plain(logits.float(), targets), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.kl, position_kl(logits, ref), rtol=0, atol=1e-5)
    leaves = [hidden] if frozen else [hidden, head.weight]
    expected = torch.autograd.grad(plain(logits.float(), targets).sum() + position_kl(logits, ref).sum(), leaves)
    for mine, wanted in zip(torch.autograd.grad((found.logps + found.kl).sum(), leaves), expected, strict=True):
        assert mine.dtype == wanted.dtype == torch.float32
        torch.testing.assert_close(mine, wanted, rtol=2e-2, atol=6e-2)  # slopes are rounded to bfloat16 in both


def test_the_gradient_of_bfloat16_weights_is_summed_over_chunks_in_float32():
    """64 equal parts of 15.4: sums rounded to bfloat16 would grow by 16 or by 12."""
    hidden = torch.ones(16 * 64, 2, dtype=torch.bfloat16)
    weight = torch.zeros(V, 2, dtype=torch.bfloat16, requires_grad=True)
    fused_head.values(hidden, fused_head.Head(weight), torch.zeros(16 * 64, dtype=torch.int64)).logps.sum().backward()
    torch.testing.assert_close(weight.grad[0, 0].item(), 16 * 64 * (1 - 1 / V), rtol=1e-2, atol=0)
