"""Which tokens SePO selects."""

import pytest
import torch
from finepref.losses.sepo import select_tokens, token_reward


def selected(reward, ratio, **kwargs):
    return select_tokens(torch.tensor(reward), ratio, **kwargs).nonzero().flatten().tolist()


def test_the_reward_of_a_token_is_oracle_minus_reference():
    reward = token_reward(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-3.0, -0.5]]))
    assert reward.tolist() == [[2.0, -1.5]]


def test_the_share_is_rounded_down_and_taken_from_the_asked_end():
    """7 tokens: int(0.3 * 7) = 2."""
    reward = [0.1, 0.9, -0.4, 0.3, 0.8, -0.7, 0.0]
    assert selected(reward, 0.3, highest=True) == [1, 4]
    assert selected(reward, 0.3, highest=False) == [2, 5]


def test_a_short_response_still_gives_one_token():
    """int(0.3 * 3) = 0, where the released code crashes."""
    assert selected([0.1, 0.5, 0.2], 0.3, highest=True) == [1]


def test_ties_go_to_the_earliest_token_at_both_ends():
    assert selected([1.0] * 40, 0.1, highest=True) == [0, 1, 2, 3]
    assert selected([1.0] * 40, 0.1, highest=False) == [0, 1, 2, 3]


def test_padding_is_neither_counted_nor_selected_on_either_side():
    """3 counted tokens per row, int(0.7 * 3) = 2; the padding holds the most extreme rewards, and a NaN."""
    reward = torch.tensor([[9.0, -9.0, 0.3, 0.1, 0.2], [0.3, 0.1, 0.2, 9.0, torch.nan]])
    mask = torch.tensor([[False, False, True, True, True], [True, True, True, False, False]])
    assert select_tokens(reward, 0.7, highest=True, mask=mask).nonzero().tolist() == [[0, 2], [0, 4], [1, 0], [1, 2]]
    assert select_tokens(reward, 0.7, highest=False, mask=mask).nonzero().tolist() == [[0, 3], [0, 4], [1, 1], [1, 2]]


def test_a_row_without_tokens_gives_none():
    assert not select_tokens(torch.zeros(1, 4), 0.5, highest=True, mask=torch.zeros(1, 4, dtype=torch.bool)).any()


def test_ratio_one_selects_every_token():
    assert selected([0.2, 0.1, 0.3], 1.0, highest=False) == [0, 1, 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_broken_scores_are_refused(value):
    with pytest.raises(ValueError, match="NaN or infinite"):
        selected([0.1, value], 0.5, highest=True)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, 30])
def test_a_ratio_outside_0_to_1_is_refused(ratio):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        selected([0.1, 0.2], ratio, highest=True)


def test_scores_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        token_reward(torch.zeros(1, 3), torch.zeros(1, 4))
