"""The files that the papers' code wrote, read as records."""

from __future__ import annotations

import csv
import json
import re
from functools import partial

import pytest
from finepref.formats.apo_samples import read_apo_samples
from finepref.formats.check import Problem
from finepref.formats.jsonl import write_jsonl
from finepref.formats.layouts import read
from finepref.formats.records import Feedback, Message, Pair, Ranked, Span, SpanPair
from finepref.formats.released import dialogue
from finepref.formats.sepo_csv import read_sepo_csv

parse_apo_rm, parse_granular, parse_messages_label, parse_reversegen, parse_train_detail = (
    partial(read, name=name) for name in ("apo_rm", "granular", "seapo", "reversegen", "train_detail")
)

GRANULAR = {
    "prompt": "What is 2 + 2?",
    "correct_response": "It is 4 now.",
    "incorrect_response": "It is 5 now.",
    "masked_region": [6, 7, 1],
}
USER = (Message("user", "What is 2 + 2?"),)


def codes(parsed):
    assert isinstance(parsed, list), f"expected problems, got {parsed}"
    return [(problem.code, problem.field) for problem in parsed]


def parts(record):
    """A span pair without its id."""
    assert isinstance(record, SpanPair), record
    return record.prompt, record.chosen, record.rejected, record.chosen_spans, record.rejected_spans, record.side


def test_a_masked_region_with_flag_1_is_a_span_of_the_correct_response():
    expected = (USER, "It is 4 now.", "It is 5 now.", (Span(6, 7),), (), 1)
    assert parts(parse_granular(GRANULAR)) == expected


def test_a_masked_region_with_flag_minus_1_is_a_span_of_the_incorrect_response():
    expected = (USER, "It is 4 now.", "It is 5 now.", (), (Span(6, 7),), -1)
    assert parts(parse_granular(GRANULAR | {"masked_region": [6, 7, -1]})) == expected


def test_a_masked_region_with_flag_0_masks_both_responses_and_is_refused():
    """Of such a pair the fork trains nothing; as a plain pair, all of it would be trained."""
    assert codes(parse_granular(GRANULAR | {"masked_region": [0, 0, 0]})) == [("FP087", "masked_region")]


def test_the_responses_of_a_granular_row_may_be_named_correct_and_incorrect():
    row = {
        "prompt": "What is 2 + 2?",
        "correct": "It is 4 now.",
        "incorrect": "It is 5 now.",
        "masked_region": [6, 7, 1],
    }
    assert parts(parse_granular(row)) == (USER, "It is 4 now.", "It is 5 now.", (Span(6, 7),), (), 1)
    assert codes(parse_granular(row | {"correct": ""})) == [("FP012", "correct")]


def test_several_masked_regions_are_spans_of_both_sides():
    """With a flag of each kind there is no one-sided `side`; with flags of one kind there is."""
    row = {key: value for key, value in GRANULAR.items() if key != "masked_region"}
    both = parse_granular(row | {"masked_regions": [[6, 7, 1], [0, 2, 1], [3, 5, -1]]})
    assert parts(both) == (USER, "It is 4 now.", "It is 5 now.", (Span(0, 2), Span(6, 7)), (Span(3, 5),), 0)
    assert parts(parse_granular(row | {"masked_regions": [[6, 7, -1]]}))[3:] == ((), (Span(6, 7),), -1)
    assert codes(parse_granular(row | {"masked_regions": [[6, 7, 1], [0, 1, 0]]})) == [("FP087", "masked_regions[1]")]
    assert codes(parse_granular(row | {"masked_regions": []})) == [("FP080", "masked_regions")]


def test_two_regions_of_one_pair_are_two_records():
    other = GRANULAR | {"masked_region": [0, 5, 1]}
    assert parse_granular(GRANULAR).id != parse_granular(other).id


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"masked_region": [6, 7]}, ("FP080", "masked_region")),
        ({"masked_region": [6, 7, 2]}, ("FP080", "masked_region")),
        ({"masked_region": [6, 7, True]}, ("FP080", "masked_region")),
        ({"masked_region": [6.0, 7, 1]}, ("FP080", "masked_region")),
        ({"masked_region": "6-7"}, ("FP080", "masked_region")),
        ({"masked_region": [6, 13, 1]}, ("FP041", "masked_region[0]")),
        ({"masked_region": [-1, 3, -1]}, ("FP041", "masked_region[0]")),
        ({"masked_region": [6, 6, 1]}, ("FP042", "masked_region[0]")),
        ({"correct_response": ""}, ("FP012", "correct_response")),
        ({"incorrect_response": "It is 4 now."}, ("FP034", "incorrect_response")),
    ],
)
def test_a_bad_granular_row_names_the_field_of_its_file(changes, expected):
    assert codes(parse_granular(GRANULAR | changes)) == [expected]


def test_a_granular_row_without_its_fields_lists_them():
    assert codes(parse_granular({"prompt": "q"})) == [
        ("FP010", "masked_region"),
        ("FP010", "correct_response"),
        ("FP010", "incorrect_response"),
    ]


def test_an_apo_row_is_a_ranking_and_its_transcript_becomes_messages():
    query = "\n\nHuman: Hi there\n\nAssistant: Hello!\n\nHuman: 2 + 2?\n\nAssistant:"
    row = {"text": [f"{query}<sep> Four.", f"{query}<sep> Five."], "scores": [1.0, -1], "query_id": 17}
    record = parse_apo_rm(row)
    turns = (Message("user", "Hi there"), Message("assistant", "Hello!"), Message("user", "2 + 2?"))
    assert record == Ranked("17", turns, ("Four.", "Five."), (1.0, -1.0), "human")
    assert parse_apo_rm(row | {"type": "apo"}).kind == "apo"


def test_a_transcript_of_webgpt_with_headings_is_one_with_turns():
    """DSP's WebGPT sets: "## Human:" for "Human:"; a heading inside a line is none."""
    query = "## Human:\nIs ## Human: a heading?\n\n\n\n## Assistant:"
    record = parse_apo_rm({"text": [f"{query}\n No.", f"{query} Yes."], "score": [1.5, 0.5]})
    assert record.prompt == (Message("user", "Is ## Human: a heading?"),)
    assert (record.responses, record.scores) == (("No.", "Yes."), (1.5, 0.5))


def test_an_apo_row_without_sep_is_cut_at_its_last_assistant_turn():
    """DSP's files: whole transcripts in `text`, `score` for `scores`."""
    query = "\n\nHuman: Hi there\n\nAssistant: Hello!\n\nHuman: 2 + 2?\n\nAssistant:"
    record = parse_apo_rm({"text": [f"{query} Four.", f"{query} Five."], "score": [1.0, -1]})
    turns = (Message("user", "Hi there"), Message("assistant", "Hello!"), Message("user", "2 + 2?"))
    assert (record.prompt, record.responses, record.scores) == (turns, ("Four.", "Five."), (1.0, -1.0))


def test_a_query_that_is_no_transcript_stays_one_turn_as_it_is():
    for query in ("2 + 2?", "Human: 2 + 2?", " \n\nHuman: a\n\nHuman: b\n\nAssistant:", "\n\nHuman: \n\nAssistant:"):
        assert dialogue(query, [" x "]) == ((Message("user", query),), [" x "])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"scores": [1, 0]}, [("FP010", "text")]),
        ({"text": ["q<sep>a", "q b"], "scores": [1, 0]}, [("FP081", "text[1]")]),
        ({"text": ["q<sep>a<sep>b", "q<sep>c"], "scores": [1, 0]}, [("FP081", "text[0]")]),
        ({"text": ["q<sep>a", "p<sep>b"], "scores": [1, 0]}, [("FP082", "text[1]")]),
        ({"text": ["q<sep>a", "q<sep>"], "scores": [1, 0]}, [("FP012", "text[1]")]),
        ({"text": [" <sep>a", " <sep>b"], "scores": [1, 0]}, [("FP012", "text[0]"), ("FP012", "text[1]")]),
        ({"text": [], "scores": []}, [("FP050", "text")]),
        ({"text": ["q<sep>a", "q<sep>b"]}, [("FP010", "scores")]),
        ({"text": ["q<sep>a", "q<sep>b"], "scores": [0, 0]}, [("FP052", "scores")]),
        ({"text": ["q<sep>a", "q<sep>b"], "scores": [1, 0], "type": "rlhf"}, [("FP053", "type")]),
        ({"text": ["q<sep>a", "q<sep>b"], "scores": [1, 0], "query_id": ""}, [("FP023", "query_id")]),
        ({"text": [3, "q<sep>b"], "scores": [1, 0]}, [("FP011", "text[0]")]),
    ],
)
def test_a_bad_apo_row_names_the_field_of_its_file(row, expected):
    assert codes(parse_apo_rm(row)) == expected


def test_a_reversegen_row_is_a_pair_of_instructions():
    record = parse_reversegen({"prompt": "Q1. ...\n\nQ2.", "positive": "a hard one", "negative": "an easy one"})
    assert isinstance(record, Pair)
    assert (record.chosen, record.rejected) == ("a hard one", "an easy one")
    assert codes(parse_reversegen({"prompt": "q", "target": "x"})) == [("FP010", "positive"), ("FP010", "negative")]


def test_a_seapo_row_is_feedback_whose_last_message_is_the_response():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    bad = parse_messages_label({"messages": turns, "label": False}, error_type="logic")
    assert isinstance(bad, Feedback)
    assert (bad.prompt, bad.response, bad.label, bad.error_type) == ((Message("user", "q"),), "a", False, "logic")
    assert parse_messages_label({"messages": turns, "label": True}, error_type="logic").error_type is None


def train_detail(*details):
    return {
        "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "How are you?"}],
        "chosen": {
            "from": "gpt",
            "value": "I'm doing very well, thank you!",
            "train_detail": [{"begin_offset": b, "end_offset": e, "train": t} for b, e, t in details],
        },
        "rejected": {"role": "assistant", "content": "Go away."},
    }


def test_the_end_offset_of_a_train_detail_is_inclusive():
    """axolotl's own example text: 31 characters, the last is 30. "doing very" is [4, 13] there, [4, 14) here."""
    record = parse_train_detail(train_detail((0, 3, False), (4, 13, True), (14, 30, False)))
    assert record.chosen[4:14] == "doing very"
    assert record.chosen_spans == (Span(4, 14),)
    assert record.rejected_spans == ()
    assert parse_train_detail(train_detail((0, 30, True))).chosen_spans == (Span(0, 31),)


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ([(0, 31, True)], ("FP041", "chosen.train_detail[0]")),
        ([(5, 3, True)], ("FP042", "chosen.train_detail[0]")),
        ([(0, 4, True), (4, 6, True)], ("FP043", "chosen.train_detail")),
        ([(0, 4, False)], ("FP042", "chosen.train_detail")),
        ([(0, 4, 1)], ("FP085", "chosen.train_detail[0]")),
        ([("0", 4, True)], ("FP085", "chosen.train_detail[0]")),
        ([], ("FP042", "chosen.train_detail")),
    ],
)
def test_a_bad_train_detail_is_named(details, expected):
    assert codes(parse_train_detail(train_detail(*details))) == [expected]


def test_a_train_detail_row_without_a_rejected_message_is_a_problem():
    row = train_detail((0, 3, True))
    del row["rejected"]
    assert codes(parse_train_detail(row)) == [("FP010", "rejected")]


SAMPLES = [
    {"query_id": "1", "query": "\n\nHuman: q\n\nAssistant:", "sample_0": " a", "sample_10": " c", "sample_2": " b"},
    {"query_id": 2, "query": "p", "sample_0": "x\nHuman: and then"},
]
GOLDEN = [
    {"query_id": "2", "query": "p", "golden": "gold"},
    {"query_id": 1, "query": "\n\nHuman: q\n\nAssistant:", "golden": " best"},
]


def read_apo(tmp_path, samples, golden, **options):
    write_jsonl(tmp_path / "samples.json", samples)
    write_jsonl(tmp_path / "golden.json", golden)
    rows = list(read_apo_samples(tmp_path / "samples.json", tmp_path / "golden.json", **options))
    records = [record for row in rows for record in row.records]
    found = [(problem.code, problem.line, problem.field) for row in rows for problem in row.problems]
    return records, found


def test_each_apo_sample_is_ranked_below_the_golden_answer(tmp_path):
    records, found = read_apo(tmp_path, SAMPLES, GOLDEN)
    assert found == []
    expected = [("1:sample_0", "best", "a"), ("1:sample_2", "best", "b"), ("1:sample_10", "best", "c")]
    assert [(record.id, *record.responses) for record in records] == [*expected, ("2:sample_0", "gold", "x")]
    assert {(record.scores, record.kind) for record in records} == {((1.0, 0.0), "apo")}
    assert records[0].prompt == (Message("user", "q"),)


def test_a_sample_that_goes_on_as_human_is_cut_unless_it_shall_not(tmp_path):
    records, _ = read_apo(tmp_path, SAMPLES, GOLDEN, cut=False)
    assert records[-1].responses == ("gold", "x\nHuman: and then")


@pytest.mark.parametrize(
    ("samples", "golden", "expected"),
    [
        (SAMPLES, GOLDEN[:1], [("FP067", 1, "query_id")]),
        (SAMPLES[:1], GOLDEN, [("FP067", 1, "query_id")]),
        (SAMPLES, [GOLDEN[0] | {"query": "other"}, GOLDEN[1]], [("FP067", 2, "query")]),
        (SAMPLES, [*GOLDEN, GOLDEN[0]], [("FP060", 3, "query_id")]),
        ([SAMPLES[0] | {"sample_2": ""}, SAMPLES[1]], GOLDEN, [("FP012", 1, "sample_2"), ("FP067", 2, "query_id")]),
        ([SAMPLES[0], SAMPLES[1] | {"sample_0": "gold"}], GOLDEN, [("FP054", 2, "sample_0")]),
        ([SAMPLES[0], {"query_id": 2, "query": "p"}], GOLDEN, [("FP010", 2, "sample_0"), ("FP067", 1, "query_id")]),
    ],
)
def test_samples_and_golden_answers_that_do_not_match_are_named(tmp_path, samples, golden, expected):
    assert read_apo(tmp_path, samples, golden)[1] == expected


def words(text):
    """A tokenizer whose tokens are the words with the space before them; ids are their lengths."""
    spans = [match.span() for match in re.finditer(r"\s*\S+", text)]
    return [end - start for start, end in spans], spans


def sepo_row(**changes):
    """Chosen: 5 words and EOS, positions 0 and 2 are words 1 and 3. Rejected: 3 and EOS, position 1 is word 2."""
    return {
        "prompt": 'Say "hi",\nplease',
        "chosen_response": "Well, hi to you \\o/</s>",
        "rejected_response": "No, never mind</s>",
        "chosen_selected_args": "2,0",
        "rejected_selected_args": "0",
        "chosen_unselected_args": "1",
        "rejected_unselected_args": "1",
        "chosen_selected_ids": "1,2",
        "rejected_selected_ids": "1",
        "chosen_unselected_ids": "1",
        "rejected_unselected_ids": "1",
        "chosen_responses_ids": "5,3,3,4,4,2",
        "rejected_responses_ids": "3,6,5,2",
    } | changes


def write_sepo(path, rows):
    """As pandas' to_csv(index=False, escapechar="\\\\") writes."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*sepo_row()], escapechar="\\", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_sepo(path, **options):
    rows = list(read_sepo_csv(path, words, **options))
    records = [record for row in rows for record in row.records]
    return records, [(problem.code, problem.line, problem.field) for row in rows for problem in row.problems]


def test_selected_positions_name_the_next_token_of_the_response(tmp_path):
    """ "Well,| hi| to| you| \\o/": words 1 and 3 are [5,8) and [11,15); "No,| never| mind": word 2 is [9,14)."""
    write_sepo(tmp_path / "top_0.3.csv", [sepo_row()])
    (record,), found = read_sepo(tmp_path / "top_0.3.csv")
    assert found == []
    expected = (Span(5, 8), Span(11, 15)), (Span(9, 14),)
    assert (record.chosen_spans, record.rejected_spans) == expected
    assert (record.chosen, record.rejected, record.side) == ("Well, hi to you \\o/", "No, never mind", 0)
    assert record.prompt == (Message("user", 'Say "hi",\nplease'),)


def test_a_selected_eos_has_no_characters_and_neighbours_become_one_span(tmp_path):
    write_sepo(tmp_path / "a.csv", [sepo_row(chosen_selected_args="4,2,3")])
    (record,), _ = read_sepo(tmp_path / "a.csv")
    assert record.chosen_spans == (Span(11, 19),)


def test_only_the_first_token_may_differ_as_it_does_without_the_prompt_before_it(tmp_path):
    write_sepo(tmp_path / "a.csv", [sepo_row(chosen_responses_ids="99,3,3,4,4,2")])
    assert len(read_sepo(tmp_path / "a.csv")[0]) == 1


def test_a_response_that_the_scoring_cut_off_is_read_up_to_there(tmp_path):
    """Of five words the first two were scored; the third became EOS."""
    write_sepo(tmp_path / "a.csv", [sepo_row(chosen_responses_ids="5,3,2", chosen_selected_args="0")])
    (record,), _ = read_sepo(tmp_path / "a.csv")
    assert (record.chosen, record.chosen_spans) == ("Well, hi to you \\o/", (Span(5, 8),))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"chosen_responses_ids": "5,3,3,4,9,2"}, ("FP084", "chosen_selected_args")),
        ({"chosen_selected_args": "5"}, ("FP084", "chosen_selected_args")),
        ({"chosen_selected_args": "4"}, ("FP042", "chosen_selected_args")),
        ({"chosen_selected_args": "1,x"}, ("FP011", "chosen_selected_args")),
        ({"chosen_selected_args": ""}, ("FP011", "chosen_selected_args")),
        ({"rejected_responses_ids": "-1,2"}, ("FP011", "rejected_responses_ids")),
        ({"rejected_response": "No, never mind"}, ("FP084", "rejected_response")),
        ({"prompt": " "}, ("FP012", "prompt")),
    ],
)
def test_a_bad_sepo_row_is_named_and_the_next_one_read(tmp_path, changes, expected):
    """The prompt has a line break, so the first row is in lines 2 and 3, the second starts in line 4."""
    write_sepo(tmp_path / "a.csv", [sepo_row(), sepo_row(**changes), sepo_row(prompt="last")])
    records, found = read_sepo(tmp_path / "a.csv")
    assert found == [(expected[0], 4, expected[1])]
    assert len(records) == 2


def test_a_sepo_file_without_a_column_or_with_a_short_row_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen_response\nq,a\n")
    assert read_sepo(path) == ([], [("FP010", 1, "chosen_selected_args")])
    write_sepo(path, [])
    path.write_text(path.read_text() + "q,a</s>\n")
    assert read_sepo(path)[1] == [("FP083", 2, "")]
    path.write_bytes(path.read_bytes() + b"\xff\n")
    assert ("FP003", 0, "") in read_sepo(path)[1]
    assert [code for code, _, _ in read_sepo(tmp_path / "missing.csv")[1]] == ["FP001"]


def test_every_problem_of_a_released_row_prints_with_its_place():
    (problem,) = parse_granular(GRANULAR | {"masked_region": 3}, file="granular.json", line=12)
    assert isinstance(problem, Problem)
    assert str(problem) == "FP080 granular.json:12 masked_region: expected [start, end, flag], three integers"
    assert json.dumps(problem.message)
