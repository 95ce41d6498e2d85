"""What is kept of a record that is too long, and which records have nothing left to compare."""

from __future__ import annotations

import random

import pytest
from finepref.methods import overlong


def openrlhf_rule(prompt: int, response: int, longest: int) -> tuple[int, int] | None:
    return None if prompt >= longest - 2 else (prompt, min(response, longest - prompt))


def proportional_rule(prompt: int, response: int, longest: int) -> tuple[int, int]:
    """Cuts both in proportion to their length, as LLaMA-Factory does."""
    if response * 2 < longest:
        room = longest
    elif prompt * 2 < longest:
        room = longest - prompt
    else:
        room = int(longest * response / (prompt + response))
    kept = min(room, response)
    return min(max(longest - kept, 0), prompt), kept


@pytest.mark.parametrize("policy", ["host", "keep_prompt", "truncate_left", "skip", "error"])
@pytest.mark.parametrize("rule", [openrlhf_rule, proportional_rule])
def test_whatever_the_lengths_a_kept_record_fits_has_a_response_and_is_not_cut_without_need(policy, rule):
    chance = random.Random(7)
    seen = set()
    for _ in range(20_000):
        longest = chance.randint(1, 40)
        prompt = chance.randint(1, 50)
        responses = [chance.randint(1, 50) for _ in range(chance.randint(1, 5))]
        case = prompt, responses, longest
        fit = overlong.fit(*case, policy=policy, host_rule=rule)
        fits = prompt + max(responses) <= longest
        seen.add((fits, fit.cut, fit.skipped, fit.refused))
        if fit.skipped:
            assert not fit.refused, case
            assert not fits or policy == "host", case
            continue
        if fits:
            assert fit == (0, prompt, max(responses), "", "", False), case
            continue
        if fit.refused:
            assert policy == "error", case
            continue
        assert 0 <= fit.start <= fit.stop <= prompt, case
        assert fit.start < fit.stop or policy == "host", case
        assert fit.response >= 1, case
        assert fit.stop - fit.start + min(max(responses), fit.response) <= longest, case
        assert ("prompt" in fit.cut) == (fit.stop - fit.start < prompt), case
        assert ("response" in fit.cut) == (fit.response < max(responses)), case
        assert fit.cut, case
        if policy == "keep_prompt":
            assert (fit.start, fit.stop) == (0, prompt), case
            assert prompt + fit.response == longest, case
        if policy == "truncate_left":
            assert fit.stop == prompt, case
            assert fit.stop - fit.start + fit.response == longest, case
    expected = {
        "keep_prompt": {(False, "response", "", False), (False, "", overlong.NO_ROOM, False)},
        "truncate_left": {(False, "prompt", "", False), (False, "prompt,response", "", False)},
        "skip": {(False, "", overlong.OVERLONG, False)},
        "error": {(False, "", "", True)},
    }
    assert seen >= {(True, "", "", False)} | expected.get(policy, set())


def test_keep_prompt_leaves_a_record_out_only_if_its_prompt_leaves_no_room():
    for prompt in range(1, 30):
        fit = overlong.fit(prompt, [20], 16, policy="keep_prompt", host_rule=openrlhf_rule)
        assert fit.skipped == ("" if prompt < 16 else overlong.NO_ROOM)


@pytest.mark.parametrize(
    ("scores", "whole", "kept", "reason"),
    [
        ((1, 0), [[1, 2], [1, 3]], [[1, 2], [1, 3]], ""),
        ((1, 0), [[1, 2], [1, 3]], [[1], [1]], overlong.EQUAL_AFTER_CUT),
        ((1, 0), [[1, 2], [1, 2]], [[1, 2], [1, 2]], overlong.EQUAL_AFTER_TEMPLATE),
        ((1, 0), [[1, 2], [1, 2]], [[1], [1]], overlong.EQUAL_AFTER_TEMPLATE),
        ((2, 1, 1), [[1], [2, 3], [2, 4]], [[1], [2], [2]], ""),
        ((2, 1, 0), [[1], [2, 3], [2, 4]], [[1], [2], [2]], overlong.EQUAL_AFTER_CUT),
    ],
)
def test_responses_of_different_scores_must_differ_in_what_is_kept(scores, whole, kept, reason):
    assert overlong.same(scores, whole, kept) == reason
