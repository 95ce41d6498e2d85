"""Rows to records and back."""

from __future__ import annotations

import pytest
from finepref.formats.records import (
    FIELDS,
    FORMATS,
    Choice,
    Feedback,
    Message,
    Negatives,
    Pair,
    Ranked,
    ScoredPair,
    Span,
    SpanPair,
    content_id,
    parse,
    to_row,
)

USER = (Message("user", "q"),)


def codes(parsed: object) -> list[tuple[str, str]]:
    assert isinstance(parsed, list), f"expected problems, got {parsed}"
    return [(problem.code, problem.field) for problem in parsed]


RECORDS = [
    Pair("a", USER, "good", "bad"),
    Pair("a", USER, "good", "bad", -0.25),
    SpanPair("a", USER, "good one", "bad one", (), (Span(0, 3), Span(3, 5, 0.5))),
    SpanPair("a", USER, "good one", "bad one", (Span(0, 4),), (), 1),
    SpanPair("a", USER, "good one", "bad one", (), (Span(0, 3),), -1),
    ScoredPair("a", USER, "good", "bad", "0f", (0.5, -1.0), (2.0,)),
    ScoredPair("a", USER, "good", "bad", "0f", (0.5, -1.0), (2.0,), ((0, 4), (4, 4)), ((0, 3),)),
    Ranked("a", USER, ("x", "y", "z"), (1.0, 0.0, -3.5)),
    Ranked("a", USER, ("x", "y"), (1.0, 0.0), "apo"),
    Feedback("a", USER, "fine", True),
    Feedback("a", USER, "wrong", False, "logic"),
    Negatives("a", USER, "good", {"logic": "bad", "my-own_type2": "worse"}, {"logic": (Span(0, 3),)}, "meh"),
    Negatives("a", (Message("system", "s"), *USER, Message("assistant", "b"), Message("user", "c")), "g", {"x": "h"}),
    Choice("a", "q?", ("one", "two"), "B", "law"),
    Choice("a", "q?", ("one", "two", "three")),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_written_as_a_row_is_read_back_equal(record):
    formatting = next(name for name, kind in FORMATS.items() if kind is type(record))
    row = to_row(record)
    assert parse(row, formatting) == record
    assert row.keys() <= {*FIELDS[formatting]}


def test_a_row_that_came_through_arrow_gives_the_same_record():
    """Arrow fills absent keys with null, makes one struct of all error types, and may turn offsets into floats."""
    row = to_row(RECORDS[11]) | {"system": None, "messages": None}
    row["negatives"] = {"correctness": None, **row["negatives"]}
    row["spans"] = {"correctness": None, "logic": [{"start": 0.0, "end": 3.0, "weight": None}], "my-own_type2": None}
    assert parse(row, "negatives", nulls_absent=True) == RECORDS[11]
    assert ("FP011", "spans.logic[0].start") in codes(
        parse(row | {"spans": {"logic": [[0.5, 3]]}}, "negatives", nulls_absent=True)
    )


def test_without_arrow_a_null_is_a_value_of_the_wrong_type():
    assert codes(parse({"prompt": "q", "chosen": "a", "rejected": "b", "margin": None}, "pair")) == [
        ("FP011", "margin")
    ]


def test_columns_name_the_fields_of_the_file_and_problems_use_those_names():
    row = {"question": "q", "answer": "good", "wrong": {"logic": " "}}
    columns = {"prompt": "question", "chosen": "answer", "negatives": "wrong"}
    assert codes(parse(row, "negatives", columns=columns)) == [("FP012", "wrong.logic")]
    row["wrong"] = {"logic": "bad"}
    assert parse(row, "negatives", columns=columns) == Negatives(
        content_id((Message("user", "q"),)), (Message("user", "q"),), "good", {"logic": "bad"}
    )


def test_a_field_that_the_columns_rename_is_not_read_under_its_own_name():
    row = {"prompt": "not this", "question": "this", "chosen": "a", "rejected": "b"}
    parsed = parse(row, "pair", columns={"prompt": "question"})
    assert isinstance(parsed, Pair)
    assert parsed.prompt == (Message("user", "this"),)


def test_columns_may_swap_two_names():
    row = {"prompt": "q", "chosen": "worse", "rejected": "better"}
    parsed = parse(row, "pair", columns={"chosen": "rejected", "rejected": "chosen"})
    assert isinstance(parsed, Pair)
    assert (parsed.chosen, parsed.rejected) == ("better", "worse")


def test_negatives_may_stand_in_one_column_per_error_type():
    row = {"prompt": "q", "chosen": "good", "bad_logic": "l", "bad_facts": "f"}
    parsed = parse(row, "negatives", columns={"logic": "bad_logic", "correctness": "bad_facts"})
    assert isinstance(parsed, Negatives)
    assert parsed.negatives == {"correctness": "f", "logic": "l"}
    assert codes(parse(row | {"bad_logic": ""}, "negatives", columns={"logic": "bad_logic"})) == [
        ("FP012", "bad_logic")
    ]


def test_sharegpt_names_and_a_system_turn_are_read():
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    parsed = parse({"messages": turns, "label": True}, "feedback")
    assert isinstance(parsed, Feedback)
    assert parsed.prompt == (Message("system", "s"), Message("user", "q"))
    assert parsed.response == "a"


def test_prompt_with_system_is_the_same_record_as_messages_with_a_system_turn():
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    rest = {"chosen": "a", "rejected": "b"}
    assert parse({"prompt": "q", "system": "s"} | rest, "pair") == parse({"messages": turns} | rest, "pair")


def test_feedback_takes_the_last_assistant_turn_or_the_response_column():
    turns = [{"role": "user", "content": "q"}]
    answer = {"role": "assistant", "content": "a"}
    as_turn = parse({"messages": [*turns, answer], "label": True}, "feedback")
    assert as_turn == parse({"messages": turns, "response": "a", "label": True}, "feedback")
    assert codes(parse({"messages": turns, "label": True}, "feedback")) == [("FP010", "messages")]
    both = {"messages": [*turns, answer], "response": "a", "label": True}
    assert codes(parse(both, "feedback")) == [("FP022", "messages")]


def test_the_default_error_type_reaches_undesirable_rows_only():
    row = {"prompt": "q", "response": "a"}
    bad = parse(row | {"label": False}, "feedback", error_type="logic")
    good = parse(row | {"label": True}, "feedback", error_type="logic")
    own = parse(row | {"label": False, "error_type": "correctness"}, "feedback", error_type="logic")
    assert [record.error_type for record in (bad, good, own)] == ["logic", None, "correctness"]


def test_any_error_type_name_is_good_unless_some_are_asked_for():
    row = {"prompt": "q", "chosen": "a", "negatives": {"grammar": "b"}}
    assert isinstance(parse(row, "negatives"), Negatives)
    assert codes(parse(row, "negatives", error_types=["logic"])) == [("FP036", "negatives.grammar")]
    feedback = {"prompt": "q", "response": "b", "label": False}
    assert codes(parse(feedback, "feedback", error_type="grammar", error_types=["logic"])) == [("FP036", "error_type")]


def test_a_content_id_depends_on_content_and_nothing_else():
    """Negatives: the prompt. Feedback: prompt and response. Others: everything. The order of keys is no content."""
    row = {"prompt": "q", "chosen": "a", "negatives": {"x": "b", "y": "c"}}
    other = {"negatives": {"y": "c2"}, "chosen": "a2", "prompt": "q"}
    assert parse(row, "negatives").id == parse(other, "negatives").id == content_id(USER)
    rows = [{"prompt": "q", "response": "a", "label": label} for label in (True, False)]
    assert parse(rows[0], "feedback").id == parse(rows[1], "feedback").id != content_id(USER)
    pairs = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "a", "rejected": "c"}]
    assert parse(pairs[0], "pair").id != parse(pairs[1], "pair").id
    spans = [pairs[0] | {"chosen_spans": [[0, 1]]}, pairs[0]]
    assert parse(spans[0], "span_pair").id != parse(spans[1], "span_pair").id


def test_a_content_id_is_pinned_so_that_draws_of_old_runs_can_be_repeated():
    """hashlib.blake2b(b'[[["user","q"]]]', digest_size=8).hexdigest(), by hand."""
    assert content_id(USER) == "b6a726a0420c0a02"


def test_spans_may_be_lists_or_objects_and_come_out_sorted():
    row = {"prompt": "q", "chosen": "abcdef", "rejected": "x", "chosen_spans": [[4, 6, 0.5], {"start": 0, "end": 2}]}
    parsed = parse(row, "span_pair")
    assert isinstance(parsed, SpanPair)
    assert parsed.chosen_spans == (Span(0, 2, 1.0), Span(4, 6, 0.5))


def test_span_offsets_count_code_points():
    """ "\N{GRINNING FACE}e\N{COMBINING ACUTE ACCENT}!" has four: an emoji is one, a letter and its accent are two."""
    text = "\N{GRINNING FACE}e\N{COMBINING ACUTE ACCENT}!"
    row = {"prompt": "q", "chosen": text, "rejected": "x", "chosen_spans": [[3, 4]]}
    assert isinstance(parse(row, "span_pair"), SpanPair)
    assert codes(parse(row | {"chosen_spans": [[3, 5]]}, "span_pair")) == [("FP041", "chosen_spans[0]")]


def test_all_problems_of_a_row_are_found_at_once():
    row = {"id": "", "prompt": " ", "chosen": 3, "negatives": {"x y": "b", "z": ""}, "spans": {"w": []}}
    assert sorted(codes(parse(row, "negatives"))) == [
        ("FP011", "chosen"),
        ("FP012", "negatives.z"),
        ("FP012", "prompt"),
        ("FP023", "id"),
        ("FP031", "negatives.x y"),
        ("FP045", "spans.w"),
    ]


def test_a_row_of_another_format_is_named_once_beside_its_other_problems():
    row = {"id": 3.5, "prompt": "q", "response": "a", "label": True}
    assert codes(parse(row, "negatives")) == [("FP015", "chosen"), ("FP011", "id")]


@pytest.mark.parametrize("row", [None, 3, "text", [], [{}], True])
def test_a_row_that_is_no_object_is_a_problem(row):
    assert codes(parse(row, "pair", file="f", line=3)) == [("FP005", "")]


def test_a_problem_prints_as_code_place_field_and_message():
    (problem,) = parse({"prompt": "q", "chosen": "", "rejected": "b"}, "pair", file="data.jsonl", line=7)
    assert str(problem) == "FP012 data.jsonl:7 chosen: the text is empty"
