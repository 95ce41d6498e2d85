"""Records of one format as records of another."""

from __future__ import annotations

from itertools import pairwise

import pytest
from finepref.formats.catalogue import FORMATS_SHOWN
from finepref.formats.check import BadData, Problem
from finepref.formats.convert import TARGETS, Converter, interleave
from finepref.formats.records import FORMATS, Feedback, Message, Negatives, Pair, Ranked, Span, SpanPair, parse, to_row
from hypothesis import given, settings
from hypothesis import strategies as st

settings.register_profile("formats", derandomize=True, deadline=None)
SETTINGS = settings.get_profile("formats")

USER = (Message("user", "q"),)
NEGATIVES = Negatives("n", USER, "good", {"facts": "bad", "logic": "worse"}, {"logic": (Span(0, 3, 0.5),)}, "meh")
PAIR = Pair("p", USER, "It is 4.", "It is 5.", 2.0)


def prompt(text):
    return (Message("user", text),)


def converted(target, *records, **options):
    """The converted records and the converter."""
    converter = Converter(target, **options)
    return list(converter.run(("f", line, record) for line, record in enumerate(records, start=1))), converter


@pytest.mark.parametrize(("origin", "target"), [(origin, target) for origin in TARGETS for target in TARGETS[origin]])
def test_every_conversion_of_the_table_gives_good_rows_of_its_target(origin, target):
    """Of two records; the rows read back equal, so what is written can be trained on."""
    shown = FORMATS_SHOWN[origin].row
    rows = [shown | {"id": "first"}, shown | {"id": "second"}]
    if origin == "feedback":
        good = {"messages": [shown["messages"][0], {"role": "assistant", "content": "12."}], "label": True}
        rows = [shown, good]
        rows += [row | {"messages": [{"role": "user", "content": "again"}, row["messages"][1]]} for row in rows]
    else:
        rows[1]["prompt"] = "another"
    records, converter = converted(target, *(parse(row, origin) for row in rows), error_type="other", diff=True)
    assert converter.problems == []
    assert len(records) >= 2
    for record in records:
        assert type(record) is FORMATS[target]
        assert parse(to_row(record), target) == record
    assert len({record.id for record in records}) == len(records)


def test_negatives_become_one_pair_per_error_type():
    records, converter = converted("pair", NEGATIVES)
    assert records == [Pair("n:facts", USER, "good", "bad"), Pair("n:logic", USER, "good", "worse")]
    assert converter.left_out == {"spans": 1, "rejected": 1}


def test_negatives_become_span_pairs_with_the_injected_spans():
    records, converter = converted("span_pair", NEGATIVES, types=["logic"])
    assert records == [SpanPair("n:logic", USER, "good", "worse", (), (Span(0, 3, 0.5),))]
    assert converter.left_out == {"negatives": 1, "rejected": 1}


def test_a_negative_without_a_span_is_a_problem_unless_the_difference_may_be_marked():
    with pytest.raises(BadData) as raised:
        converted("span_pair", NEGATIVES)
    assert [(p.code, p.file, p.line, p.field) for p in raised.value.problems] == [("FP047", "f", 1, "spans.facts")]
    records, _ = converted("span_pair", NEGATIVES, diff=True)
    assert [record.rejected_spans for record in records] == [(Span(0, 2),), (Span(0, 3, 0.5),)]
    assert [record.chosen_spans for record in records] == [(Span(0, 3),), (Span(0, 4),)]


def test_negatives_become_a_ranking_of_chosen_above_the_rest():
    records, _ = converted("ranked", NEGATIVES)
    assert records == [Ranked("n", USER, ("good", "bad", "worse"), (1.0, 0.0, 0.0))]


def test_negatives_without_an_asked_type_are_a_problem():
    with pytest.raises(BadData, match="FP204 f:1 negatives: has facts, logic, but not style"):
        converted("pair", NEGATIVES, types=["style"])


def test_negatives_become_feedback_and_come_back_the_same():
    others = [Negatives(f"n{i}", prompt(f"q{i}"), "good", {"facts": "bad", "logic": "worse"}) for i in range(3)]
    rows, _ = converted("feedback", *others)
    assert sum(row.label for row in rows) == 3
    back, converter = converted("negatives", *rows)
    assert {(r.prompt, r.chosen, *r.negatives.items()) for r in back} == {
        (r.prompt, r.chosen, *r.negatives.items()) for r in others
    }
    assert converter.left_out == {"id": 9}


def test_a_pair_becomes_a_span_pair_whose_spans_are_the_difference_only_if_asked():
    records, converter = converted("span_pair", PAIR)
    assert records == [SpanPair("p", USER, "It is 4.", "It is 5.")]
    assert converter.left_out == {"margin": 1}
    records, _ = converted("span_pair", PAIR, diff=True)
    assert records == [SpanPair("p", USER, "It is 4.", "It is 5.", (Span(6, 7),), (Span(6, 7),))]


def test_a_pair_becomes_a_ranking_by_its_margin():
    assert converted("ranked", PAIR)[0] == [Ranked("p", USER, ("It is 4.", "It is 5."), (2.0, 0.0))]
    records, converter = converted("ranked", Pair("p", USER, "a", "b", -0.5), Pair("r", USER, "a", "b"))
    assert [record.scores for record in records] == [(1.0, 0.0), (1.0, 0.0)]
    assert converter.left_out == {"margin": 1}


def test_a_pair_becomes_negatives_when_its_error_type_is_named():
    records, _ = converted("negatives", PAIR, error_type="facts")
    assert [(record.chosen, record.negatives) for record in records] == [("It is 4.", {"facts": "It is 5."})]
    with pytest.raises(BadData, match="FP066 f:1 error_type"):
        converted("negatives", PAIR)


def test_a_ranking_becomes_all_pairs_with_different_scores_and_their_margins():
    """Scores 3, 1, 1, -1: five ordered pairs; b and c are equal and make none."""
    records, _ = converted("pair", Ranked("r", USER, ("a", "b", "c", "d"), (3.0, 1.0, 1.0, -1.0)))
    assert [(record.id, record.chosen, record.rejected, record.margin) for record in records] == [
        ("r:0-1", "a", "b", 2.0),
        ("r:0-2", "a", "c", 2.0),
        ("r:0-3", "a", "d", 4.0),
        ("r:1-3", "b", "d", 2.0),
        ("r:2-3", "c", "d", 2.0),
    ]


def test_a_ranking_with_the_golden_answer_last_puts_it_first():
    (record,), converter = converted("pair", Ranked("r", USER, ("sample", "gold"), (0.0, 1.0), "apo"))
    assert (record.chosen, record.rejected) == ("gold", "sample")
    assert converter.left_out == {"kind": 1}


def test_feedback_of_several_files_becomes_pairs_through_its_prompts():
    rows = [Feedback("1", USER, "good", True), Feedback("2", USER, "bad", False, "logic")]
    records, _ = converted("pair", *rows)
    assert [(record.chosen, record.rejected) for record in records] == [("good", "bad")]


def test_what_feedback_lacks_is_named_at_its_row():
    with pytest.raises(BadData, match="FP063 f:1 label"):
        converted("negatives", Feedback("1", USER, "good", True))


def test_a_derived_id_that_would_be_too_long_is_a_hash():
    record = Negatives("x" * 250, USER, "good", {"hallucination": "bad", "a": "worse"})
    records, _ = converted("pair", record)
    assert [len(pair.id) for pair in records] == [16, 252]


def feedback_rows(counts):
    """counts[i] rows of prompt i, one after the other, the first of each desirable."""
    return [
        Feedback(f"{i}:{n}", prompt(f"{i}"), f"{n}", n == 0) for i, count in enumerate(counts) for n in range(count)
    ]


@settings(SETTINGS, max_examples=500)
@given(counts=st.lists(st.integers(1, 5), max_size=12))
def test_interleaved_rows_never_have_neighbours_of_one_prompt_or_say_that_it_cannot_be(counts):
    """It can be if and only if no prompt has more than half of the rows, rounded up."""
    rows = feedback_rows(counts)
    problems: list[Problem] = []
    mixed = list(interleave(rows, problems))
    possible = max(counts, default=0) <= (sum(counts) + 1) // 2
    assert [problem.code for problem in problems] == ([] if possible else ["FP068"])
    if possible:
        assert sorted(row.id for row in mixed) == sorted(row.id for row in rows)
        assert all(left.prompt != right.prompt for left, right in pairwise(mixed))


def test_interleaved_rows_mix_desirable_and_undesirable_ones_and_keep_a_prompt_apart():
    """100 prompts of 4 rows: in each quarter there is one row of every prompt, and a quarter of them is desirable."""
    mixed = list(interleave(feedback_rows([4] * 100), []))
    for start in range(0, 400, 100):
        quarter = mixed[start : start + 100]
        assert len({row.prompt for row in quarter}) == 100
        assert sum(row.label for row in quarter) == 25


def test_converting_nothing_gives_nothing():
    assert converted("pair")[0] == []
