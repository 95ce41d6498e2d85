"""Padding, order and neighbours do not matter; each token counts exactly once, the first and EOS included."""

import math
from functools import partial

import batches
import pytest
import torch
from finepref.losses import plackett_luce, ranking, sepo, tdpo
from finepref.losses.ops import TokenLogps, position_kl, token_logps
from torch.nn.functional import pad

LOSSES = tuple(batches.PAIR_LOSSES)


def pair():
    generator = torch.Generator().manual_seed(3)
    return [batches.side(generator, rows=3, length=n, weights="fractional") for n in (9, 6)]


def losses(name, sides):
    with torch.no_grad():
        return batches.PAIR_LOSSES[name](*sides).loss


def padded(side, left, right):
    """`left` and `right` positions of noise that no label counts."""

    def noise(logits):
        wide = torch.randn(logits.shape[0], left + logits.shape[1] + right, logits.shape[2])
        wide[:, left : left + logits.shape[1]] = logits.detach()
        return wide

    return batches.Side(
        noise(side.policy_logits),
        noise(side.reference_logits),
        pad(side.labels, (left, right), value=-100),
        pad(side.weight, (left, right)),
    )


@pytest.mark.parametrize("amount", [0, 7, 64])
@pytest.mark.parametrize("name", LOSSES)
def test_padding_on_either_side_changes_no_loss(name, amount):
    sides = pair()
    plain = losses(name, sides)
    for left, right in ((amount, 0), (0, amount), (amount, amount)):
        changed = losses(name, [padded(s, left, right) for s in sides])
        torch.testing.assert_close(changed, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_permuted_batch_has_permuted_losses(name):
    sides, order = pair(), [2, 0, 1]
    permuted = [batches.Side(*(value[order] for value in s)) for s in sides]
    torch.testing.assert_close(losses(name, permuted), losses(name, sides)[order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_record_alone_has_the_loss_it_has_among_neighbours(name):
    sides = pair()
    together = losses(name, sides)
    for row in range(3):
        alone = [batches.Side(*(value[row : row + 1] for value in s)) for s in sides]
        torch.testing.assert_close(losses(name, alone), together[row : row + 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [ranking.rank_loss, plackett_luce.plackett_luce_loss, partial(plackett_luce.plackett_luce_loss, ties="breslow")],
    ids=["ranking", "plackett_luce apart", "plackett_luce breslow"],
)
def test_absent_responses_order_and_neighbours_change_no_loss_of_a_list(loss):
    generator = torch.Generator().manual_seed(0)
    rewards, scores = torch.randn(3, 4, generator=generator), torch.rand(3, 4, generator=generator)
    scores[0, 1] = scores[0, 2]
    plain = loss(rewards, scores).loss
    wide = loss(
        pad(rewards, (7, 64), value=5.0), pad(scores, (7, 64), value=9.0), pad(torch.ones(3, 4).bool(), (7, 64))
    )
    torch.testing.assert_close(wide.loss, plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(loss(rewards.flip(0), scores.flip(0)).loss, plain.flip(0))
    torch.testing.assert_close(loss(rewards.flip(1), scores.flip(1)).loss, plain)
    torch.testing.assert_close(loss(rewards[:1], scores[:1]).loss, plain[:1])


class Probe(torch.nn.Module):
    """Gives every position's label its own log-probability: -2 ** (t - 8) for position t of label space."""

    def forward(self, labels):
        """[B, T+1] -> [B, T+1, 3]; the label has probability p, the two other tokens (1 - p) / 2 each."""
        log_p = -(2.0 ** (torch.arange(labels.shape[1]) - 8))
        logits = (-torch.expm1(log_p) / 2).log().repeat(labels.shape[0], 1).unsqueeze(-1).repeat(1, 1, 3)
        predicted = labels.roll(-1, dims=1).clamp(min=0)  # the logits of position t predict the label of t + 1
        return logits.scatter(2, predicted.unsqueeze(-1), log_p.repeat(labels.shape[0], 1).unsqueeze(-1))


# Two prompt tokens, then four response tokens, the last of them EOS: t = 1, 2, 3, 4 in label space.
PROBED = torch.tensor([[-100, -100, 0, 1, 0, 2]])
EXPECTED = [0.0, -(2.0**-7), -(2.0**-6), -(2.0**-5), -(2.0**-4)]


def test_each_response_token_first_and_eos_included_gets_the_log_probability_of_its_own_position():
    logps = token_logps(Probe()(PROBED), PROBED)
    assert logps[0].tolist() == pytest.approx(EXPECTED, abs=1e-6)


def test_the_sum_of_any_subset_of_tokens_names_the_subset():
    """Powers of two: each of the 16 subsets of the response has its own sum, in DPO's reward m and in SePO's u."""
    logps = token_logps(Probe()(PROBED), PROBED)
    zeros = torch.zeros_like(logps)
    for subset in range(1, 16):
        weight = torch.tensor([[0.0, *(float(subset >> t & 1) for t in range(4))]])
        expected = math.fsum(w * e for w, e in zip(weight[0].tolist(), EXPECTED, strict=True))
        response = tdpo.TokenLogRatio(logps, zeros, None, weight)
        dpo = tdpo.masked_dpo_loss(response, response._replace(policy=zeros), beta=1.0)
        assert dpo.chosen_reward.item() == pytest.approx(expected, abs=1e-6)
        assert dpo.loss.item() == pytest.approx(math.log1p(math.exp(-expected)), abs=1e-6)
        scored = TokenLogps(logps, weight)
        u = sepo.sepo_loss(scored, scored, gamma=1.0, margin=0.0).chosen_reward.item()
        assert u == pytest.approx(expected / weight.sum().item(), abs=1e-6)


def test_the_kl_of_each_position_is_counted_at_that_position():
    """With the probed label at probability p and 1/3 in the reference, KL_t = sum_v (1/3) ln((1/3) / pi_v)."""
    policy = Probe()(PROBED)
    kl = position_kl(policy[:, :-1], torch.zeros_like(policy)[:, :-1])
    for t in range(5):
        p = math.exp(-(2.0 ** (t - 8)))
        expected = (math.log(1 / 3 / p) + 2 * math.log(1 / 3 / ((1 - p) / 2))) / 3
        assert kl[0, t].item() == pytest.approx(expected, abs=1e-6)
