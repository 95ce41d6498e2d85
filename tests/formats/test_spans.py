"""Spans by comparing texts, spans from scores, and weights of tokens."""

from __future__ import annotations

from itertools import pairwise

import pytest
from finepref.formats.records import Span, parse
from finepref.formats.spans import diff_spans, merge_spans, spans_from_scores, token_weights
from hypothesis import example, given, settings
from hypothesis import strategies as st

settings.register_profile("formats", derandomize=True, deadline=None)
SETTINGS = settings.get_profile("formats")

WORDS = st.sampled_from(
    ["the", "cat", "cats", "12", "15", "=", " ", "  ", "\n", "é", "e\u0301", "数", "\N{GRINNING FACE}", "."]
)
TEXTS = st.lists(WORDS, max_size=14).map("".join)


def marked(original, changed):
    """The marked pieces of `changed`."""
    return [changed[start:end] for start, end, _ in diff_spans(original, changed)]


@pytest.mark.parametrize(
    ("original", "changed", "pieces"),
    [
        ("The sum is 12 apples.", "The sum is 15 apples.", ["5"]),
        ("The sum is 12 apples.", "The sum is 12 pears.", ["pear"]),
        ("3 * 4 = 12, so 12", "3 * 4 = 14, so 14", ["4", "4"]),
        ("a cat", "a black cat", ["black "]),
        ("a very big cat", "a big cat", ["big"]),
        ("cats here", "cat here", ["cat"]),
        ("he ran away.", "he ran.", ["."]),
        ("all of it goes", "all of it", ["it"]),
        ("x", "x y", [" y"]),
        ("", "new", ["new"]),
        ("old", "", []),
        ("same", "same", []),
        ("a  b", "a b", ["b"]),
        ("  ", " ", [" "]),
        ("caf\u00e9", "cafe\u0301", ["e\u0301"]),
        ("ok \N{GRINNING FACE}", "ok \N{CRYING FACE}", ["\N{CRYING FACE}"]),
        ("line\r\nnext", "line\nnext", ["line"]),
    ],
)
def test_the_difference_is_marked_in_the_changed_text(original, changed, pieces):
    assert marked(original, changed) == pieces


@settings(SETTINGS, max_examples=600)
@given(original=TEXTS, changed=TEXTS)
@example("a b a b a b", "b a b a b a")
def test_spans_of_a_difference_are_valid_spans_and_there_are_some_unless_nothing_changed(original, changed):
    spans = diff_spans(original, changed)
    assert bool(spans) == (original != changed and changed != "")
    for span in spans:
        assert 0 <= span.start < span.end <= len(changed)
    for left, right in pairwise(spans):
        assert left.end < right.start


@settings(SETTINGS, max_examples=600)
@given(original=TEXTS, changed=TEXTS)
def test_what_is_not_marked_was_in_the_original_in_that_order(original, changed):
    """Independent of how the difference is found: the unmarked characters are a subsequence of the original."""
    spans = diff_spans(original, changed)
    kept = [char for i, char in enumerate(changed) if not any(start <= i < end for start, end, _ in spans)]
    rest = iter(original)
    assert all(char in rest for char in kept)


def test_a_difference_of_spans_is_accepted_as_spans_of_a_record():
    chosen, rejected = "It takes 48 / 16 = 3 pans.", "It takes 48 / 16 = 4 pots."
    row = {"prompt": "q", "chosen": chosen, "rejected": rejected, "rejected_spans": diff_spans(chosen, rejected)}
    assert not isinstance(parse(row, "span_pair"), list)


def test_a_long_answer_with_a_small_change_is_marked_at_once():
    """20,000 equal words around the change are cut off before anything quadratic; without that this takes minutes."""
    around = "the same word again and " * 4000
    assert marked(around + "12" + around, around + "13" + around) == ["3"]


def test_a_token_has_the_weight_of_the_span_it_overlaps():
    """Tokens over "ab cd ef": [0,2) [2,5) [5,6) [6,8); spans [1,2) of weight 0.5 and [4,6) of weight 2."""
    offsets = [(0, 0), (0, 2), (2, 5), (5, 6), (6, 8), (8, 8)]
    assert token_weights([Span(4, 6, 2.0), Span(1, 2, 0.5)], offsets) == [0, 0.5, 2, 2, 0, 0]


def test_a_token_over_several_spans_has_the_largest_of_their_weights():
    assert token_weights([Span(0, 1, 0.5), Span(2, 3, 0.25)], [(0, 4), (1, 2)]) == [0.5, 0]


def test_touching_is_not_overlapping():
    assert token_weights([Span(2, 4)], [(0, 2), (2, 4), (4, 6)]) == [0, 1, 0]


def test_a_span_shifts_with_its_text():
    assert token_weights([Span(0, 2)], [(0, 10), (10, 12), (12, 14)], start=10) == [0, 1, 0]


def test_all_tokens_of_a_split_character_are_selected():
    assert token_weights([Span(1, 2)], [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]) == [0, 1, 1, 1, 0]


def test_no_spans_select_nothing():
    assert token_weights([], [(0, 2), (2, 3)]) == [0, 0]


def test_overlapping_spans_are_refused():
    with pytest.raises(ValueError, match=r"\[0, 3\) and \[2, 4\)"):
        token_weights([Span(2, 4), Span(0, 3)], [])


def test_the_share_with_the_highest_scores_becomes_spans():
    """Of 5 tokens with characters, int(0.4 * 5) = 2: the scores 9 and 7, which are neighbours; EOS (99) has none."""
    offsets = [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 10)]
    assert spans_from_scores([1, 9, 7, 3, 5, 99], offsets, ratio=0.4) == (Span(2, 6),)
    assert spans_from_scores([1, 9, 7, 3, 5, 99], offsets, ratio=0.4, highest=False) == (Span(0, 2), Span(6, 8))


def test_at_least_one_token_is_picked_and_ties_go_to_the_earliest():
    offsets = [(0, 1), (1, 2), (2, 3)]
    assert spans_from_scores([5, 5, 5], offsets, ratio=0.01) == (Span(0, 1),)
    assert spans_from_scores([5, 5, 5], offsets, ratio=0.01, highest=False) == (Span(0, 1),)
    assert spans_from_scores([5, 5, 5], offsets, ratio=1) == (Span(0, 3),)


def test_a_threshold_takes_every_score_that_reaches_it():
    offsets = [(0, 1), (2, 3), (4, 5)]
    assert spans_from_scores([0.5, -1, 2], offsets, threshold=0.5) == (Span(0, 1), Span(4, 5))
    assert spans_from_scores([0.5, -1, 2], offsets, threshold=0.5, highest=False) == (Span(0, 1), Span(2, 3))
    assert spans_from_scores([0.5, -1, 2], offsets, threshold=3) == ()


@pytest.mark.parametrize(
    ("scores", "choice", "message"),
    [
        ([float("nan"), 1], {"ratio": 0.5}, "token 0 is NaN"),
        ([1, 2], {}, "threshold or ratio"),
        ([1, 2], {"ratio": 0.5, "threshold": 1.0}, "threshold or ratio"),
        ([1, 2], {"ratio": 0.0}, "not in"),
        ([1, 2], {"ratio": 1.5}, "not in"),
        ([1], {"ratio": 0.5}, "1 scores for 2 tokens"),
    ],
)
def test_scores_that_select_nothing_sensible_are_refused(scores, choice, message):
    with pytest.raises(ValueError, match=message):
        spans_from_scores(scores, [(0, 1), (1, 2)], **choice)


def test_ranges_that_touch_or_overlap_become_one_span():
    assert merge_spans([(5, 7), (0, 2), (2, 3), (6, 9)]) == (Span(0, 3), Span(5, 9))
