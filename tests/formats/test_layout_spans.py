"""Layouts with spans and steps: each span lies on the text that the source marks, and what has no place is noted."""

from __future__ import annotations

import json
import re

import pytest
from finepref.formats import layouts
from finepref.formats.bad_rows import BadRows
from finepref.formats.check import check_file, read_records
from finepref.formats.jsonl import read_rows, write_jsonl
from finepref.formats.layout_table import recognise
from finepref.formats.problems import BadData
from finepref.formats.records import Feedback, Message, Pair, SpanPair, parse, to_row
from hypothesis import given
from hypothesis import strategies as st

Q = "Which river runs through Cologne?"
USER = (Message("user", Q),)


def read(row, layout):
    assert recognise(row) in (layout, layout.removesuffix("_question")), recognise(row)
    return layouts.reader(layout, file="f")(row, line=3)


def record_of(row, layout):
    parsed = read(row, layout)
    assert not isinstance(parsed, list), parsed
    (record,) = parsed if isinstance(parsed, tuple) else (parsed,)
    return record


def notes(row, layout):
    parsed = read(row, layout)
    assert isinstance(parsed, layouts.Noted), parsed
    return [(note.code, note.field) for note in parsed.notes]


def problems(row, layout):
    parsed = read(row, layout)
    assert isinstance(parsed, list), parsed
    return [(problem.code, problem.field) for problem in parsed]


def texts(text, spans):
    return [text[span.start : span.end] for span in spans]


def again(record):
    """The record that its own row gives."""
    row = json.loads(json.dumps(to_row(record)))
    return parse(row, {SpanPair: "span_pair", Feedback: "feedback", Pair: "pair"}[type(record)])


# ---- FineGrainedRLHF


def answer(*marked, better="It is the Rhine.", lacking=(), response="It is the Elbe, I think."):
    errors = [
        {"error type": "Wrong-Grounding", "explanation": "", "start": start, "end": end} for start, end in marked
    ]
    return {
        "question": Q,
        "passages": [["Cologne", "Cologne lies on the Rhine.", "It has a cathedral."], ["Elbe", "It runs east."]],
        "gold": "The Rhine.",
        "prediction 1": response,
        "prediction 2": "No idea.",
        "feedback": {"errors": errors, "missing-info": [*lacking], "corrected-prediction": better},
        "preference": [0] * 6,
    }


def test_errors_that_people_marked_are_the_spans_of_the_response_below_its_correction():
    record = record_of(answer((16, 23), (10, 14)), "finegrained_rlhf")
    assert (record.chosen, record.rejected) == ("It is the Rhine.", "It is the Elbe, I think.")
    assert texts(record.rejected, record.rejected_spans) == ["Elbe", "I think"]
    assert record.chosen_spans == ()
    context = "Cologne\nCologne lies on the Rhine. It has a cathedral.\n\nElbe\nIt runs east."
    assert record.prompt == (Message("user", f"{Q}\n{context}"),)
    assert record_of(answer((10, 14)), "finegrained_rlhf_question").prompt == USER


def test_errors_that_overlap_are_one_span():
    record = record_of(answer((10, 14), (12, 23), (0, 2)), "finegrained_rlhf")
    assert texts(record.rejected, record.rejected_spans) == ["It", "Elbe, I think"]


def test_what_an_answer_lacks_and_marks_outside_of_it_are_noted_and_the_row_is_read():
    lacking = [{"error type": "Missing-Answer", "passage_id": 1, "sentence_id": [0]}]
    row = answer((10, 14), (20, 99), (5, 5), lacking=lacking)
    assert notes(row, "finegrained_rlhf") == [
        ("FP100", "feedback.errors[1]"),
        ("FP100", "feedback.errors[2]"),
        ("FP100", "feedback.missing-info[0]"),
    ]
    record = record_of(row, "finegrained_rlhf")
    assert texts(record.rejected, record.rejected_spans) == ["Elbe"]


def test_without_a_correction_the_reference_answer_is_the_better_one():
    row = answer((10, 14), better=" ")
    assert notes(row, "finegrained_rlhf") == [("FP103", "gold")]
    assert record_of(row, "finegrained_rlhf").chosen == "The Rhine."
    assert problems(answer(better=""), "finegrained_rlhf") == [("FP120", "feedback.corrected-prediction")]
    del row["gold"]
    assert problems(row, "finegrained_rlhf") == [("FP010", "gold")]


def test_an_answer_without_a_mark_of_its_own_is_one_span_as_a_whole():
    """A stage that trains on spans alone would else refuse it (FP210), though its correction is better."""
    row = answer(lacking=[{"error type": "Missing-Answer", "passage_id": 1, "sentence_id": [0]}])
    record = record_of(row, "finegrained_rlhf")
    assert texts(record.rejected, record.rejected_spans) == [record.rejected]
    assert notes(row, "finegrained_rlhf") == [("FP100", "feedback.missing-info[0]"), ("FP122", "feedback.errors")]
    assert notes(answer((90, 99)), "finegrained_rlhf")[-1] == ("FP122", "feedback.errors")


def test_a_correction_that_changes_nothing_is_none_and_without_an_error_the_row_gives_no_pair():
    same = {"response": "It is the Elbe, I think.", "better": "It is the Elbe, I think. "}
    for layout in ("finegrained_rlhf", "finegrained_rlhf_question"):
        assert problems(answer(**same), layout) == [("FP120", "feedback.corrected-prediction")]
        record = record_of(answer((10, 14), **same), layout)
        assert (record.chosen, texts(record.rejected, record.rejected_spans)) == ("The Rhine.", ["Elbe"])
    assert notes(answer((10, 14), **same), "finegrained_rlhf") == [("FP103", "gold")]


# ---- PRM800K, Math-Shepherd, ProcessBench, Math-Step-DPO


def test_a_wrong_step_without_a_right_one_beside_it_is_noted():
    def step(*completions):
        return {"completions": [{"text": text, "rating": rating} for text, rating in completions]}

    row = {"question": {"problem": Q}, "label": {"steps": [step(("a", 1), ("x", -1)), step(("y", -1), ("z", -1))]}}
    assert record_of(row, "prm800k").rejected == "x"
    assert notes(row, "prm800k") == [
        ("FP102", "label.steps[1].completions[0]"),
        ("FP102", "label.steps[1].completions[1]"),
    ]


def test_marked_steps_are_feedback_of_the_whole_solution():
    row = {
        "input": f"{Q} Step 1: Look. ки\nStep 2: The Rhine. ки",
        "label": f"{Q} Step 1: Look. +\nStep 2: The Rhine. +",
    }
    record = record_of(row | {"task": "MATH"}, "math_shepherd")
    assert (record.prompt, record.response, record.label) == (USER, "Step 1: Look.\nStep 2: The Rhine.", True)
    wrong = row | {"label": row["label"][:-1] + "-", "task": "MATH"}
    assert record_of(wrong, "math_shepherd").label is False
    assert notes(wrong, "math_shepherd") == [("FP101", "label")]


@pytest.mark.parametrize("label", ["other", f"{Q} Step 1: Look. +", f"{Q} Step 1: Look. ?\nStep 2: The Rhine. +"])
def test_marks_that_do_not_fit_the_steps_are_refused(label):
    row = {"input": f"{Q} Step 1: Look. ки\nStep 2: The Rhine. ки", "label": label, "task": "MATH"}
    assert problems(row, "math_shepherd") == [("FP104", "label")]


def test_the_first_wrong_step_makes_the_solution_undesirable():
    row = {"id": "g-0", "problem": Q, "steps": ["Look.", "The Elbe."], "final_answer_correct": False, "label": 1}
    record = record_of(row, "processbench")
    assert (record.id, record.prompt, record.response, record.label) == ("g-0", USER, "Look.\n\nThe Elbe.", False)
    assert notes(row, "processbench") == [("FP101", "label")]
    assert record_of(row | {"label": -1}, "processbench").label is True
    for label in (2, -2):
        assert problems(row | {"label": label}, "processbench") == [("FP104", "label")]


def test_the_step_after_the_common_ones_is_the_span():
    row = {
        "prompt": Q,
        "initial_reason_steps": "Step 1: Look.\nStep 2:",
        "chosen": " The Rhine.",
        "rejected": " The Elbe.",
    }
    record = record_of(row, "math_step_dpo")
    assert record.chosen == "Step 1: Look.\nStep 2: The Rhine."
    assert texts(record.chosen, record.chosen_spans) == [" The Rhine."]
    assert texts(record.rejected, record.rejected_spans) == [" The Elbe."]
    assert problems(row | {"rejected": ""}, "math_step_dpo")[0] == ("FP012", "rejected")


# ---- FAVA


def fava(completion, text, asked="Please identify all the errors in the following text and suggest edits:"):
    return {"prompt": f"Reference [1]: The Rhine.\n{asked}\n[Text] {text}\n[Edited] ", "completion": completion}


def test_an_edited_text_is_the_pair_of_the_texts_after_and_before_the_edits():
    completion = (
        "It is <entity><mark>the Rhine</mark><delete>the Elbe</delete></entity>.<invented> It sings.</invented>"
    )
    record = record_of(fava(completion, "It is the Elbe. It sings."), "fava")
    assert record.prompt == (Message("user", "Reference [1]: The Rhine."),)
    assert (record.chosen, record.rejected) == ("It is the Rhine.", "It is the Elbe. It sings.")
    assert texts(record.chosen, record.chosen_spans) == ["the Rhine"]
    assert texts(record.rejected, record.rejected_spans) == ["the Elbe", " It sings."]


@pytest.mark.parametrize(
    ("completion", "text", "expected"),
    [
        ("It is <mark>the Rhine</mark>.", "Quite another text.", ("FP105", "completion")),
        ("It is <delete>the Elbe.", "It is the Elbe.", ("FP105", "completion")),
        ("It is <delete>the Elbe</delete></entity>.", "It is the Elbe.", ("FP105", "completion")),
    ],
)
def test_edits_that_do_not_give_the_text_are_refused(completion, text, expected):
    assert problems(fava(completion, text), "fava") == [expected]


def test_a_text_without_edits_is_no_pair_and_other_prompts_with_completions_are_not_taken_for_one():
    parsed = layouts.reader("fava", file="f")(fava("It is the Rhine.", "It is the Rhine."), line=1)
    assert [each.code for each in parsed] == ["FP120"]
    assert recognise({"prompt": Q, "completion": "The Rhine."}) == ""


def test_the_layout_of_edited_texts_is_told_by_the_row_that_has_an_edit_not_by_the_first(tmp_path):
    rows = [fava("It is.", "It is."), fava("It <delete>is</delete> was.", "It is was.")]
    write_jsonl(tmp_path / "x.jsonl", rows)
    votes = layouts.Votes().add("f", read_rows(tmp_path / "x.jsonl"))
    assert votes.counts == {"fava": 1}
    assert votes.first == {"fava": "f:2"}


# ---- ANAH, HaluEval, xCOMET


def anah(chosen, rejected):
    row = {"prompt": [{"role": "user", "content": Q}]}
    for side, parts in (("chosen", chosen), ("rejected", rejected)):
        row[side] = [{"role": "assistant", "content": "".join(text for text, _ in parts)}]
        row[f"{side}_item"] = {"sents": [text for text, _ in parts], "type": [kind for _, kind in parts]}
    return row


def test_sentences_of_the_wrong_kind_are_left_out_of_the_spans():
    good = [("It is the Rhine.", "no_hallucination"), (" It is short.", "hallucination"), (" Bye.", "no_fact")]
    bad = [("Well.", "no_fact"), (" It is wet.", "no_hallucination"), (" It is the Elbe.", "hallucination")]
    record = record_of(anah(good, bad), "anah")
    assert record.prompt == USER
    assert texts(record.chosen, record.chosen_spans) == ["It is the Rhine.", " Bye."]
    assert texts(record.rejected, record.rejected_spans) == ["Well.", " It is the Elbe."]


def test_a_response_of_which_every_sentence_is_left_out_is_refused_not_taken_as_a_whole():
    good, bad = [("It is the Rhine.", "no_hallucination")], [("It is the Elbe.", "hallucination")]
    record = record_of(anah(good, bad), "anah")
    assert (record.chosen_spans, record.rejected_spans) == ((), ())  # nothing is left out, so all of it counts
    assert problems(anah(good, [("It is wet.", "no_hallucination")]), "anah") == [("FP107", "rejected_item")]
    assert problems(anah([("Elbe.", "hallucination")], bad), "anah") == [("FP107", "chosen_item")]


def test_sentences_that_are_not_in_the_response_are_refused():
    row = anah([("It is the Rhine.", "no_hallucination")], [("It is the Elbe.", "hallucination")])
    row["chosen_item"]["sents"] = ["It is the Main."]
    assert problems(row, "anah") == [("FP106", "chosen_item.sents[0]")]
    row["chosen_item"]["type"] = []
    assert problems(row, "anah") == [("FP106", "chosen_item")]


def test_a_judged_response_is_feedback_and_its_spans_are_noted():
    row = {"ID": "7", "user_query": Q, "chatgpt_response": "It is the Elbe.", "hallucination": "yes"}
    row |= {"hallucination_spans": ["the Elbe", "the Oder"]}
    record = record_of(row, "halueval")
    assert (record.id, record.prompt, record.response, record.label) == ("7", USER, "It is the Elbe.", False)
    assert notes(row, "halueval") == [("FP101", "hallucination_spans[0]"), ("FP100", "hallucination_spans[1]")]
    assert record_of(row | {"hallucination": "no", "hallucination_spans": []}, "halueval").label is True
    assert problems(row | {"hallucination": "maybe"}, "halueval") == [("FP096", "hallucination")]


def test_an_id_of_halueval_that_is_no_number_is_not_taken():
    """A few rows of the public file have an empty ID, or the heading of its column."""
    row = {"ID": "7", "user_query": Q, "chatgpt_response": "It is the Rhine.", "hallucination": "no"}
    without = record_of({name: value for name, value in row.items() if name != "ID"}, "halueval")
    for wrong in ("", "ID"):
        assert record_of(row | {"ID": wrong}, "halueval") == without


def test_the_pairs_of_halueval_have_their_knowledge_before_the_question():
    row = {"knowledge": "The Rhine is long.", "question": Q, "right_answer": "Rhine", "hallucinated_answer": "Elbe"}
    record = record_of(row, "halueval_qa")
    assert (record.prompt[0].content, record.chosen, record.rejected) == (f"The Rhine is long.\n{Q}", "Rhine", "Elbe")
    row = {"document": "The Rhine.", "right_summary": "Rhine", "hallucinated_summary": "Elbe"}
    assert record_of(row, "halueval_summarization").prompt == (Message("user", "The Rhine."),)


def test_the_dialogues_of_halueval_are_turns():
    row = {"knowledge": "The Rhine is long.", "right_response": "Rhine", "hallucinated_response": "Elbe"}
    row["dialogue_history"] = f"[Human]: Hello. [Assistant]: Hi! [Human]: {Q}"
    record = record_of(row, "halueval_dialogue")
    assert record.prompt == (Message("user", "The Rhine is long.\nHello."), Message("assistant", "Hi!"), *USER)
    assert (record.chosen, record.rejected) == ("Rhine", "Elbe")
    for history, expected in (
        ("Hello.", ("FP108", "dialogue_history")),
        (f"[Human]: a [Human]: {Q}", ("FP021", "dialogue_history[1]")),
        ("", ("FP012", "dialogue_history")),
    ):
        assert problems(row | {"dialogue_history": history}, "halueval_dialogue")[0] == expected


def translation(*errors):
    return {"src": "Es ist der Rhein.", "mt": "It is the Elbe.", "ref": "It is the Rhine.", "error_spans": [*errors]}


def test_marked_errors_of_a_translation_are_placed_by_offset_else_by_their_text():
    elbe = {"text": "Elbe", "confidence": 0.4, "severity": "major", "start": 10, "end": 14}
    for error in (elbe, elbe | {"start": 0, "end": 4}, elbe | {"text": " Elbe"}):
        record = record_of(translation(error), "xcomet")
        assert texts(record.rejected, record.rejected_spans) == ["Elbe"]
        assert (record.chosen, record.prompt) == ("It is the Rhine.", (Message("user", "Es ist der Rhein."),))
    assert notes(translation(elbe, elbe | {"text": "Oder"}), "xcomet") == [("FP100", "error_spans[1]")]
    assert problems(translation(), "xcomet") == [("FP120", "error_spans")]


def test_scores_of_the_comet_command_are_read_and_a_translation_without_errors_gives_no_pair(tmp_path):
    """`comet-score --to_json` writes `errors`, and leaves them out of a row without any."""
    elbe = {"text": "Elbe", "confidence": 0.4, "severity": "major", "start": 10, "end": 14}
    right = {"src": "Es ist der Rhein.", "mt": "It's the Rhine.", "ref": "It is the Rhine.", "COMET": 0.99}
    row = right | {"mt": "It is the Elbe.", "errors": [elbe]}
    write_jsonl(tmp_path / "x.jsonl", [right, row])
    assert layouts.guess([tmp_path / "x.jsonl"]) == "xcomet"
    parse_row = layouts.reader("xcomet", file="f")
    assert [each.code for each in parse_row(right, line=1)] == ["FP120"]
    assert texts(row["mt"], parse_row(row, line=2).rejected_spans) == ["Elbe"]


# ---- for random rows

WORDS = st.lists(st.sampled_from(["Rhine", "Elbe", "é", "𝔘", "two words", "x."]), min_size=1, max_size=6)


@given(WORDS, st.data())
def test_each_span_lies_on_the_text_that_the_source_marks(words, data):
    """The marked words of a random response, in each layout that has offsets or texts of spans."""
    wrong = data.draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words)).filter(any))
    starts = [len(" ".join([*words[:i], ""])) for i in range(len(words))]
    response = " ".join(words)
    marked = [word for word, bad in zip(words, wrong, strict=True) if bad]
    places = [(start, start + len(word)) for start, word, bad in zip(starts, words, wrong, strict=True) if bad]
    fine = answer(*data.draw(st.permutations(places)), response=response)
    errors = [{"start": start, "end": end, "text": response[start:end]} for start, end in places]
    edits = " ".join(f"<delete>{word}</delete>" if bad else word for word, bad in zip(words, wrong, strict=True))
    rows = {
        "finegrained_rlhf": fine,
        "xcomet": translation(*errors) | {"mt": response},
        "fava": fava(edits + " <mark>End</mark>", response),
    }
    for layout, row in rows.items():
        record = record_of(row, layout)
        assert texts(record.rejected, record.rejected_spans) == marked
        assert again(record) == record


@given(st.lists(st.tuples(WORDS, st.sampled_from(["hallucination", "no_hallucination", "no_fact"])), min_size=1))
def test_the_sentences_that_count_and_no_others_are_in_spans(sentences):
    parts = [(" ".join(words) + ". ", kind) for words, kind in sentences]
    record = read(anah([*parts, ("End.", "no_fact")], [("Elbe.", "hallucination")]), "anah")
    kept = "".join(text for text, kind in parts if kind != "hallucination") + "End."
    counted = "".join(texts(record.chosen, record.chosen_spans)) or record.chosen
    assert counted.split() == kept.split()
    assert again(record) == record


@given(st.lists(st.tuples(WORDS, st.booleans()), min_size=1))
def test_the_response_of_marked_steps_is_the_text_without_its_marks(steps):
    lines = [f"Step {i}: {' '.join(words)} " for i, (words, _) in enumerate(steps, 1)]
    row = {
        "input": Q + " " + "\n".join(f"{line}ки" for line in lines),
        "label": Q + " " + "\n".join(line + "-+"[good] for line, (_, good) in zip(lines, steps, strict=True)),
        "task": "GSM8K",
    }
    record = record_of(row, "math_shepherd")
    assert record.response.split("\n") == [line.rstrip() for line in lines]
    assert record.label == all(good for _, good in steps)
    assert again(record) == record


# ---- counts


@pytest.mark.parametrize("jobs", [1, 2])
def test_rows_that_give_no_pair_are_left_out_and_counted_and_are_no_bad_rows(tmp_path, jobs):
    right = [answer(better="", response=f"It is the Rhine {i}.") for i in range(40)]
    wrong = [answer((10, 14), response=f"It is the Elbe {i}.") for i in range(20)]
    write_jsonl(tmp_path / "x.jsonl", right + wrong)
    report = check_file(
        tmp_path / "x.jsonl", "finegrained_rlhf", jobs=jobs, chunk_size=2000, rejected_path=tmp_path / "bad.jsonl"
    )
    assert (report.rows, report.rejected, report.total_problems) == (60, 0, 0)
    (note,) = report.notes
    assert (note.first.code, note.count) == ("FP120", 40)
    assert (tmp_path / "bad.jsonl").read_bytes() == b""
    assert report.passes()


def test_a_run_that_takes_no_bad_row_takes_a_file_with_rows_that_give_no_pair_and_names_them(tmp_path):
    rows = [answer(better=""), answer((10, 14))]
    write_jsonl(tmp_path / "x.jsonl", rows)
    bad = BadRows()
    (record,) = read_records(tmp_path / "x.jsonl", "finegrained_rlhf", bad_rows=bad)
    assert texts(record.rejected, record.rejected_spans) == ["Elbe"]
    assert (bad.read, dict(bad.codes), bad.rejected[0]["line"]) == (2, {"FP120": 1}, 1)
    write_jsonl(tmp_path / "x.jsonl", rows[:1])
    with pytest.raises(BadData, match="FP120"):  # no row is left
        read_records(tmp_path / "x.jsonl", "finegrained_rlhf")
    write_jsonl(tmp_path / "x.jsonl", [*rows, answer((10, 14), better=3)])
    with pytest.raises(BadData) as error:
        read_records(tmp_path / "x.jsonl", "finegrained_rlhf")
    assert [problem.code for problem in error.value.problems] == ["FP011"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_notes_are_counted_beside_the_problems_and_do_not_make_a_row_a_bad_one(tmp_path, jobs):
    rows = [answer((10, 14), (50 + i, 99), response=f"It is the Elbe {i}.") for i in range(40)]
    write_jsonl(tmp_path / "x.jsonl", rows)
    report = check_file(tmp_path / "x.jsonl", "finegrained_rlhf", jobs=jobs, chunk_size=2000)
    assert (report.rows, report.rejected, report.total_problems) == (40, 0, 0)
    (note,) = report.notes
    assert (note.first.code, note.count, note.places[0]) == ("FP100", 40, f"{tmp_path / 'x.jsonl'}:1")
    assert report.passes()


def test_a_note_says_what_has_no_place():
    (note,) = read(answer((10, 14), (20, 99)), "finegrained_rlhf").notes
    assert re.fullmatch(r"FP100 f:3 feedback.errors\[1\]: the mark is on none of the 24 characters .*", str(note))
