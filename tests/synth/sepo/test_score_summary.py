"""The summary of token scores: numbers by hand, and the same quantiles from a part of the scores as from all."""

from __future__ import annotations

import random

import pytest
from finepref.synth.sepo.summary import Summary, described


def test_counts_quantiles_and_top_tokens_by_hand():
    summary = Summary()
    summary.add("chosen", [7, 8, 7, 9], [1.0, -0.5, 3.0, 0.009])
    summary.add("rejected", [7, 8], [0.0, -2.0])
    content = summary.content(lambda token: f"<{token}>")
    assert (content["tokens"], content["near_0"]) == (6, 2)
    # in order -2, -0.5, 0, 0.009, 1, 3; the ranks are round(q * 5) = 0, 1, 2, 4, 5
    assert list(content["quantiles"].values()) == [-2.0, -0.5, 0.0, 1.0, 3.0]
    assert content["top_tokens"]["chosen"] == [
        {"token": "<7>", "mean": 2.0, "count": 2},
        {"token": "<9>", "mean": 0.009, "count": 1},
        {"token": "<8>", "mean": -0.5, "count": 1},
    ]
    assert content["top_tokens"]["rejected"][0] == {"token": "<8>", "mean": -2.0, "count": 1}
    # from -2, rank round(0.05), to 3 in 24 bars of 5/24: -2 is in bar 0, -0.5 in 7, 0 and 0.009 in 9, 1 in 14, 3 in 23
    histogram = content["histogram"]
    assert (histogram["edges"][0], histogram["edges"][1], histogram["edges"][-1]) == (-2.0, -1.791667, 3.0)
    assert {i: share for i, share in enumerate(histogram["shares"]) if share} == {
        **dict.fromkeys((0, 7, 14, 23), 0.166667),
        9: 0.333333,
    }
    lines = described(content)
    assert lines[0].endswith("33.3% within 0.01 of 0")
    assert lines[1] == "histogram from -2 to 3: |▄      ▄ █    ▄        ▄|"
    assert lines[2] == "highest means in chosen: '<7>' 2 (2 times), '<9>' 0.009 (1 times), '<8>' -0.5 (1 times)"


def test_a_token_that_is_rare_in_a_large_vocabulary_is_no_top_token():
    summary = Summary()
    summary.add("chosen", [*range(200)], [9.0] * 200)
    summary.add("chosen", [7] * 4, [9.0] * 4)
    assert summary.top("chosen") == [(7, 9.0, 5)]


def test_quantiles_of_a_part_are_near_those_of_all():
    draw = random.Random(0)
    scores = [draw.gauss(0, 1) for _ in range(20_000)]
    whole, part = Summary(), Summary(room=1000)
    for each in (whole, part):
        each.add("chosen", [0] * len(scores), scores)
    assert len(part.kept) <= 1000 < len(whole.kept)
    assert part.count == whole.count == 20_000
    assert part.quantiles() == pytest.approx(whole.quantiles(), abs=0.2)


def test_no_score_has_no_quantile_and_no_bar():
    assert Summary().quantiles() == []
    assert Summary().histogram() == {}


def test_equal_scores_are_one_bar():
    summary = Summary()
    summary.add("chosen", [1, 2, 3], [0.5, 0.5, 0.5])
    assert summary.histogram() == {"edges": [0.5, 0.5], "shares": [1.0]}


def test_scores_beyond_the_quantiles_are_in_the_outer_bars_and_the_shares_add_up():
    draw = random.Random(1)
    summary = Summary()
    scores = [*(draw.gauss(0, 1) for _ in range(1000)), 1e6, -1e6]
    summary.add("chosen", [0] * len(scores), scores)
    found = summary.histogram()
    assert len(found["edges"]) == len(found["shares"]) + 1 == 25
    assert -4 < found["edges"][0] < found["edges"][-1] < 4
    assert sum(found["shares"]) == pytest.approx(1)
    below = sum(score < found["edges"][1] for score in summary.kept)
    above = sum(score >= found["edges"][-2] for score in summary.kept)
    assert [found["shares"][0], found["shares"][-1]] == pytest.approx([below / len(scores), above / len(scores)])
