"""The counting of operations, the growth's exponents and the page of the training benchmarks, by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER / "training"))

import flops  # noqa: E402
import growth  # noqa: E402
import page  # noqa: E402
from claims import ARMS, CLAIMS, SETTINGS  # noqa: E402
from flops import Record, Sizes, Tokens, Work  # noqa: E402

# One block, hidden 4, two heads of 2 of which one has keys and values, 6 intermediate, vocabulary 10, rank 1.
SIZES = Sizes(layers=1, hidden=4, intermediate=6, heads=2, key_value_heads=1, vocabulary=10, rank=1)
PAIR = Record([([1, 2], [3, 4]), ([1, 2], [3, 5, 6])])


def test_the_weights_of_a_block_and_of_its_adapter():
    """q 4 x 4, k and v 4 x 2, o 4 x 4, gate and up 4 x 6, down 6 x 4; an adapter of rank 1 has inputs + outputs."""
    assert SIZES.weights == 16 + 8 + 8 + 16 + 24 + 24 + 24 == 120
    assert SIZES.adapter == 8 + 6 + 6 + 8 + 10 + 10 + 10 == 58


def test_padding_counts_every_row_as_the_longest_rounded_up():
    assert flops.padded(PAIR.trained) == Tokens(2 * 5, 2 * (1 + 2 + 3 + 4 + 5))
    assert flops.padded(PAIR.trained, 8) == Tokens(2 * 8, 2 * 36)


def test_a_tree_counts_a_common_beginning_once():
    """1 2 3, then 4 beside 5 6: six tokens, at depths 1 2 3, 4, 4 5."""
    assert flops.tree(PAIR.trained) == Tokens(6, 1 + 2 + 3 + 4 + 4 + 5)
    assert flops.tree([([1, 2], [9])], within=PAIR.trained) == Tokens(1, 3)


def test_needed_are_the_positions_that_predict_a_response_token():
    """After 1 2 (the 3), after 1 2 3 (the 4 and the 5), after 1 2 3 5 (the 6)."""
    assert flops.needed(PAIR.trained) == 3
    assert flops.needed([([1, 2], [9, 8])], within=PAIR.trained) == 1  # only after 1 2 9


def test_operations_of_a_pass():
    """10 tokens that look at 30: forward 2 x (120 + 58) x 10 + 4 x 4 x 30; again for recomputation; then backward."""
    tokens = Tokens(10, 30)
    assert flops.forward(SIZES, tokens).layers == 3560 + 480
    assert flops.forward(SIZES, tokens, adapter=False).layers == 2400 + 480
    assert flops.trained(SIZES, tokens).layers == 2 * 4040 + (2 * 120 + 4 * 58) * 10 + 8 * 4 * 30
    assert flops.head(SIZES, 3, 2).head == 2 * 4 * 10 * 3 * 2


def test_a_hosts_dpo_computes_all_logits_and_a_reference():
    tokens = Tokens(16, 72)
    expected = flops.trained(SIZES, tokens).layers + 2 * 120 * 16 + 4 * 4 * 72
    assert flops.work_of("all logits", SIZES, [PAIR], 1) == Work(expected, 3 * 80 * 16)


def test_our_bounds_are_those_of_trees_and_needed_positions():
    layers = flops.trained(SIZES, Tokens(6, 19)).layers
    reference = 2 * 120 * 6 + 4 * 4 * 19
    assert flops.work_of("tokens, cached", SIZES, [PAIR], 1) == Work(layers, 2 * 80 * 3)
    assert flops.work_of("tokens", SIZES, [PAIR], 1) == Work(layers + reference, 3 * 80 * 3)
    # the KL of the rejected response's three tokens has a gradient too
    assert flops.work_of("tokens and KL", SIZES, [PAIR], 1) == Work(layers + reference, 3 * 80 * 3 + 80 * 3)
    assert flops.work_of("30 % of the tokens", SIZES, [PAIR], 1).head == pytest.approx(0.3 * 2 * 80 * 3)


def test_the_mismatched_responses_of_kto_cost_a_forward_pass_on_the_same_prompt():
    record = Record(PAIR.trained, [([1, 2], [9, 8])])
    rows = flops.trained(SIZES, Tokens(6, 19)).layers
    others = flops.forward(SIZES, Tokens(2, 3 + 4)).layers
    expected = Work(rows + others, 80 * (2 * 3 + 1))
    assert flops.work_of("unpaired, cached", SIZES, [record], 1) == expected
    reference = flops.forward(SIZES, Tokens(8, 26), adapter=False).layers
    assert flops.work_of("unpaired", SIZES, [record], 1) == expected + Work(reference, 80 * 4)


def test_an_exponent_is_the_slope_of_the_logarithms():
    assert growth.exponent([1, 10, 100], [5, 50, 500]) == pytest.approx(1)
    assert growth.exponent([2, 4, 8], [3, 3, 3]) == pytest.approx(0)
    assert growth.exponent([1, 2, 4], [1, 4, 16]) == pytest.approx(2)


def test_every_claim_names_arms_and_settings_that_there_are():
    for claim in CLAIMS.values():
        assert {claim.ours, claim.peer} <= ARMS.keys()
        assert all(claim.setting in settings for settings in SETTINGS.values())
    assert {arm.cost for arm in ARMS.values()} == flops.COSTS.keys()


def part(ratio: float, goal: float | None) -> dict[str, float | None]:
    return {"ratio": ratio, "low": ratio - 0.01, "high": ratio + 0.01, "goal": goal}


CLAIM = {"name": "a", "setting": "tiny-128k", "ours": "sepo", "peer": "simpo"}
MEASURED = {
    "cpu": part(0.31, 0.32),
    "MiB": part(0.4, 0.3),
    "bound": 0.25,
    "over_limit_ours": 1.24,
    "over_limit_peer": 2,
}


def test_a_claim_shows_ratio_spread_goal_and_bound():
    assert page.claims_table([CLAIM | MEASURED])[2:] == [
        "| `a` | V 128k | sepo / simpo | 0.31 (0.30 to 0.32) | 0.32, met | 0.25 | 0.40 (0.39 to 0.41) | 0.3, missed | "
        "1.2, 2.0 |"
    ]


def test_a_claim_that_was_not_measured_says_why():
    (line,) = page.claims_table([{**CLAIM, "skipped": "no option x"}])[2:]
    assert line == "| `a` | V 128k | sepo / simpo | not measured: no option x | | | | | |"


def test_a_page_changes_between_its_marks_only():
    curve = {"curve": "tokens", "arm": "dpo", "sizes": [512, 8192], "MiB": [10.4, 160], "exponent": 0.987}
    old = f"hand\n{page.BEGIN}\nold\n{page.END}\nwritten\n"
    new = page.page(old, {"growth": {"curves": [curve]}})
    assert "| arm | 512 | 8,192 | exponent |\n|---|---|---|---|\n| dpo | 10 | 160 | 0.99 |" in new
    assert new.startswith(f"hand\n{page.BEGIN}\n")
    assert new.endswith(f"{page.END}\nwritten\n")
    assert "old" not in new
    assert page.page(new, {"growth": {"curves": [curve]}}) == new
    with pytest.raises(ValueError, match="the page needs the lines"):
        page.page("no marks", {})
