"""Token weights, selections and lists of seven methods against plain float64 loops, and their equalities."""

from __future__ import annotations

import batches
import plain_loops
import pytest
import torch
from finepref.losses import apo_rm, cdpo, confpo, ld_dpo, plackett_luce, ranking, simper, tdpo, tgdpo, tis_dpo
from finepref.losses.ops import TokenLogps, reduce
from torch.autograd import gradcheck

SEEDS = range(6)


def close(ours, plain, tolerance=1e-10):
    torch.testing.assert_close(
        ours.detach().double(), torch.tensor(plain, dtype=torch.float64), rtol=tolerance, atol=tolerance
    )


def scores(seed, length=9):
    """One record's scores with ties, [T] float64."""
    generator = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(length, generator=generator, dtype=torch.float64)).round() / 2


@pytest.mark.parametrize("seed", SEEDS)
def test_every_weight_equals_the_plain_loops(seed):
    s, everything = scores(seed), torch.ones(9, dtype=torch.bool)
    for chosen, sign in ((True, 1), (False, -1)):
        signed = [sign * x for x in s.tolist()]
        close(
            tgdpo.token_weights(s, beta=0.3, alpha=2.0, chosen=chosen),
            plain_loops.tgdpo_weights(s.tolist(), [0.0] * 9, 0.3, 2.0, sign),
        )
        close(
            tis_dpo.importance_weights(s, chosen=chosen, k=1.5, low=-0.5, high=1.5),
            plain_loops.tis_weights(s.tolist(), 1.5, -0.5, 1.5, sign),
        )
        close(
            tis_dpo.rank_based(s, everything, chosen=chosen, low=0.7, high=1.3),
            plain_loops.by_rank(signed, 0.7, 1.3),
        )
        close(
            tis_dpo.threshold_and_scale(
                s, everything, chosen=chosen, low=-1.5, high=1.5, scale_low=0.7, scale_high=1.3
            ),
            plain_loops.scaled(signed, -1.5, 1.5, 0.7, 1.3),
        )
        for share in (0.0, 0.3, 0.5, 1.0):
            close(tis_dpo.binary(s, everything, chosen=chosen, share=share), plain_loops.top_share(signed, share))


def test_tokens_that_are_not_ranked_have_weight_0_and_shift_no_rank():
    s = torch.tensor([9.0, 1.0, -9.0, 2.0])
    among = torch.tensor([False, True, False, True])
    assert tis_dpo.rank_based(s, among, chosen=True, low=0.7, high=1.3).tolist() == pytest.approx([0, 0.7, 0, 1.3])
    assert tis_dpo.rank_based(s, among, chosen=False, low=0.7, high=1.3).tolist() == pytest.approx([0, 1.3, 0, 0.7])
    assert tis_dpo.binary(s, among, chosen=True, share=0.5).tolist() == [0, 0, 0, 1]
    alone = torch.tensor([False, True, False, False])
    assert tis_dpo.rank_based(s, alone, chosen=True, low=0.7, high=1.3).tolist() == [0, 1, 0, 0]
    none = torch.zeros(4, dtype=torch.bool)
    assert tis_dpo.rank_based(s, none, chosen=True, low=0.7, high=1.3).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_contrast_equals_the_plain_loop_and_needs_no_normalised_logits(seed):
    generator = torch.Generator().manual_seed(seed)
    right, wrong = (3 * torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(0, 7, (5,), generator=generator)
    expected = [
        plain_loops.contrast(p, n, y, 0.7)
        for p, n, y in zip(right.tolist(), wrong.tolist(), labels.tolist(), strict=True)
    ]
    close(cdpo.contrast(right, wrong, labels, contrast=0.7).exp(), expected)
    close(cdpo.contrast(right + 5, wrong.log_softmax(-1), labels, contrast=0.7).exp(), expected)
    close(cdpo.rejected_weights(torch.tensor(expected, dtype=torch.float64)), [1 - s for s in expected])


def test_a_token_that_both_models_exclude_takes_no_part_in_the_contrast():
    """Right (1/2, 1/2, 0), wrong (1/4, 3/4, 0), so (1/2)^2 / (1/4) = 1 against (1/2)^2 / (3/4) = 1/3."""
    right = torch.tensor([[0.5, 0.5, 0.0]]).log()
    wrong = torch.tensor([[0.25, 0.75, 0.0]]).log()
    for label, expected in ((0, 0.75), (1, 0.25), (2, 0.0)):
        found = cdpo.contrast(right, wrong, torch.tensor([label]), contrast=1.0).exp()
        assert found.item() == pytest.approx(expected, abs=1e-6)


def double_pair(seed, weights):
    generator = torch.Generator().manual_seed(seed)
    return [batches.side(generator, rows=3, length=n, weights=weights, double=True) for n in (9, 6)]


@pytest.mark.parametrize("weights", ["all", "some", "fractional"])
@pytest.mark.parametrize("rule", ["released", "paper"])
@pytest.mark.parametrize("seed", SEEDS)
def test_confpo_and_simper_equal_the_plain_loops(seed, rule, weights):
    chosen, rejected = (batches.scored(side) for side in double_pair(seed, weights))
    rows = [
        [list(each) for each in zip(side.logps.tolist(), side.weight.tolist(), strict=True)]
        for side in (chosen, rejected)
    ]
    out = confpo.confpo_loss(chosen, rejected, beta=2.5, gamma=0.7, rule=rule)
    close(out.loss, [plain_loops.confpo(c, r, 2.5, 0.7, rule == "released") for c, r in zip(*rows, strict=True)])
    close(simper.simper_loss(chosen, rejected).loss, [plain_loops.simper(c, r) for c, r in zip(*rows, strict=True)])


def test_simper_lies_between_minus_1_and_1_and_is_0_for_equal_responses():
    sure, unsure = (TokenLogps(torch.full((1, 3), p), torch.ones(1, 3)) for p in (0.0, -1e30))
    assert simper.simper_loss(sure, unsure).loss.item() == -1
    assert simper.simper_loss(unsure, sure).loss.item() == 1
    assert simper.simper_loss(sure, sure).loss.item() == 0


def test_the_selection_of_confpo_passes_no_gradient_and_ignores_tokens_outside_the_response():
    """exp(p): 0.9, 0.1, 0.5 of the response, mean 0.5: only the second is below; the fourth is not of the response."""
    logps = torch.tensor([[0.9, 0.1, 0.5, 1e-6]], dtype=torch.float64).log().requires_grad_()
    response = TokenLogps(logps, torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
    assert confpo.select(response, rule="released").tolist() == [[False, True, False, False]]
    out = confpo.confpo_loss(response, TokenLogps(logps.detach(), response.weight), beta=1.0, gamma=0.0)
    out.loss.sum().backward()
    assert logps.grad.tolist() == [[0.0, pytest.approx(-0.5), 0.0, 0.0]]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("ties", ["apart", "breslow"])
def test_plackett_luce_equals_the_plain_loops_with_ties_and_absent_responses(seed, ties):
    generator = torch.Generator().manual_seed(seed)
    rewards = (2 * torch.randn(6, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    marks = torch.randint(-1, 2, (6, 5), generator=generator).double()
    marks[0] = 1.0  # nothing but ties
    present = torch.rand(6, 5, generator=generator) < 0.7
    present[1] = False
    out = plackett_luce.plackett_luce_loss(rewards, marks, present, ties=ties)
    rows = zip(rewards.tolist(), marks.tolist(), present.tolist(), strict=True)
    expected = [plain_loops.plackett_luce(*row, ties) for row in rows]
    close(out.loss, [loss for loss, _ in expected])
    assert out.valid.tolist() == [competes for _, competes in expected]
    assert gradcheck(lambda r: plackett_luce.plackett_luce_loss(r, marks, present, ties=ties).loss, (rewards,))
    scaled = plackett_luce.dpo_pl_loss(rewards, rewards.detach() / 3, marks, present, beta=1.5, ties=ties)
    close(scaled.loss, plackett_luce.plackett_luce_loss(rewards, marks, present, ties=ties).loss.tolist())


def test_plackett_luce_is_finite_and_exactly_nothing_where_there_is_nothing_to_rank():
    """An absent response may have any reward; -inf and NaN included."""
    rewards = torch.tensor([[1e4, -1e4, torch.nan], [torch.inf, 2.0, torch.nan], [0.0, 0.0, 0.0]], requires_grad=True)
    present = torch.tensor([[True, True, False], [False, True, False], [True, True, True]])
    for ties in ("apart", "breslow"):
        rewards.grad = None
        out = plackett_luce.plackett_luce_loss(
            rewards, torch.tensor([[1.0, 2, 3], [1, 2, 3], [1, 1, 1]]), present, ties=ties
        )
        out.loss.sum().backward()
        assert torch.isfinite(rewards.grad).all()
        assert (rewards.grad[~present] == 0).all()
        assert out.loss[0].item() == pytest.approx(2e4)
        assert (out.loss[1].item(), out.valid[1].item()) == (0.0, False)
        assert out.valid[2].item() == (ties == "breslow")
    with pytest.raises(ValueError, match="unknown ties 'first'"):
        plackett_luce.plackett_luce_loss(torch.zeros(1, 2), torch.zeros(1, 2), ties="first")
    with pytest.raises(ValueError, match="NaN score"):
        plackett_luce.plackett_luce_loss(torch.zeros(1, 2), torch.tensor([[torch.nan, 1.0]]))


@pytest.mark.parametrize("ties", ["apart", "breslow"])
def test_plackett_luce_of_two_responses_is_the_ranking_loss_and_dpo_pl_is_dpo(ties):
    generator = torch.Generator().manual_seed(0)
    rewards, marks = torch.randn(8, 2, generator=generator).double(), torch.rand(8, 2, generator=generator)
    ranked = ranking.rank_loss(rewards, marks)
    for ours, theirs in zip(plackett_luce.plackett_luce_loss(rewards, marks, ties=ties), ranked, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    policy, reference, one = rewards, rewards.flip(0), torch.ones(8, 1).double()
    sides = [tdpo.TokenLogRatio(policy[:, [i]], reference[:, [i]], None, one) for i in (0, 1)]
    dpo = tdpo.masked_dpo_loss(*sides, beta=0.3)
    pl = plackett_luce.dpo_pl_loss(policy, reference, torch.tensor([[1.0, 0.0]] * 8), beta=0.3, ties=ties)
    torch.testing.assert_close(pl.loss, dpo.loss, rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_both_readings_of_ld_dpo_equal_the_plain_loops(seed, alpha):
    sides = [batches.ratio(side) for side in double_pair(seed, "all")]
    lengths = [side.weight.shape[1] for side in sides]
    plain_weights = [plain_loops.length_weights(n, other, alpha) for n, other in (lengths, lengths[::-1])]
    weighted = [
        side._replace(weight=torch.tensor([ld_dpo.length_weights(n, other, alpha=alpha)] * 3, dtype=torch.float64))
        for side, (n, other) in zip(sides, (lengths, lengths[::-1]), strict=True)
    ]
    for side, plain in zip(weighted, plain_weights, strict=True):
        assert side.weight[0].tolist() == plain
    rows = [list(zip(side.policy.tolist(), side.reference.tolist(), strict=True)) for side in sides]
    both = [
        plain_loops.weighted_dpo((*c, plain_weights[0]), (*r, plain_weights[1]), 0.1)
        for c, r in zip(*rows, strict=True)
    ]
    close(tdpo.masked_dpo_loss(*weighted, beta=0.1).loss, both)
    policy_only = []
    for pair in zip(*rows, strict=True):
        m = [
            sum(w * p for w, p in zip(weight, logps, strict=True)) - sum(ref)
            for weight, (logps, ref) in zip(plain_weights, pair, strict=True)
        ]
        policy_only.append(-plain_loops.log_sigmoid(0.1 * (m[0] - m[1])))
    close(tdpo.masked_dpo_loss(*map(ld_dpo.whole_reference, weighted), beta=0.1).loss, policy_only)
    assert (both == pytest.approx(policy_only)) == (alpha == 1), "the readings differ where alpha does something"


def test_every_dpo_like_objective_with_neutral_settings_is_dpo():
    """TGDPO with alpha 0, TIS with scores 0 or `binary` at 100 %, cDPO with s_t = 0, LD-DPO with alpha 1."""
    chosen, rejected = (batches.ratio(side) for side in double_pair(0, "all"))
    dpo = tdpo.masked_dpo_loss(chosen, rejected, beta=0.1)

    def same(weigh, loss=tdpo.masked_dpo_loss):
        sides = (r._replace(weight=weigh(r, kind)) for r, kind in ((chosen, True), (rejected, False)))
        for ours, theirs in zip(loss(*sides, beta=0.1), dpo, strict=True):
            assert torch.equal(ours, theirs)

    s = torch.randn(1, dtype=torch.float64)
    bounds = {"low": -1.5, "high": 1.5, "scale_low": 0.7, "scale_high": 1.3}
    same(lambda r, kind: tgdpo.token_weights(s * r.policy.detach(), beta=0.1, alpha=0.0, chosen=kind))
    same(lambda r, kind: tis_dpo.importance_weights(0 * r.weight, chosen=kind, k=1.0, low=-0.5, high=1.5))
    same(lambda r, kind: tis_dpo.binary(r.policy.detach(), r.weight > 0, chosen=kind, share=1.0), tis_dpo.tis_dpo_loss)
    same(lambda r, kind: tis_dpo.threshold_and_scale(0 * r.weight, r.weight > 0, chosen=kind, **bounds))
    same(lambda r, kind: r.weight if kind else cdpo.rejected_weights(0 * r.weight))
    other = {9: 6, 6: 9}
    same(
        lambda r, kind: torch.tensor(
            [ld_dpo.length_weights(r.weight.shape[1], other[r.weight.shape[1]], alpha=1.0)] * 3, dtype=torch.float64
        )
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_negative_weights_are_not_lost(seed):
    """Each token counts with its sign: once all `weight > 0` in the sums would have dropped them."""
    sides = [batches.ratio(side) for side in double_pair(seed, "all")]
    weighted = [side._replace(weight=torch.randn(side.weight.shape, dtype=torch.float64)) for side in sides]
    assert all((side.weight < 0).any() for side in weighted)
    rows = [zip(side.policy.tolist(), side.reference.tolist(), side.weight.tolist(), strict=True) for side in weighted]
    out = tdpo.masked_dpo_loss(*weighted, beta=0.1)
    close(out.loss, [plain_loops.weighted_dpo(c, r, 0.1) for c, r in zip(*rows, strict=True)])
    only_negative = [side._replace(weight=-torch.ones_like(side.weight)) for side in sides]
    assert tdpo.masked_dpo_loss(*only_negative, beta=0.1).valid.all()


@pytest.mark.parametrize("ties", ["apart", "breslow"])
def test_the_reward_models_loss_of_whole_lists_is_the_mean_of_its_lists(ties):
    """Human lists with coefficient 2, one of samples with 0.5 / 4; the list of ties counts by the choice."""
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randn(4, 3, generator=generator).double()
    marks = torch.tensor([[3.0, 1, 2], [1, 2, 2], [1, 0, 0], [5, 5, 5]]).double()
    is_apo = torch.tensor([False, False, True, False])
    settings = {"kl_coeff": 2.0, "apo_coeff": 0.5, "samples": 4, "kind": "plackett_luce", "ties": ties}
    whole = [
        plain_loops.plackett_luce(r, m, [True] * 3, ties)
        for r, m in zip(rewards.tolist(), marks.tolist(), strict=True)
    ]
    human = [loss for i, (loss, competes) in enumerate(whole) if competes and i != 2]
    assert len(human) == (3 if ties == "breslow" else 2)
    expected = 2.0 * sum(human) / len(human) + 0.5 / 4 * whole[2][0]
    close(reduce(apo_rm.apo_rm_loss(rewards, marks, is_apo, **settings)), expected)
    with pytest.raises(ValueError, match="no whole lists"):
        apo_rm.apo_rm_loss(rewards, marks, is_apo, **settings, normalization="released")
