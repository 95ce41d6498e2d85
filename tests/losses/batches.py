"""Random batches of pairs for the loss tests, and the loss functions under one signature."""

from typing import NamedTuple

import torch
from finepref.losses import confpo, kto, ld_dpo, sepo, simper, tdpo, tgdpo, tis_dpo
from finepref.losses.ops import LossOut, TokenLogps, position_kl, token_logps
from torch import Tensor

V = 11


class Side(NamedTuple):
    """One response per record: what a policy and a reference model answer, the labels and the token weights."""

    policy_logits: Tensor  # [B, T+1, V], a leaf with gradient
    reference_logits: Tensor  # [B, T+1, V]
    labels: Tensor  # [B, T+1]
    weight: Tensor  # [B, T]


def side(generator, *, rows, length, dtype=torch.float32, kind="normal", weights="some", double=False):
    """Logits and weights of the kinds that the grid of issue 3 names; the -inf column is the same in both models."""

    def logits():
        z = torch.randn(rows, length + 1, V, generator=generator, dtype=torch.float64)
        if kind == "huge":
            z = z.sign() * 1e4
        elif kind == "excluded":
            z[..., 3] = -torch.inf
        elif kind == "equal":
            z = torch.zeros_like(z)
        elif kind == "gap":
            z[..., 5] += 200
        return z.to(torch.float64 if double else dtype)

    weight = {
        "none in one row": torch.ones(rows, length),
        "none at all": torch.zeros(rows, length),
        "one token": torch.nn.functional.one_hot(torch.arange(rows) % length, length).float(),
        "all": torch.ones(rows, length),
        "fractional": torch.rand(rows, length, generator=generator) + 0.05,
        "some": (torch.rand(rows, length, generator=generator) < 0.6).float(),
    }[weights]
    if weights == "none in one row":
        weight[0] = 0
    if weights == "some":
        weight[:, -1] = 1
    labels = torch.randint(0, V, (rows, length + 1), generator=generator)
    labels[:, 1:][weight == 0] = -100
    labels[:, 0] = -100
    return Side(logits().requires_grad_(), logits(), labels, weight.double() if double else weight)


def ratio(s: Side) -> tdpo.TokenLogRatio:
    return tdpo.TokenLogRatio(
        token_logps(s.policy_logits, s.labels),
        token_logps(s.reference_logits, s.labels),
        position_kl(s.policy_logits[:, :-1], s.reference_logits[:, :-1]),
        s.weight,
    )


def scored(s: Side) -> TokenLogps:
    return TokenLogps(token_logps(s.policy_logits, s.labels), s.weight)


def reverse_kl(policy_logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(policy || reference) with a gradient: [..., V], [..., V] -> [...]."""
    log_pi, log_ref = (
        each.to(torch.promote_types(each.dtype, torch.float32)).log_softmax(-1).clamp(min=-1e30)
        for each in (policy_logits, reference_logits)
    )
    return (log_pi.exp() * (log_pi - log_ref)).sum(-1)


def guided(s: Side, *, chosen: bool) -> tdpo.TokenLogRatio:
    """TGDPO's weights, some of them negative, by a guide whose log-ratio is made of the reference's numbers."""
    response = ratio(s)
    log_ratio = 10 * (response.reference.detach() + 1.7).clamp(-5, 5)
    return response._replace(weight=s.weight * tgdpo.token_weights(log_ratio, beta=0.1, alpha=0.5, chosen=chosen))


def _sepo(chosen: Side, rejected: Side) -> LossOut:
    return sepo.sepo_loss(scored(chosen), scored(rejected), **sepo.PRESETS["paper"])


def _kto(chosen: Side, rejected: Side) -> LossOut:
    """The chosen responses as desirable records, then the rejected ones as undesirable records, summed per pair."""

    def outcome(s: Side, desirable: bool) -> LossOut:
        policy, reference, _, weight = ratio(s)
        return kto.kto_loss(
            (torch.where(weight > 0, policy - reference, 0.0) * weight).sum(-1),
            torch.full((len(weight),), desirable),
            0.3,
            beta=0.1,
            desirable_weight=1.0,
            undesirable_weight=0.7,
            valid=(weight > 0).any(-1),
        )

    good, bad = outcome(chosen, True), outcome(rejected, False)
    return LossOut(good.loss + bad.loss, good.valid & bad.valid, good.chosen_reward, bad.rejected_reward)


def _with_reverse_kl(s: Side) -> tdpo.TokenLogRatio:
    return ratio(s)._replace(kl=reverse_kl(s.policy_logits[:, :-1], s.reference_logits[:, :-1]))


PAIR_LOSSES = {
    "sepo": _sepo,
    "tdpo1": lambda c, r: tdpo.tdpo1_loss(ratio(c), ratio(r), beta=0.1),
    "tdpo2": lambda c, r: tdpo.tdpo2_loss(ratio(c), ratio(r), beta=0.1, alpha=0.5),
    "tdpo2 length-normalized": lambda c, r: tdpo.tdpo2_loss(
        ratio(c), ratio(r), beta=2.0, alpha=0.5, length_normalized=True
    ),
    "masked dpo": lambda c, r: tdpo.masked_dpo_loss(ratio(c)._replace(kl=None), ratio(r)._replace(kl=None), beta=0.1),
    "kto": _kto,
    "tgdpo": lambda c, r: tdpo.masked_dpo_loss(guided(c, chosen=True), guided(r, chosen=False), beta=0.1),
    "tis-dpo with KL": lambda c, r: tis_dpo.tis_dpo_loss(*map(_with_reverse_kl, (c, r)), beta=0.1, alpha=0.5),
    "ld-dpo, whole reference": lambda c, r: tdpo.masked_dpo_loss(
        *(ld_dpo.whole_reference(ratio(s)) for s in (c, r)), beta=0.1
    ),
    "confpo": lambda c, r: confpo.confpo_loss(scored(c), scored(r), beta=1.5, gamma=1.6),
    "confpo, paper": lambda c, r: confpo.confpo_loss(scored(c), scored(r), beta=1.5, gamma=1.6, rule="paper"),
    "simper": lambda c, r: simper.simper_loss(scored(c), scored(r)),
}
