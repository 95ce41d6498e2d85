"""Everything finite, over dtypes, logits, weights and shapes; and a record without tokens does exactly nothing."""

import itertools

import batches
import pytest
import torch
from finepref.losses import apo_rm
from finepref.losses.ops import position_kl, reduce, token_logps

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOGITS = ("normal", "huge", "excluded", "equal", "gap")
WEIGHTS = ("none in one row", "none at all", "one token", "all", "fractional")
SHAPES = tuple(itertools.product((1, 2, 3), (1, 2, 17)))


@pytest.mark.parametrize("name", batches.PAIR_LOSSES)
@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pair_losses_and_gradients_are_finite(dtype, kind, name):
    """The tokens of the excluded column (logit -inf in both models) do occur as labels."""
    generator = torch.Generator().manual_seed(0)
    for weights, (rows, length) in itertools.product(WEIGHTS, SHAPES):
        sides = [
            batches.side(generator, rows=rows, length=length, dtype=dtype, kind=kind, weights=weights)
            for _ in range(2)
        ]
        out = batches.PAIR_LOSSES[name](*sides)
        reduce(out).backward()
        assert all(torch.isfinite(value).all() for value in out)
        assert out.loss.dtype == torch.float32
        empty = sides[0].weight.sum(-1) == 0
        assert out.valid.tolist() == (~empty).tolist()
        assert (out.loss[empty] == 0).all()
        for side in sides:
            assert side.policy_logits.grad.dtype == dtype
            assert torch.isfinite(side.policy_logits.grad).all()
            assert (side.policy_logits.grad[empty] == 0).all()


@pytest.mark.parametrize("kind", ["ranking", "wgan", "plackett_luce"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ranking_losses_and_gradients_are_finite(dtype, kind):
    """The same grid with R for T; an absent response (weight 0) may have any reward, -inf and NaN included."""
    generator = torch.Generator().manual_seed(0)
    for logits, weights, (rows, length) in itertools.product(LOGITS, WEIGHTS, SHAPES):
        side = batches.side(generator, rows=rows, length=length, dtype=dtype, kind=logits, weights=weights)
        present = side.weight > 0
        rewards = torch.where(present, side.policy_logits[:, :-1, 0].detach(), -torch.inf)
        rewards[:, ::2] = torch.where(present[:, ::2], rewards[:, ::2], torch.nan)
        rewards.requires_grad_()
        scores = torch.randint(-1, 2, (rows, length), generator=generator).float()
        is_apo = torch.arange(rows) % 2 == 1
        out = apo_rm.apo_rm_loss(
            rewards, scores, is_apo, kl_coeff=1.0, apo_coeff=0.1, samples=4, kind=kind, mask=present
        )
        reduce(out).backward()
        assert all(torch.isfinite(value).all() for value in out)
        assert torch.isfinite(rewards.grad).all()
        assert (out.loss[~out.valid] == 0).all()
        assert (rewards.grad[~out.valid] == 0).all()
        assert (rewards.grad[~present] == 0).all()


@pytest.mark.parametrize("name", batches.PAIR_LOSSES)
def test_a_record_with_tokens_on_one_side_only_is_not_trained_one_sidedly_in_silence(name):
    generator = torch.Generator().manual_seed(0)
    chosen = batches.side(generator, rows=2, length=4, weights="all")
    rejected = batches.side(generator, rows=2, length=4, weights="none in one row")
    out = batches.PAIR_LOSSES[name](chosen, rejected)
    reduce(out).backward()
    assert out.valid.tolist() == [False, True]
    assert (chosen.policy_logits.grad[0] == 0).all()
    assert (chosen.policy_logits.grad[1] != 0).any()


def test_a_token_that_only_the_policy_excludes_gives_a_huge_but_finite_kl_and_gradient():
    """KL(pi_ref || pi_theta) is truly infinite there; log 0 is taken as -1e30, so it is pi_ref * 1e30 = 0.25e30."""
    policy = torch.tensor([0.0, 0.0, 0.0, -torch.inf], requires_grad=True)
    kl = position_kl(policy, torch.zeros(4))
    kl.backward()
    assert kl.item() == pytest.approx(0.25e30, rel=1e-6)
    assert torch.isfinite(policy.grad).all()


def test_a_token_that_only_the_reference_excludes_adds_exactly_nothing_to_the_kl():
    """p_ref = 0 there: 0 log 0 = 0. Of the rest, ref is (1/2, 1/2, 0) and theta (1/4, 1/4, 1/2): KL = ln 2."""
    policy = torch.tensor([0.25, 0.25, 0.5]).log()
    reference = torch.tensor([0.0, 0.0, -torch.inf])
    assert position_kl(policy, reference).item() == pytest.approx(0.6931472, abs=1e-6)


def test_a_label_that_the_model_excludes_has_log_probability_minus_1e30_and_a_finite_gradient():
    logits = torch.tensor([[[0.0, -torch.inf], [0.0, 0.0]]], requires_grad=True)
    logps = token_logps(logits, torch.tensor([[-100, 1]]))
    logps.sum().backward()
    assert logps.item() == pytest.approx(-1e30)
    assert torch.isfinite(logits.grad).all()
