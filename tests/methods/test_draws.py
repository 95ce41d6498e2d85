"""Draws of an epoch: one of a record's negatives, and a record of another prompt for the mismatched responses."""

from __future__ import annotations

from itertools import permutations

import pytest
from finepref.formats.negatives import pick
from finepref.formats.problems import BadData
from finepref.methods.draws import draw_digest, draw_index, partners

THREE = ("correctness", "hallucination", "logic")


def test_a_draw_is_the_pick_among_the_sorted_types():
    for epoch in range(20):
        picked = pick(3, seed=5, epoch=epoch, record_id="a")
        assert draw_index(THREE, "a", seed=5, epoch=epoch) == picked


def test_a_draw_does_not_depend_on_the_order_of_the_types():
    drawn = set()
    for names in permutations(THREE):
        drawn.add(tuple(names[draw_index(names, "a", seed=0, epoch=epoch)] for epoch in range(20)))
    assert len(drawn) == 1


def test_a_draw_over_some_types_never_leaves_them():
    asked = ["logic", "correctness", "unused"]
    drawn = {THREE[draw_index(THREE, "a", seed=0, epoch=epoch, types=asked)] for epoch in range(50)}
    assert drawn == {"correctness", "logic"}


def test_a_desirable_row_is_drawn_whatever_types_are_asked_for():
    assert draw_index(["chosen"], "a", seed=0, epoch=3, types=["logic"]) == 0


def test_a_draw_over_types_that_a_record_lacks_is_an_error():
    with pytest.raises(ValueError, match="record a has no negative of type logic"):
        draw_index(["hallucination"], "a", seed=0, epoch=0, types=["logic"])


def test_partners_are_the_first_records_of_the_next_prompt_in_the_order_of_their_keys():
    keyed = [("q", "2"), ("p", "9"), ("q", "1"), ("r", "5"), ("p", "3")]
    assert partners(keyed) == [3, 2, 3, 4, 2]
    again = partners(keyed[::-1])
    assert [keyed[::-1][i] for i in again] == [keyed[i] for i in (3, 2, 3, 4, 2)][::-1]


def test_one_prompt_alone_has_no_partner():
    with pytest.raises(BadData, match="FP205"):
        partners([("p", "1"), ("p", "2")])


def test_the_digest_of_a_draw_depends_on_epoch_record_and_type():
    digests = {draw_digest(e, r, t) for e in (0, 1) for r in ("a", "b") for t in ("logic", "correctness")}
    assert len(digests) == 8
    assert all(0 <= digest < 2**62 for digest in digests)
