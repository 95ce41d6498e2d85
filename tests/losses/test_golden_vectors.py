"""The `released` settings against numbers of the released implementations (sources in tests/golden/*.json)."""

import json
from pathlib import Path

import pytest
import torch
from finepref.losses import apo_rm, sepo, tdpo
from finepref.losses.ops import TokenLogps, position_kl, reduce, token_logps
from finepref.synth import calibration

GOLDEN = Path(__file__).parents[1] / "golden"


def cases(name):
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))["cases"]


def close(ours, golden):
    torch.testing.assert_close(ours.double(), torch.tensor(golden, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def response(case, rows):
    """The rows `rows` of a golden case as a TokenLogRatio; the fork's mask is in input space, like the labels."""
    policy, reference = (torch.tensor(case[k])[rows] for k in ("policy_logits", "reference_logits"))
    labels = torch.tensor(case["labels"])[rows]
    weight = (labels != -100).float()
    if "mask" in case:
        weight = weight * torch.tensor(case["mask"], dtype=torch.float32)[rows]
    return tdpo.TokenLogRatio(
        token_logps(policy, labels),
        token_logps(reference, labels),
        position_kl(policy[:, :-1], reference[:, :-1]),
        weight[:, 1:],
    )


@pytest.mark.parametrize("name", ["tdpo", "granular"])
def test_tdpo_equals_the_released_code(name):
    for case in cases(name):
        chosen, rejected = response(case, slice(case["B"])), response(case, slice(case["B"], None))
        sides = torch.full((case["B"],), case.get("flag", 0))
        out = {
            "tdpo1": lambda c, r, s, case=case: tdpo.tdpo1_loss(c, r, beta=case["beta"], sides=s),
            "tdpo2": lambda c, r, s, case=case: tdpo.tdpo2_loss(c, r, beta=case["beta"], alpha=case["alpha"], sides=s),
            "dpo": lambda c, r, s, case=case: tdpo.masked_dpo_loss(c, r, beta=case["beta"], sides=s),
        }[case["variant"]](chosen, rejected, sides)
        close(out.loss, case["loss"])
        close(out.chosen_reward, case["chosen_rewards"])
        close(out.rejected_reward, case["rejected_rewards"])
        assert out.valid.all()
        both = [torch.cat(pair) for pair in zip(chosen, rejected, strict=True)]
        close(((both[0] - both[1]) * both[3]).sum(-1), case["logps_margin"])
        close((both[2] * both[3]).sum(-1), case["position_kl_sum"])


def test_sepo_equals_the_released_code():
    """The released mask has one column more than the log-probs, and its last column is dropped."""
    for case in cases("sepo"):
        chosen, rejected = (
            TokenLogps(torch.tensor(case[f"{s}_logps"]), torch.tensor(case[f"{s}_mask"])[:, :-1])
            for s in ("chosen", "rejected")
        )
        out = sepo.sepo_loss(chosen, rejected, **sepo.PRESETS["released"])
        close(reduce(out), case["loss_mean"])
        close(out.chosen_reward.mean(), case["chosen_reward_mean"])
        close(out.rejected_reward.mean(), case["rejected_reward_mean"])


def test_sepo_selects_the_tokens_that_the_released_code_selects():
    for case in cases("sepo_selection"):
        scores = torch.tensor(case["scores"])
        for key, highest in (("selected", True), ("unselected", False)):
            for ratio, golden in case[key].items():
                chosen = sepo.select_tokens(scores, float(ratio), highest=highest)
                assert chosen.nonzero().flatten().tolist() == sorted(golden)


def test_apo_equals_the_released_code_and_absent_means_a_score_of_minus_one_there():
    for case in cases("apo"):
        rewards, scores = torch.tensor(case["rewards"]), torch.tensor(case["scores"])
        is_apo = torch.tensor(case["is_apo"]).bool()
        settings = {"mask": scores != -1, "kind": case["kind"], "normalization": "released"}

        def loss(kl_coeff, apo_coeff, samples, given=(rewards, scores, is_apo), settings=settings):
            out = apo_rm.apo_rm_loss(*given, kl_coeff=kl_coeff, apo_coeff=apo_coeff, samples=samples, **settings)
            return reduce(out)

        close(loss(1.0, 0.0, 1), case["human_part"])
        close(loss(0.0, 1.0, 1), case["apo_part"])
        close(loss(1.0, 0.1, 4), case["total_kl1_apo0p1_samples4"])


def test_calibration_errors_equal_the_released_code():
    for case in cases("calibration"):
        probabilities = torch.tensor(case["probabilities"], dtype=torch.float64)
        errors = calibration.calibration_error(probabilities, torch.tensor(case["labels"]), bins=case["bins"])
        assert errors == pytest.approx((case["ece"], case["ace"], case["mce"]), abs=1e-12)
