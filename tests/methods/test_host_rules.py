"""The hosts' ways to cut, without a host: cases by hand. tests/hosts compare LLaMA-Factory's with its own function."""

from __future__ import annotations

import pytest
from finepref.methods import host_rules


@pytest.mark.parametrize(
    ("prompt", "response", "longest", "kept"),
    [
        (30, 20, 60, (30, 20)),  # both fit
        (90, 20, 60, (40, 20)),  # a short response stays, the prompt is cut
        (20, 90, 60, (20, 40)),  # a short prompt stays, the response is cut
        (60, 60, 60, (30, 30)),  # both are cut, in proportion
        (90, 30, 60, (45, 15)),
        (1, 1, 2, (1, 1)),
    ],
)
def test_llamafactory_cuts_what_is_longer_than_half_of_the_sequence(prompt, response, longest, kept):
    assert host_rules.llamafactory(prompt, response, longest) == kept


@pytest.mark.parametrize(
    ("response", "most", "kept"),
    [
        ([5, 6, 7, 0], 4, [5, 6, 7, 0]),
        ([5, 6, 7, 0], 3, [5, 6, 0]),
        ([5, 6, 7, 0, 9], 3, [5, 6, 0]),  # what the template writes after the end token goes first
        ([5, 6, 7, 0, 9], 4, [5, 6, 7, 0]),
        ([5, 6, 7], 2, [5, 6]),  # there is no end token
        ([5, 0, 6, 0], 1, [0]),
    ],
)
def test_openrlhf_keeps_the_end_token_of_a_response_that_is_cut(response, most, kept):
    assert [response[i] for i in host_rules.kept_with_end(response, most, 0)] == kept
