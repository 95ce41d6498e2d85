"""Ranking and adversarial reward-model losses, with numbers derived by hand."""

import math

import pytest
import torch
from finepref.losses.apo_rm import apo_rm_loss
from finepref.losses.ops import reduce
from finepref.losses.ranking import rank_loss

LN2 = math.log(2)


def softplus(x):
    return math.log1p(math.exp(x))


def test_the_ranking_loss_is_the_mean_over_the_ordered_pairs_with_different_scores():
    """Scores 3 > 2 = 2: the pairs (0, 1) and (0, 2); gaps 1 - 0 = 1 and 1 - 2 = -1."""
    out = rank_loss(torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[3.0, 2.0, 2.0]]))
    assert out.loss.item() == pytest.approx((softplus(-1) + softplus(1)) / 2, abs=1e-6)
    assert (out.chosen_reward.item(), out.rejected_reward.item()) == (1.0, 0.0)


def test_a_negative_score_is_a_score_and_only_the_mask_says_absent():
    rewards, scores = torch.tensor([[0.5, 0.0, 9.0]]), torch.tensor([[-1.0, -2.0, 7.0]])
    out = rank_loss(rewards, scores, torch.tensor([[True, True, False]]))
    assert out.loss.item() == pytest.approx(softplus(-0.5), abs=1e-6)


def test_a_record_of_ties_or_of_one_response_is_not_valid():
    out = rank_loss(
        torch.randn(2, 2), torch.tensor([[1.0, 1.0], [1.0, 2.0]]), torch.tensor([[True, True], [True, False]])
    )
    assert out.valid.tolist() == [False, False]
    assert out.loss.tolist() == [0.0, 0.0]


def test_a_missing_score_is_refused_unless_the_response_is_absent():
    rewards, scores = torch.zeros(1, 2), torch.tensor([[1.0, torch.nan]])
    with pytest.raises(ValueError, match="NaN score"):
        rank_loss(rewards, scores)
    assert not rank_loss(rewards, scores, torch.tensor([[True, False]])).valid.item()


def batch(apo_records):
    """One human pair with gap 0 and `apo_records` adversarial pairs with gap 1."""
    rewards = torch.tensor([[0.0, 0.0]] + [[1.0, 0.0]] * apo_records)
    scores = torch.tensor([[1.0, 0.0]] * (1 + apo_records))
    return rewards, scores, torch.arange(1 + apo_records) > 0


@pytest.mark.parametrize("apo_records", [0, 1, 5])
def test_per_type_normalization_does_not_depend_on_the_mix(apo_records):
    """ln 2 of the human pair, plus 0.1 / 4 of the mean of -log sigmoid(1) if there is any adversarial pair."""
    loss = reduce(apo_rm_loss(*batch(apo_records), kl_coeff=1.0, apo_coeff=0.1, samples=4))
    assert loss.item() == pytest.approx(LN2 + (0.1 / 4 * softplus(-1) if apo_records else 0), abs=1e-6)


def test_released_normalization_divides_both_sums_by_all_pairs_of_the_batch():
    """1 human and 5 adversarial pairs: (ln 2 + 0.025 * 5 * -log sigmoid(1)) / 6."""
    loss = reduce(apo_rm_loss(*batch(5), kl_coeff=1.0, apo_coeff=0.1, samples=4, normalization="released"))
    assert loss.item() == pytest.approx((LN2 + 0.025 * 5 * softplus(-1)) / 6, abs=1e-6)


def test_wgan_is_linear_for_adversarial_records_and_leaves_human_records_alone():
    loss = reduce(apo_rm_loss(*batch(2), kl_coeff=1.0, apo_coeff=0.1, samples=4, kind="wgan"))
    assert loss.item() == pytest.approx(LN2 - 0.025 * 1.0, abs=1e-6)


@pytest.mark.parametrize("wrong", [{"kind": "diff"}, {"normalization": "mean"}])
def test_unknown_variants_are_refused(wrong):
    with pytest.raises(ValueError, match="unknown"):
        apo_rm_loss(*batch(1), kl_coeff=1.0, apo_coeff=0.1, samples=4, **wrong)


def test_step_counts_are_refused_where_the_micro_batch_is_the_norm():
    with pytest.raises(ValueError, match="counts"):
        apo_rm_loss(*batch(1), kl_coeff=1.0, apo_coeff=0.1, samples=4, normalization="released", counts=(1, 1))
