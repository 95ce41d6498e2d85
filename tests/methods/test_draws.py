"""Draws of an epoch: one of a record's negatives, and a record of another prompt for the mismatched responses."""

from __future__ import annotations

from itertools import permutations
from random import Random

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
    with pytest.raises(BadData, match="FP205 my_set prompt: "):
        partners([("p", "1"), ("p", "2")], name="my_set")


def test_a_partner_has_no_response_that_is_also_the_rows_own():
    """The ring is a, b, c, d. b's record answers "Yes" like a's, so a's partner is c."""
    keyed = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]
    texts = [{"Yes", "No"}, {"Yes", "Maybe"}, {"It is 4.", "It is 5."}, {"No", "Never"}]
    assert partners(keyed) == [1, 2, 3, 0]
    assert partners(keyed, texts) == [2, 2, 3, 1]


def test_a_partner_passed_over_is_one_of_another_record_of_the_rows_prompt_neither():
    keyed = [("a", "2"), ("a", "1"), ("b", "3")]
    assert partners(keyed, [{"Yes"}, {"Sure"}, {"Yes"}]) == [2, 2, 1]


def test_where_every_prompt_has_the_same_responses_the_partner_is_the_next_prompt():
    keyed = [(f"{i:05}", str(i)) for i in range(20_000)]
    assert partners(keyed, [{"Yes", "No"}] * 20_000) == [*range(1, 20_000), 0]


def test_partners_with_texts_are_those_of_a_slow_search():
    chance = Random(3)
    for _ in range(200):
        count = chance.randint(2, 12)
        keyed = [(chance.choice("abcdefgh"), str(i)) for i in range(count)]
        texts = [{chance.choice("uvwxyz") for _ in range(2)} for _ in range(count)]
        if len({key for key, _ in keyed}) < 2:
            continue
        assert partners(keyed, texts) == [slow_partner(keyed, texts, row) for row in range(count)]


def slow_partner(keyed, texts, row):
    ring = sorted({key for key, _ in keyed})
    at = ring.index(keyed[row][0])
    turn = [ring[(at + step) % len(ring)] for step in range(1, len(ring))]
    heads = [min((record_id, i) for i, (key, record_id) in enumerate(keyed) if key == other)[1] for other in turn]
    return next((head for head in heads if not texts[head] & texts[row]), heads[0])


def test_the_digest_of_a_draw_depends_on_epoch_record_and_type():
    digests = {draw_digest(e, r, t) for e in (0, 1) for r in ("a", "b") for t in ("logic", "correctness")}
    assert len(digests) == 8
    assert all(0 <= digest < 2**62 for digest in digests)
