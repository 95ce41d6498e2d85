"""One-sided and two-sided pairs, and normalisation by length."""

import math

import pytest
import torch
from finepref.losses.tdpo import TokenLogRatio, masked_dpo_loss, tdpo1_loss, tdpo2_loss


def response(ratios, kl, weight):
    """Log-ratios with a reference of 0, so that m = sum of weight * ratio."""
    policy = torch.tensor([ratios])
    return TokenLogRatio(policy, torch.zeros_like(policy), torch.tensor([kl]), torch.tensor([weight]))


# m_w = 1 + 2 = 3, D_w = 0.5; m_l = -1, D_l = 0.25 (its second token has weight 0).
CHOSEN = response([1.0, 2.0], [0.25, 0.25], [1.0, 1.0])
REJECTED = response([-1.0, 50.0], [0.25, 50.0], [1.0, 0.0])


def expected(margin):
    return math.log1p(math.exp(-margin))


@pytest.mark.parametrize(
    ("side", "tdpo1", "tdpo2", "dpo"),
    [
        (0, 0.1 * (4 - (0.25 - 0.5)), 0.1 * (4 - 0.5 * (0.25 - 0.5)), 0.1 * 4),
        (1, 0.1 * (3 + 0.5), 0.1 * (3 + 0.5 * 0.5), 0.1 * 3),
        (-1, -0.1 * (-1 + 0.25), -0.1 * (-1 + 0.5 * 0.25), -0.1 * -1),
    ],
)
def test_the_flag_leaves_out_the_other_response(side, tdpo1, tdpo2, dpo):
    """beta .1, alpha .5; +1: beta (m + D), beta (m + alpha D), beta m of the chosen; -1: minus the rejected ones."""
    sides = torch.tensor([side])
    assert tdpo1_loss(CHOSEN, REJECTED, beta=0.1, sides=sides).loss.item() == pytest.approx(expected(tdpo1), abs=1e-6)
    two = tdpo2_loss(CHOSEN, REJECTED, beta=0.1, alpha=0.5, sides=sides)
    assert two.loss.item() == pytest.approx(expected(tdpo2), abs=1e-6)
    assert masked_dpo_loss(CHOSEN, REJECTED, beta=0.1, sides=sides).loss.item() == pytest.approx(
        expected(dpo), abs=1e-6
    )


def test_a_one_sided_pair_needs_no_tokens_in_the_response_it_does_not_read():
    empty = REJECTED._replace(weight=torch.zeros(1, 2))
    assert tdpo1_loss(CHOSEN, empty, beta=0.1, sides=torch.tensor([1])).valid.item()
    assert not tdpo1_loss(CHOSEN, empty, beta=0.1, sides=torch.tensor([0])).valid.item()
    assert not tdpo1_loss(CHOSEN, empty, beta=0.1, sides=torch.tensor([-1])).valid.item()


def test_length_normalization_makes_a_repeated_span_count_once():
    """Twice the same tokens: m and D double as sums, and stay as means."""
    doubled = TokenLogRatio(*(torch.cat([value, value], dim=1) for value in CHOSEN))
    once, twice = (tdpo1_loss(c, REJECTED, beta=0.1, length_normalized=True).loss for c in (CHOSEN, doubled))
    torch.testing.assert_close(once, twice)
    # Means: m_w = 3/2, D_w = 1/4, m_l = -1, D_l = 1/4.
    assert once.item() == pytest.approx(expected(0.1 * 2.5), abs=1e-6)


def test_rewards_are_beta_times_m_plus_d_and_detached():
    policy = CHOSEN.policy.clone().requires_grad_()
    out = tdpo2_loss(CHOSEN._replace(policy=policy), REJECTED, beta=0.1, alpha=0.5)
    assert out.chosen_reward.item() == pytest.approx(0.1 * 3.5, abs=1e-6)
    assert out.rejected_reward.item() == pytest.approx(0.1 * -0.75, abs=1e-6)
    assert out.loss.requires_grad
    assert not out.chosen_reward.requires_grad


def test_tdpo_without_the_kl_is_refused_instead_of_becoming_dpo():
    with pytest.raises(ValueError, match="kl"):
        tdpo1_loss(CHOSEN._replace(kl=None), REJECTED, beta=0.1)
