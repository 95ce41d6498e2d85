"""Each loss in float32 against `plain_loops`, which is float64, loops, and written from the papers."""

import batches
import plain_loops
import pytest
import torch
from finepref.losses import apo_rm, kto, ranking, sepo, tdpo
from finepref.losses.ops import TokenLogps, position_kl, reduce, token_logps

SEEDS = range(8)


def close(ours, plain):
    """1e-6 of float32: absolute below 1, relative above."""
    torch.testing.assert_close(ours.double(), torch.tensor(plain, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def pair(seed, **kwargs):
    """Chosen and rejected responses of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    weights = ("some", "fractional", "all", "one token")[seed % 4]
    return tuple(batches.side(generator, rows=3, length=n, weights=weights, **kwargs) for n in (9, 6))


def plain_responses(side):
    """Per record: (policy logps, reference logps, kl, weight) as lists of floats, by the plain loops."""
    return [
        (
            plain_loops.token_logps(policy, labels),
            plain_loops.token_logps(reference, labels),
            [plain_loops.kl(p, r) for p, r in zip(policy[:-1], reference[:-1], strict=True)],
            weight,
        )
        for policy, reference, labels, weight in zip(*(x.tolist() for x in side), strict=True)
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_log_probabilities_and_kl_equal_the_plain_loops(seed):
    side, _ = pair(seed)
    plain = plain_responses(side)
    close(token_logps(side.policy_logits, side.labels), [p[0] for p in plain])
    close(position_kl(side.policy_logits[:, :-1], side.reference_logits[:, :-1]), [p[2] for p in plain])


@pytest.mark.parametrize("preset", ["paper", "released"])
@pytest.mark.parametrize("seed", SEEDS)
def test_sepo_equals_the_plain_loops(seed, preset):
    sides = pair(seed)
    out = sepo.sepo_loss(
        *(TokenLogps(token_logps(s.policy_logits, s.labels), s.weight) for s in sides), **sepo.PRESETS[preset]
    )
    chosen, rejected = map(plain_responses, sides)
    gamma, margin = sepo.PRESETS[preset]["gamma"], sepo.PRESETS[preset]["margin"]
    close(
        out.loss,
        [plain_loops.sepo(c[0], c[3], r[0], r[3], gamma, margin) for c, r in zip(chosen, rejected, strict=True)],
    )


def test_the_margin_of_sepo_is_subtracted_inside_the_sigmoid():
    sides = pair(0)
    logps = [TokenLogps(token_logps(s.policy_logits, s.labels), s.weight) for s in sides]
    chosen, rejected = map(plain_responses, sides)
    expected = [plain_loops.sepo(c[0], c[3], r[0], r[3], 2.1, 0.7) for c, r in zip(chosen, rejected, strict=True)]
    close(sepo.sepo_loss(*logps, gamma=2.1, margin=0.7).loss, expected)


@pytest.mark.parametrize("length_normalized", [False, True])
@pytest.mark.parametrize("sides", [None, [0, 1, -1], [1, 1, 1], [-1, -1, -1]], ids=str)
@pytest.mark.parametrize("objective", ["tdpo1", "tdpo2", "dpo"])
@pytest.mark.parametrize("seed", SEEDS)
def test_tdpo_and_masked_dpo_equal_the_plain_loops(seed, objective, sides, length_normalized):
    chosen, rejected = pair(seed)
    loss, extra = {
        "tdpo1": (tdpo.tdpo1_loss, {}),
        "tdpo2": (tdpo.tdpo2_loss, {"alpha": 0.5}),
        "dpo": (tdpo.masked_dpo_loss, {}),
    }[objective]
    out = loss(
        batches.ratio(chosen),
        batches.ratio(rejected),
        beta=0.1,
        sides=None if sides is None else torch.tensor(sides),
        length_normalized=length_normalized,
        **extra,
    )
    expected = [
        plain_loops.preference(objective, c, r, 0.1, 0.5, side, length_normalized)
        for c, r, side in zip(plain_responses(chosen), plain_responses(rejected), sides or [0, 0, 0], strict=True)
    ]
    close(out.loss, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_kto_equals_the_plain_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    log_ratio = 10 * torch.randn(6, generator=generator)
    desirable = torch.rand(6, generator=generator) < 0.5
    out = kto.kto_loss(log_ratio, desirable, 0.4, beta=0.1, desirable_weight=1.33, undesirable_weight=0.8)
    rows = zip(log_ratio.tolist(), desirable.tolist(), strict=True)
    close(out.loss, [plain_loops.kto(r, d, 0.4, 0.1, 1.33, 0.8) for r, d in rows])


@pytest.mark.parametrize("normalization", ["per_type", "released"])
@pytest.mark.parametrize("kind", ["ranking", "wgan"])
@pytest.mark.parametrize("seed", SEEDS)
def test_apo_equals_the_plain_loops_with_ties_and_absent_responses(seed, kind, normalization):
    generator = torch.Generator().manual_seed(seed)
    rewards = 2 * torch.randn(5, 4, generator=generator)
    scores = torch.randint(-2, 3, (5, 4), generator=generator).float()  # negative scores and ties
    present = torch.rand(5, 4, generator=generator) < 0.8
    is_apo = torch.tensor([False, True, True, False, True])
    coefficients = {"kl_coeff": 1.0, "apo_coeff": 0.1, "samples": 4}
    out = apo_rm.apo_rm_loss(
        rewards, scores, is_apo, mask=present, kind=kind, normalization=normalization, **coefficients
    )
    lists = (x.tolist() for x in (rewards, scores, present, is_apo))
    close(reduce(out), plain_loops.apo_rm(*lists, **coefficients, kind=kind, normalization=normalization))
    ranked = ranking.rank_loss(rewards, scores, present)
    plain = [plain_loops.rank(*row) for row in zip(rewards.tolist(), scores.tolist(), present.tolist(), strict=True)]
    close(ranked.loss, [total / n if n else 0.0 for total, n in plain])
    assert ranked.valid.tolist() == [n > 0 for _, n in plain]
    ahead = ranking.rank_loss(rewards, scores, present, margins=True)
    plain = [
        plain_loops.rank(*row, margins=True)
        for row in zip(*(x.tolist() for x in (rewards, scores, present)), strict=True)
    ]
    close(ahead.loss, [total / n if n else 0.0 for total, n in plain])
