"""KTO's reference point, rewards and automatic weights, with numbers derived by hand."""

import pytest
import torch
from finepref.losses.kto import automatic_weights, kto_loss, kto_reference_point

SETTINGS = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}


def test_the_reference_point_is_the_mean_log_ratio_never_below_zero_and_detached():
    policy = torch.tensor([-1.0, -2.0], requires_grad=True)
    point = kto_reference_point(policy, torch.tensor([-4.0, -3.0]))
    assert point.item() == 2  # (3 + 1) / 2
    assert not point.requires_grad
    assert kto_reference_point(torch.tensor([-4.0]), torch.tensor([-1.0])).item() == 0


def test_rows_without_a_mismatched_pair_are_not_averaged():
    policy, reference = torch.tensor([-1.0, torch.nan]), torch.tensor([-4.0, 0.0])
    assert kto_reference_point(policy, reference, valid=torch.tensor([True, False])).item() == 3
    assert kto_reference_point(policy, reference, valid=torch.tensor([False, False])).item() == 0


def test_a_record_at_the_reference_point_has_half_its_weight_as_loss():
    """1 - sigmoid(0) = 1/2."""
    out = kto_loss(
        torch.tensor([3.0, 3.0]),
        torch.tensor([True, False]),
        torch.tensor(3.0),
        beta=0.1,
        desirable_weight=1.0,
        undesirable_weight=1.4,
    )
    assert out.loss.tolist() == pytest.approx([0.5, 0.7])


def test_rewards_are_detached_reported_on_the_side_of_the_record_and_zero_on_the_other():
    log_ratio = torch.tensor([2.0, -3.0], requires_grad=True)
    out = kto_loss(log_ratio, torch.tensor([True, False]), 0.0, **SETTINGS)
    assert out.chosen_reward.tolist() == pytest.approx([0.2, 0.0])
    assert out.rejected_reward.tolist() == pytest.approx([0.0, -0.3])
    assert out.loss.requires_grad
    assert not out.chosen_reward.requires_grad
    assert not out.rejected_reward.requires_grad


def test_a_record_without_response_tokens_has_zero_loss_and_exactly_zero_gradient_even_if_it_is_nan():
    log_ratio = torch.tensor([1.0, torch.nan], requires_grad=True)
    out = kto_loss(log_ratio, torch.tensor([True, True]), 0.0, valid=torch.tensor([True, False]), **SETTINGS)
    out.loss.sum().backward()
    assert out.loss[1].item() == 0
    assert log_ratio.grad[1].item() == 0
    assert log_ratio.grad[0].item() < 0


def test_raising_a_desirable_record_lowers_its_loss_and_raising_an_undesirable_one_raises_it():
    log_ratio = torch.zeros(2, requires_grad=True)
    kto_loss(log_ratio, torch.tensor([True, False]), 0.0, **SETTINGS).loss.sum().backward()
    assert log_ratio.grad.tolist() == pytest.approx([-0.025, 0.025])  # beta * 1/4


@pytest.mark.parametrize(
    ("desirable", "undesirable", "expected"),
    [
        (100, 100, (1.0, 1.0)),  # 1
        (120, 100, (1.0, 1.0)),  # 1.2, inside
        (100, 300, (3.0, 1.0)),  # 1/3: up to 1, w_D = 300 / 100
        (300, 100, (4 / 9, 1.0)),  # 3: down to 4/3, w_D = 4/3 * 100 / 300
    ],
)
def test_automatic_weights_move_the_desirable_weight_to_the_nearer_end_of_the_range(desirable, undesirable, expected):
    found = automatic_weights(desirable, undesirable, desirable_weight=1.0, undesirable_weight=1.0)
    assert found == pytest.approx(expected)


def test_automatic_weights_refuse_a_data_set_with_one_kind_of_record():
    with pytest.raises(ValueError, match="both kinds"):
        automatic_weights(10, 0, desirable_weight=1.0, undesirable_weight=1.0)
