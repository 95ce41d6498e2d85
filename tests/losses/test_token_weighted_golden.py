"""Seven methods against tests/golden/token_weighted.json: numbers of independent numpy code, with their gradients.

Each case names its source: the authors' code at a commit, or a paper. In float64 to 1e-10, in float32 to 1e-5.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from finepref.losses import cdpo, confpo, plackett_luce, simper, tdpo, tgdpo, tis_dpo
from finepref.losses.ops import TokenLogps

FILE = Path(__file__).parents[1] / "golden" / "token_weighted.json"
CASES = json.loads(FILE.read_text(encoding="utf-8"))["cases"]
DTYPES = (torch.float64, torch.float32)
SIDES = ("chosen", "rejected")


def of(method):
    """Every case of a method, in both number formats."""
    cases = [pytest.param(case, dtype, id=f"{case['name']}-{dtype}") for case in CASES[method] for dtype in DTYPES]
    return pytest.mark.parametrize(("case", "dtype"), cases)


def close(ours, golden, dtype):
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    golden = torch.tensor(golden, dtype=torch.float64)
    torch.testing.assert_close(ours.detach().double(), golden, rtol=tolerance, atol=tolerance)


def inputs(case, dtype):
    """The inputs as tensors, those of two responses by side; the policy's are leaves with a gradient."""

    def tensor(name, value):
        kind = torch.int64 if name.startswith("labels") else dtype
        return torch.tensor(value, dtype=kind).requires_grad_(
            name in ("policy", "policy_sum", "reward", "kl_policy_reference")
        )

    given = {name: value for name, value in case["inputs"].items() if name != "sentences"}
    return {
        name: {side: tensor(name, each) for side, each in value.items()}
        if isinstance(value, dict)
        else tensor(name, value)
        for name, value in given.items()
    }


def ratios(given, weights, kl=None):
    return [
        tdpo.TokenLogRatio(given["policy"][side], given["reference"][side], kl and kl[side], weights[side])
        for side in SIDES
    ]


def compare(out, given, case, dtype):
    """Loss and gradients, and the logit as the difference of the logged rewards where there is no KL."""
    close(out.loss, case["expected"]["loss"], dtype)
    out.loss.sum().backward()
    for side in SIDES:
        close(given["policy"][side].grad, case["expected"]["grad"][side], dtype)
    if "logit" in case["expected"]:
        close(out.chosen_reward - out.rejected_reward, case["expected"]["logit"], dtype)


@of("tis_dpo")
def test_tis_dpo(case, dtype):
    given, p = inputs(case, dtype), case["params"]
    weights = {}
    for side in SIDES:
        score, mask, chosen = given["score"][side], given["mask"][side], side == "chosen"
        among = (mask > 0) & (given["end"][side] == 0)
        if case["name"] == "paper":
            made = tis_dpo.importance_weights(score, chosen=chosen, k=p["k"], low=p["low"], high=p["high"])
            weights[side] = mask * made
        elif case["name"] == "released_rank_based":
            weights[side] = tis_dpo.rank_based(score, among, chosen=chosen, low=p["low_scale"], high=p["high_scale"])
        else:
            bounds = {name: p[name] for name in ("low", "high")}
            scale = {"scale_low": p["low_scale"], "scale_high": p["high_scale"]}
            weights[side] = tis_dpo.threshold_and_scale(score, among, chosen=chosen, **bounds, **scale)
        close(weights[side], case["expected"]["weight"][side], dtype)
    kl = given.get("kl_policy_reference")
    compare(
        tis_dpo.tis_dpo_loss(*ratios(given, weights, kl), beta=p["beta"], alpha=p.get("alpha", 0.0)),
        given,
        case,
        dtype,
    )
    for side in SIDES if kl else ():
        close(kl[side].grad, case["expected"]["grad_kl"][side], dtype)


@of("tgdpo")
def test_tgdpo(case, dtype):
    given, weights = inputs(case, dtype), {}
    for side in SIDES:
        log_ratio = given["guide"][side] - given["reference"][side]
        made = tgdpo.token_weights(log_ratio, **case["params"], chosen=side == "chosen")
        weights[side] = given["mask"][side] * made
        close(weights[side], case["expected"]["weight"][side], dtype)
    assert (case["name"] == "negative") == any(bool((weight < 0).any()) for weight in weights.values())
    compare(tdpo.masked_dpo_loss(*ratios(given, weights), beta=case["params"]["beta"]), given, case, dtype)


@of("cdpo")
def test_cdpo(case, dtype):
    given, p = inputs(case, dtype), case["params"]
    if "logits_pos" in given:
        log_score = cdpo.contrast(
            given["logits_pos"], given["logits_neg"], given["labels_rejected"], contrast=p["contrast"]
        )
        given["score_rejected"] = log_score.exp()
        close(given["score_rejected"], case["expected"]["score_rejected"], dtype)
    mask = given["mask"]
    weights = {
        "chosen": mask["chosen"],
        "rejected": mask["rejected"] * cdpo.rejected_weights(given["score_rejected"]),
    }
    if case["name"] == "released":
        loss = cdpo.released_loss(*ratios(given, weights), beta=p["beta"])
        close(loss, case["expected"]["loss"], dtype)
        loss.backward()
        for side in SIDES:
            close(given["policy"][side].grad, case["expected"]["grad"][side], dtype)
        return
    compare(tdpo.masked_dpo_loss(*ratios(given, weights), beta=p["beta"]), given, case, dtype)


@of("confpo")
def test_confpo(case, dtype):
    rules = {"released": case["expected"]} | (
        {"paper": case["expected"]["paper_rule"]} if "paper_rule" in case["expected"] else {}
    )
    for rule, expected in rules.items():
        given = inputs(case, dtype)
        sides = [TokenLogps(given["policy"][side], given["mask"][side]) for side in SIDES]
        for side, response in zip(SIDES, sides, strict=True):
            close(confpo.select(response, rule=rule).to(dtype), expected["selected"][side], dtype)
        out = confpo.confpo_loss(*sides, **case["params"], rule=rule)
        compare(out, given, {"expected": expected}, dtype)
        assert out.valid.all(), "a pair that selects nothing counts in the mean"
        if rule == "released":
            close(out.loss.mean(), expected["mean_over_batch"], dtype)
            assert ((out.loss == 0) == ~torch.tensor(expected["valid"])).all()


@of("mask_dpo")
def test_mask_dpo(case, dtype):
    """The kept sentences as spans of a text of one character per token; the end tokens come after the text."""
    from finepref.formats.row import Span
    from finepref.formats.spans import token_weights

    given, weights = inputs(case, dtype), {}
    for side, dropped in (("chosen", "hallucination"), ("rejected", "no_hallucination")):
        width = given["mask"][side].shape[1]
        rows = []
        for parts in case["inputs"]["sentences"][side]:
            text, position, kept = sum(n for n, kind in parts if kind != "end"), 0, []
            for length, kind in parts:
                if kind not in (dropped, "end"):
                    kept.append(Span(position, position + length))
                position += length
            row = token_weights(kept, [(i, i + 1) for i in range(text)]) + [1.0] * (position - text)
            rows.append(row + [0.0] * (width - len(row)))
        weights[side] = torch.tensor(rows, dtype=dtype)
        close(weights[side], case["expected"]["weight"][side], dtype)
    compare(tdpo.masked_dpo_loss(*ratios(given, weights), beta=case["params"]["beta"]), given, case, dtype)


@of("simper")
def test_simper(case, dtype):
    given = inputs(case, dtype)
    out = simper.simper_loss(*(TokenLogps(given["policy"][side], given["mask"][side]) for side in SIDES))
    compare(out, given, case, dtype)


@of("plackett_luce")
def test_plackett_luce(case, dtype):
    given, expected = inputs(case, dtype), case["expected"]
    scores, present = given["score"], given["present"] > 0
    for ties in ("apart", "breslow"):  # there are no ties in these cases
        given = inputs(case, dtype)
        if case["name"] == "dpo":
            policy, reference = given["policy_sum"], given["reference_sum"]
            out = plackett_luce.dpo_pl_loss(policy, reference, scores, present, **case["params"], ties=ties)
            leaf, gradient = policy, expected["grad_policy_sum"]
        else:
            out = plackett_luce.plackett_luce_loss(given["reward"], scores, present, ties=ties)
            leaf, gradient = given["reward"], expected["grad_reward"]
        close(out.loss, expected["loss"], dtype)
        out.loss.sum().backward()
        close(leaf.grad, gradient, dtype)
        if "loss_per_factor" in expected:
            close(out.loss / (present.sum(1) - 1), expected["loss_per_factor"], dtype)


def test_every_case_of_the_file_is_compared():
    """Seven methods of three cases; each has a test of its name here."""
    assert {name: len(cases) for name, cases in CASES.items()} == dict.fromkeys(
        ("tis_dpo", "tgdpo", "cdpo", "confpo", "mask_dpo", "simper", "plackett_luce"), 3
    )
    assert all(f"test_{name}" in globals() for name in CASES)
