"""Where a reward is read, counted by hand. 9 is the end token; 7 is what a template writes after it."""

import pytest
from finepref.losses.pooling import tokens_read


@pytest.mark.parametrize(
    ("response", "how", "count"),
    [
        ([1, 2, 3, 9], "last", 3),
        ([1, 2, 3, 9], "eos", 4),
        ([1, 2, 3, 9, 7, 7], "last", 3),
        ([1, 2, 3, 9, 7, 7], "eos", 4),
        ([1, 9, 3, 9, 7], "last", 3),
        ([1, 9, 3, 9, 7], "eos", 4),
        ([1, 2, 3], "last", 3),
        ([1, 2, 3], "eos", None),
        ([9], "last", 0),
        ([9], "eos", 1),
        ([], "last", 0),
        ([], "eos", None),
        ([1, 2, 9], "mean", 2),
        ([1, 2, 9], "max", 2),
    ],
)
def test_the_reward_is_read_at_the_last_end_token_or_before_it(response, how, count):
    assert tokens_read(response, 9, how) == count
    assert tokens_read(tuple(response), 9, how) == count
