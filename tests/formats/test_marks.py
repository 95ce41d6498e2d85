"""Marks of annotators: how they replace each other, become spans, are read back, agree and are merged."""

from __future__ import annotations

import math
import random

import pytest
from finepref.formats.marks import (
    Agreement,
    Mark,
    agreement,
    cleared,
    mark_of,
    marked,
    merged,
    of_lists,
    of_spans,
    runs,
    to_lists,
    to_spans,
)
from finepref.formats.problems import BadData
from finepref.formats.row import Span

LENGTH = 12


def letters(marks):
    """One value per character of a text of `LENGTH`: (kind, weight), or None."""
    found = [None] * LENGTH
    for mark in marks:
        for place in range(mark.start, mark.end):
            assert found[place] is None, "two marks overlap"
            found[place] = mark[2:]
    return found


def drawn(draw):
    start = draw.randrange(LENGTH)
    return Mark(start, draw.randint(start + 1, LENGTH), draw.choice(("good", "bad")), draw.choice((0.5, 1.0)))


def test_marks_are_the_last_word_on_each_character_and_as_few_as_can_be():
    """Random steps beside a list with one value per character."""
    draw = random.Random(0)
    for _ in range(300):
        marks, expected = (), [None] * LENGTH
        for _ in range(draw.randint(1, 8)):
            new = drawn(draw)
            if draw.random() < 0.3:
                marks, value = cleared(marks, new.start, new.end), None
            else:
                marks, value = marked(marks, new), new[2:]
            expected[new.start : new.end] = [value] * (new.end - new.start)
        assert letters(marks) == expected
        changes = sum(a != b and b is not None for a, b in zip([None, *expected], expected, strict=False))
        assert len(marks) == changes


@pytest.mark.parametrize(
    ("side", "marks", "spans"),
    [
        ("chosen", [], ()),
        ("chosen", [(2, 4, "good", 0.5)], (Span(2, 4, 0.5),)),
        ("rejected", [(2, 4, "bad", 1)], (Span(2, 4),)),
        # beside spans, what goes against the response needs nothing
        ("chosen", [(2, 4, "good", 1), (6, 8, "bad", 1)], (Span(2, 4),)),
        # alone, it is left out of all the rest
        ("chosen", [(2, 4, "bad", 1), (4, 6, "bad", 0.5)], (Span(0, 2), Span(6, 12))),
        ("rejected", [(0, 4, "good", 1)], (Span(4, 12),)),
        ("rejected", [(8, 12, "good", 1)], (Span(0, 8),)),
        ("chosen", [(0, 12, "bad", 1)], None),
        ("chosen", [(2, 4, "good", 0)], None),
        ("chosen", [(2, 4, "good", 0), (5, 6, "good", 1)], (Span(2, 4, 0.0), Span(5, 6))),
    ],
)
def test_marks_become_the_characters_that_a_stage_trains_on(side, marks, spans):
    assert to_spans(tuple(Mark(*mark) for mark in marks), side, LENGTH) == spans


@pytest.mark.parametrize(("side", "own", "other"), [("chosen", "good", "bad"), ("rejected", "bad", "good")])
def test_spans_of_the_data_are_marks_of_the_kind_that_means_the_same(side, own, other):
    assert of_spans([Span(0, 2, 0.5), Span(3, 4, -2.0)], side) == (Mark(0, 2, own, 0.5), Mark(3, 4, other, 2.0))


def test_marks_are_read_as_they_were_written():
    marks = {"chosen": (Mark(0, 2, "good", 0.5),), "rejected": ()}
    assert of_lists(to_lists(marks), {"chosen": 2, "rejected": 1}) == marks


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "FP326"),
        ({"chosen": []}, "FP326"),
        ({"chosen": [], "rejected": [], "more": []}, "FP326"),
        ({"chosen": [[0, 1]], "rejected": []}, "FP326"),
        ({"chosen": [[0, 1, "fine", 1]], "rejected": []}, "FP326"),
        ({"chosen": [[0, 4, "good", 1]], "rejected": []}, "FP322"),
        ({"chosen": [[1, 1, "good", 1]], "rejected": []}, "FP322"),
        ({"chosen": [[-1, 1, "good", 1]], "rejected": []}, "FP322"),
        ({"chosen": [[True, 2, "good", 1]], "rejected": []}, "FP322"),
        ({"chosen": [[0, 2, "good", 1], [1, 3, "bad", 1]], "rejected": []}, "FP322"),
        ({"chosen": [[0, 2, "good", -1]], "rejected": []}, "FP323"),
        ({"chosen": [[0, 2, "good", "1"]], "rejected": []}, "FP323"),
    ],
)
def test_marks_that_cannot_be_are_refused_with_place_and_code(value, code):
    with pytest.raises(BadData) as raised:
        of_lists(value, {"chosen": 3, "rejected": 3}, file="a.jsonl", line=7)
    (problem,) = raised.value.problems
    assert (problem.code, problem.file, problem.line) == (code, "a.jsonl", 7)


@pytest.mark.parametrize("weight", [math.nan, math.inf, pytest.param(10**400, id="huge"), True, None])
def test_a_weight_is_a_number(weight):
    with pytest.raises(BadData, match="FP323"):
        mark_of(0, 1, "good", weight, length=3)


def test_agreement_is_counted_by_hand():
    """12 characters. Both good: [0, 2). First good, second none: [2, 4). First bad, second good: [6, 7)."""
    first = (Mark(0, 4, "good"), Mark(6, 7, "bad"))
    second = (Mark(0, 2, "good"), Mark(6, 7, "good"))
    found = agreement(runs(first, second, LENGTH))
    assert found.table == {("good", "good"): 2, ("good", "none"): 2, ("bad", "good"): 1, ("none", "none"): 7}
    assert found.same == 9 / 12
    # p_e = (good 4 * 3 + bad 1 * 0 + none 7 * 9) / 144 = 75 / 144; (108 - 75) / (144 - 75)
    assert found.kappa == pytest.approx(33 / 69)
    assert found.overlap == 2 / 5


def test_kappa_is_that_of_scikit_learn_for_random_marks():
    from sklearn.metrics import cohen_kappa_score

    draw = random.Random(1)
    for _ in range(40):
        sides = []
        for _ in range(2):
            marks = ()
            for _ in range(draw.randint(1, 5)):
                marks = marked(marks, drawn(draw))
            sides.append(marks)
        kinds = [[value[0] if value else "none" for value in letters(marks)] for marks in sides]
        found = agreement(runs(*sides, LENGTH))
        assert found.same == sum(a == b for a, b in zip(*kinds, strict=True)) / LENGTH
        if len({*kinds[0], *kinds[1]}) > 1:
            assert found.kappa == pytest.approx(cohen_kappa_score(*kinds), abs=1e-12)


def test_kappa_is_not_defined_where_nothing_is_left_to_chance():
    assert math.isnan(agreement(runs((), (), LENGTH)).kappa)
    whole = (Mark(0, LENGTH, "bad"),)
    assert math.isnan(agreement(runs(whole, whole, LENGTH)).kappa)
    assert agreement(runs(whole, (), LENGTH)).kappa == 0
    assert math.isnan(Agreement({}).same)


def test_a_merge_keeps_what_both_or_either_marked_and_never_a_contradiction():
    first = (Mark(0, 4, "good"), Mark(6, 8, "bad"), Mark(10, 12, "bad", 0.5))
    second = (Mark(2, 6, "good", 2.0), Mark(7, 9, "good"), Mark(10, 11, "bad", 1.5))
    found = [*runs(first, second, LENGTH)]
    assert merged(found, "both") == (Mark(2, 4, "good", 1.5), Mark(10, 11, "bad", 1.0))
    assert merged(found, "either") == (
        Mark(0, 2, "good"),
        Mark(2, 4, "good", 1.5),
        Mark(4, 6, "good", 2.0),
        Mark(6, 7, "bad"),
        Mark(8, 9, "good"),
        Mark(10, 11, "bad", 1.0),
        Mark(11, 12, "bad", 0.5),
    )
