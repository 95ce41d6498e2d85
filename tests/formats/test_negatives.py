"""The number behind every draw, and the joining of feedback rows."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b

from finepref.formats.negatives import group_feedback, join_feedback, pick
from finepref.formats.records import Feedback, Message, Negatives, content_id

USER = (Message("user", "q"),)


def feedback(response, label, error_type=None, prompt=USER):
    return Feedback(content_id(prompt, response), prompt, response, label, error_type)


def codes(problems):
    return [(problem.code, problem.file, problem.line, problem.field) for problem in problems]


def test_a_pick_is_the_documented_hash():
    """blake2b of "7:2:gsm-1" with an 8-byte digest, read big-endian, modulo 3."""
    by_hand = int.from_bytes(blake2b(b"7:2:gsm-1", digest_size=8).digest(), "big") % 3
    assert pick(3, seed=7, epoch=2, record_id="gsm-1") == by_hand


def test_picks_are_pinned_so_that_old_runs_can_be_repeated():
    """The formula of the test above, worked out with hashlib alone."""
    assert [pick(3, seed=0, epoch=epoch, record_id="a") for epoch in range(12)] == [1, 2, 0, 1, 0, 0, 1, 0, 2, 1, 1, 2]


def test_picks_are_even_over_ids_and_change_with_seed_and_epoch():
    """30,000 draws of 3: each expects 10,000 with a standard deviation of 82; 4 of them are 327."""
    ids = [f"record-{n}" for n in range(30_000)]
    counts = Counter(pick(3, seed=1, epoch=0, record_id=name) for name in ids)
    assert all(abs(count - 10_000) < 327 for count in counts.values())
    first = [pick(3, seed=1, epoch=0, record_id=name) for name in ids]
    for seed, epoch in ((1, 1), (2, 0)):
        same = sum(a == pick(3, seed=seed, epoch=epoch, record_id=name) for a, name in zip(first, ids, strict=True))
        assert abs(same - 10_000) < 327


def test_one_file_per_error_type_becomes_one_record_per_prompt():
    """The SeaPO release writes the positive into each file."""
    rows = [
        (name, line, row)
        for name in ("correctness", "logic", "hallucination")
        for line, row in enumerate([feedback("good", True), feedback(f"bad {name}", False, name)], start=1)
    ]
    records, problems = group_feedback(rows)
    assert problems == []
    negatives = {"correctness": "bad correctness", "hallucination": "bad hallucination", "logic": "bad logic"}
    assert records == [Negatives(content_id(USER), USER, "good", negatives)]
    assert group_feedback(reversed(rows)) == (records, [])


def test_prompts_that_differ_in_the_system_turn_are_different_prompts():
    with_system = (Message("system", "s"), *USER)
    rows = [
        ("f", n, feedback(text, label, None if label else "logic", prompt))
        for n, (prompt, text, label) in enumerate(
            [(USER, "a", True), (with_system, "b", True), (with_system, "c", False), (USER, "d", False)], start=1
        )
    ]
    records, problems = group_feedback(rows)
    assert problems == []
    assert [(record.prompt, record.chosen, record.negatives) for record in records] == [
        (USER, "a", {"logic": "d"}),
        (with_system, "b", {"logic": "c"}),
    ]


def test_each_way_in_which_a_prompt_can_be_incomplete_is_named():
    good, bad = feedback("good", True), feedback("bad", False, "logic")
    table = [
        ([good], [("FP063", "f", 1, "label")]),
        ([bad], [("FP062", "f", 1, "label")]),
        ([good, feedback("bad", False)], [("FP066", "f", 2, "error_type")]),
        ([good, feedback("good ", False, "logic")], [("FP032", "f", 2, "response")]),
        ([good, bad, feedback("bad", False, "correctness")], [("FP033", "f", 3, "response")]),
        ([feedback("bad", False)], [("FP066", "f", 1, "error_type"), ("FP062", "f", 1, "label")]),
    ]
    for rows, expected in table:
        records, problems = group_feedback([("f", line, row) for line, row in enumerate(rows, start=1)])
        assert codes(problems) == expected
        assert records == []


def test_a_bad_prompt_does_not_keep_a_good_one_from_its_record():
    other = (Message("user", "other"),)
    rows = [feedback("x", True), feedback("good", True, prompt=other), feedback("bad", False, "logic", prompt=other)]
    records, problems = group_feedback([("f", line, row) for line, row in enumerate(rows, start=1)])
    assert [record.prompt for record in records] == [other]
    assert codes(problems) == [("FP063", "f", 1, "label")]


def test_the_same_negative_twice_is_one_negative():
    rows = [feedback("good", True), feedback("bad", False, "logic"), feedback("bad", False, "logic")]
    records, problems = group_feedback([("f", line, row) for line, row in enumerate(rows, start=1)])
    assert problems == []
    assert records[0].negatives == {"logic": "bad"}


def record_texts(rows):
    """(chosen, negatives) of the records of rows of one prompt, each given as (file, label, text, type)."""
    placed = [
        (file, line, feedback(text, label, error_type)) for line, (file, label, text, error_type) in enumerate(rows)
    ]
    records, problems = group_feedback(placed)
    assert problems == []
    assert len({record.id for record in records}) == len(records)
    return [(record.chosen, record.negatives) for record in records]


def test_each_of_two_good_answers_is_paired_with_the_negatives_that_follow_it_in_its_file():
    """One prompt with two answers in the SeaPO release: each file has answer, negative, answer, negative."""
    rows = [
        *[("a", True, "Blue.", None), ("a", False, "Seven.", "logic")],
        *[("a", True, "Red.", None), ("a", False, "Eight.", "logic")],
        *[("b", True, "Red.", None), ("b", False, "Monday.", "style")],
        *[("b", True, "Blue.", None), ("b", False, "Tuesday.", "style")],
    ]
    assert record_texts(rows) == [
        ("Blue.", {"logic": "Seven.", "style": "Tuesday."}),
        ("Red.", {"logic": "Eight.", "style": "Monday."}),
    ]


def test_ids_tell_which_negatives_belong_to_which_answer_in_any_order():
    """As `finepref convert --to feedback` writes them: the record's id, a colon, and the part."""
    parts = [
        ("r2", "logic", "bad 2"),
        ("r1", "chosen", "good 1"),
        ("r2", "chosen", "good 2"),
        ("r1", "logic", "bad 1"),
    ]
    rows = [
        ("f", line, Feedback(f"{source}:{part}", USER, text, part == "chosen", None if part == "chosen" else part))
        for line, (source, part, text) in enumerate(parts)
    ]
    records, problems = group_feedback(rows)
    assert problems == []
    assert sorted((record.chosen, record.negatives["logic"]) for record in records) == [
        ("good 1", "bad 1"),
        ("good 2", "bad 2"),
    ]


def test_where_nothing_tells_the_owner_every_text_is_in_a_record():
    rows = [("f", True, "good 1", None), ("f", True, "good 2", None)]
    rows += [("f", False, f"bad {n}", "logic") for n in range(3)]
    assert record_texts(rows) == [
        ("good 1", {"logic": "bad 0"}),
        ("good 2", {"logic": "bad 1"}),
        ("good 1", {"logic": "bad 2"}),
    ]


def test_each_row_is_counted_to_one_record_of_its_prompt():
    """Five rows, three records: 2, 2 and 1; the answer of the third is counted to the first."""
    texts = [("good 1", None), ("good 2", None), ("bad 0", "logic"), ("bad 1", "logic"), ("bad 2", "logic")]
    rows = [("f", line, feedback(text, kind is None, kind)) for line, (text, kind) in enumerate(texts, start=1)]
    joined, _ = join_feedback(rows)
    assert [(each.line, each.rows) for each in joined] == [(1, 2), (2, 2), (5, 1)]
    assert [each.places for each in joined] == [(("f", 1), ("f", 3)), (("f", 2), ("f", 4)), (("f", 5),)]


def test_answers_with_the_same_negatives_keep_a_row_of_each_for_themselves():
    parts = [(r, part) for r in ("r1", "r2") for part in ("chosen", "logic")]
    rows = []
    for source, kind in parts:
        texts = [f"good {source}"] if kind == "chosen" else ["bad", "worse"]
        for text in texts:
            error_type = None if kind == "chosen" else kind
            rows.append(("f", len(rows) + 1, Feedback(f"{source}:{kind}", USER, text, kind == "chosen", error_type)))
    joined, _ = join_feedback([*rows, ("f", 7, rows[0][2])])
    made = [("good r1", "bad"), ("good r1", "worse"), ("good r2", "bad"), ("good r2", "worse")]
    assert [(each.record.chosen, each.record.negatives["logic"]) for each in joined] == made
    assert sorted(place for each in joined for place in each.places) == [("f", line) for line in range(1, 8)]
    assert all(each.rows == len(each.places) > 0 and each.places[0] == (each.file, each.line) for each in joined)


def test_two_negatives_of_one_type_are_two_records_of_their_answer():
    rows = [("f", True, "good", None), ("f", False, "bad", "logic"), ("f", False, "worse", "logic")]
    assert record_texts(rows) == [("good", {"logic": "bad"}), ("good", {"logic": "worse"})]
