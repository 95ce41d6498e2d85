"""The shared operations, with numbers derived by hand."""

import math

import pytest
import torch
from finepref.losses.ops import LossOut, reduce, token_logps, weighted_mean, weighted_sum
from finepref.losses.ranks import alone, sum_over_ranks


def out(loss, valid):
    zeros = torch.zeros(len(loss))
    return LossOut(torch.tensor(loss, requires_grad=True), torch.tensor(valid), zeros, zeros)


def test_the_label_of_position_t_plus_1_is_read_from_the_logits_of_position_t():
    """Logits of position 0 are (0, ln 3), so pi = (1/4, 3/4), and the label of position 1 is token 1: ln 3/4."""
    logits = torch.tensor([[[0.0, math.log(3)], [7.0, -7.0]]])
    assert token_logps(logits, torch.tensor([[0, 1]])).item() == pytest.approx(math.log(3 / 4), abs=1e-7)


def test_half_precision_is_added_up_in_float32_and_float64_stays_float64():
    """300 terms of 1/16 + 1/2048 are 18.896 in float32; bfloat16 keeps 8 bits and would stop growing near 16."""
    value = torch.full((1, 300), 1 / 16 + 1 / 2048, dtype=torch.bfloat16)
    total = weighted_sum(value, torch.ones(1, 300, dtype=torch.bfloat16))
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(300 * value[0, 0].item(), rel=1e-6)
    assert weighted_sum(value.double(), torch.ones(1, 300)).dtype == torch.float64


def test_what_has_no_weight_may_be_infinite_or_nan():
    values = torch.tensor([[2.0, -torch.inf, torch.nan, 4.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0, 0.0, 3.0]])
    assert weighted_sum(values, weight).item() == 14  # 2 * 1 + 4 * 3
    mean = weighted_mean(values, weight)
    assert mean.item() == 3.5  # 14 / (1 + 3)
    mean.backward()
    assert values.grad.tolist() == [[0.25, 0.0, 0.0, 0.75]]


def test_the_mean_of_a_row_without_weight_is_zero():
    assert weighted_mean(torch.ones(1, 3), torch.zeros(1, 3)).item() == 0


def test_reduce_averages_the_valid_records_only():
    """(2 + 4) / 2 valid records; each valid record's gradient is 1/2, the others' exactly 0."""
    result = out([2.0, 9.0, 4.0], [True, False, True])
    mean = reduce(result)
    mean.backward()
    assert mean.item() == 3
    assert result.loss.grad.tolist() == [0.5, 0.0, 0.5]


def test_a_batch_without_a_valid_record_reduces_to_zero_with_a_zero_gradient():
    result = out([2.0, 9.0], [False, False])
    mean = reduce(result)
    mean.backward()
    assert mean.item() == 0
    assert result.loss.grad.tolist() == [0.0, 0.0]


def test_reduce_divides_by_the_records_of_the_whole_step_where_they_are_given():
    assert reduce(out([2.0, 4.0], [True, True]), count=8).item() == 0.75  # (2 + 4) / 8


@pytest.mark.parametrize(("logits", "labels"), [((2, 3, 5), (2, 4)), ((3, 5), (3,)), ((1, 3, 5), (2, 3))])
def test_log_probabilities_refuse_shapes_that_do_not_fit(logits, labels):
    with pytest.raises(ValueError, match=r"\[B, T\+1, V\]"):
        token_logps(torch.zeros(logits), torch.zeros(labels, dtype=torch.long))


def test_weighted_sums_refuse_to_broadcast():
    with pytest.raises(ValueError, match="differ in shape"):
        weighted_sum(torch.zeros(2, 3), torch.zeros(2, 1))


def test_a_negative_weight_counts_and_a_mean_is_over_the_sizes_of_the_weights():
    """2 * 1 - 4 * 3 = -10, over |1| + |-3| = 4; the value of weight 0 does not count."""
    values = torch.tensor([[2.0, torch.nan, 4.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0, -3.0]])
    assert weighted_sum(values, weight).item() == -10
    assert weighted_mean(values, weight).item() == -2.5
    weighted_sum(values, weight).backward()
    assert values.grad.tolist() == [[1.0, 0.0, -3.0]]


def test_a_pair_is_valid_if_both_responses_have_a_token_of_any_weight():
    from finepref.losses.ops import TokenLogps
    from finepref.losses.sepo import sepo_loss
    from finepref.losses.tdpo import TokenLogRatio, masked_dpo_loss

    weights = torch.tensor([[0.0, -1.0], [0.0, 0.0], [2.0, 0.0]])
    one = torch.ones(3, 2)
    valid = [True, False, True]
    assert sepo_loss(TokenLogps(one, weights), TokenLogps(one, one), gamma=1.0, margin=0.0).valid.tolist() == valid
    response = TokenLogRatio(one, one, None, weights)
    assert masked_dpo_loss(response, response._replace(weight=one), beta=0.1).valid.tolist() == valid


def test_alone_nothing_is_summed_over_the_ranks_of_a_backend_that_cannot_send_these_tensors(tmp_path):
    """A group for CUDA refuses a tensor on the CPU, as NCCL does."""
    torch.distributed.init_process_group("cuda:gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(RuntimeError, match="device type cpu"):
            sum_over_ranks(torch.ones(2))
        with alone():
            assert sum_over_ranks(torch.ones(2)).tolist() == [1.0, 1.0]
    finally:
        torch.distributed.destroy_process_group()
