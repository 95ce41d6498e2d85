"""Derivatives: against finite differences in float64, and against what the papers state."""

import math

import batches
import pytest
import torch
from finepref.losses import apo_rm, kto, tdpo
from finepref.losses.ops import position_kl, reduce, token_logps, weighted_sum
from torch.autograd import gradcheck


def double_pair():
    generator = torch.Generator().manual_seed(0)
    return [batches.side(generator, rows=2, length=n, weights="fractional", double=True) for n in (4, 3)]


@pytest.mark.parametrize("name", sorted(set(batches.PAIR_LOSSES) - {"tdpo2", "tdpo2 length-normalized"}))
def test_pair_losses_pass_gradcheck(name):
    """TDPO2 has a stop-gradient, which finite differences cannot see: it has its own test below."""
    chosen, rejected = double_pair()

    def loss(chosen_logits, rejected_logits):
        sides = chosen._replace(policy_logits=chosen_logits), rejected._replace(policy_logits=rejected_logits)
        return reduce(batches.PAIR_LOSSES[name](*sides))

    assert gradcheck(loss, (chosen.policy_logits, rejected.policy_logits))


def test_tdpo2_passes_gradcheck_once_the_stopped_term_is_held_constant():
    """With the chosen logits fixed only D_l moves; with D_w's weight zero (alpha = 0) only m moves."""
    chosen, rejected = double_pair()

    def loss(chosen_logits, rejected_logits, alpha):
        sides = chosen._replace(policy_logits=chosen_logits), rejected._replace(policy_logits=rejected_logits)
        return tdpo.tdpo2_loss(*map(batches.ratio, sides), beta=0.1, alpha=alpha).loss

    assert gradcheck(lambda z: loss(chosen.policy_logits.detach(), z, 0.5), (rejected.policy_logits,))
    assert gradcheck(lambda z: loss(z, rejected.policy_logits.detach(), 0.0), (chosen.policy_logits,))


def test_tdpo2_sends_no_gradient_through_the_kl_of_the_chosen_response():
    chosen, rejected = (batches.ratio(s) for s in double_pair())
    kl_w, kl_l = (r.kl.detach().requires_grad_() for r in (chosen, rejected))
    tdpo.tdpo2_loss(chosen._replace(kl=kl_w), rejected._replace(kl=kl_l), beta=0.1, alpha=0.5).loss.sum().backward()
    assert kl_w.grad is None
    assert (kl_l.grad > 0).all()


def test_ranking_calibrating_and_kto_losses_pass_gradcheck():
    rewards = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    scores = torch.tensor([[3.0, 1, 2, 2], [0, -1, 5, 1], [1, 1, 1, 2]])
    is_apo = torch.tensor([False, True, True])
    for kind in ("ranking", "wgan", "plackett_luce"):
        for normalization in ("per_type", "released") if kind != "plackett_luce" else ("per_type",):
            settings = {"kl_coeff": 1.0, "apo_coeff": 0.1, "samples": 4, "kind": kind, "normalization": normalization}
            assert gradcheck(lambda r, s=settings: reduce(apo_rm.apo_rm_loss(r, scores, is_apo, **s)), (rewards,))
    desirable = torch.tensor([True, False, True])
    weights = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.3}
    assert gradcheck(
        lambda r: kto.kto_loss(r, desirable, 0.2, **weights).loss, (rewards[:, 0].detach().requires_grad_(),)
    )


def test_the_gradient_of_the_weighted_kl_is_policy_minus_reference_at_weighted_positions():
    """D = sum_t w_t KL(pi_ref || pi_theta), so dD/dz_t = w_t (pi_theta - pi_ref)."""
    chosen, _ = double_pair()
    kl = position_kl(chosen.policy_logits[:, :-1], chosen.reference_logits[:, :-1])
    weighted_sum(kl, chosen.weight).sum().backward()
    expected = (
        chosen.weight.unsqueeze(-1) * (chosen.policy_logits.softmax(-1) - chosen.reference_logits.softmax(-1))[:, :-1]
    )
    torch.testing.assert_close(chosen.policy_logits.grad[:, :-1], expected.detach(), rtol=0, atol=1e-12)
    assert (chosen.policy_logits.grad[:, -1] == 0).all()


@pytest.mark.parametrize("name", ["tdpo1", "tdpo2", "tdpo2 length-normalized", "masked dpo"])
def test_a_policy_equal_to_its_reference_has_loss_ln_2_and_zero_kl(name):
    sides = [
        s._replace(reference_logits=s.policy_logits.detach())
        for s in (batches.side(torch.Generator().manual_seed(n), rows=3, length=n) for n in (5, 8))
    ]
    out = batches.PAIR_LOSSES[name](*sides)
    torch.testing.assert_close(out.loss.detach(), torch.full((3,), math.log(2)), rtol=0, atol=1e-7)
    assert all((batches.ratio(s).kl == 0).all() for s in sides)


def test_the_reference_model_never_gets_a_gradient_from_the_kl():
    policy, reference = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5, requires_grad=True)
    position_kl(policy, reference).sum().backward()
    assert policy.grad is not None
    assert reference.grad is None


def test_nan_logits_at_ignored_positions_reach_neither_the_value_nor_the_gradient():
    logits = torch.randn(1, 4, 5)
    logits[0, 1] = torch.nan
    logits.requires_grad_()
    logps = token_logps(logits, torch.tensor([[-100, 2, -100, 3]]))
    assert logps[0, 1] == 0
    logps.sum().backward()
    assert (logits.grad[0, 1] == 0).all()
    assert torch.isfinite(logits.grad).all()
