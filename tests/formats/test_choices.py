"""Multiple-choice questions: rows that are torn, files by subject, and questions in texts."""

from __future__ import annotations

import json

import pytest
from finepref.cli import app
from finepref.formats import layouts
from finepref.formats.choice_text import Asked, parse_choice
from finepref.formats.r_tuning import read_r_tuning
from typer.testing import CliRunner

Q, CITIES = "What is the capital of France?", ["Lyon", "Paris", "Nice"]


def read(row, layout):
    return layouts.reader(layout, file="f")(row, line=7)


def problems(row, layout):
    parsed = read(row, layout)
    assert isinstance(parsed, list), parsed
    return [(each.code, each.place, each.field) for each in parsed]


def test_whatever_labels_the_source_has_the_options_are_lettered_in_their_order():
    for row, layout in [
        ({"question": Q, "choices": CITIES, "answer": 1}, "mmlu"),
        ({"question": Q, "choices": CITIES, "answer": "B"}, "mmlu"),
        ({"question": Q, "A": "Lyon", "B": "Paris", "C": "Nice", "answer": "b"}, "mmlu_columns"),
        ({"question": Q, "choices": {"text": CITIES, "label": ["1", "2", "3"]}, "answerKey": "2"}, "arc"),
        ({"question": Q, "options": {"x": "Lyon", "y": "Paris", "z": "Nice"}, "answer": "y"}, "choice"),
        ({"question": Q, "options": CITIES, "answer": "paris"}, "choice"),
    ]:
        found = read(row, layout)
        assert (found.options, found.answer) == (tuple(CITIES), "B")
        assert found.prompt[0].content == f"{Q}\nA. Lyon\nB. Paris\nC. Nice"


@pytest.mark.parametrize(
    ("row", "layout", "expected"),
    [
        ({"question": Q, "choices": CITIES, "answer": 3}, "mmlu", ("FP281", "f:7", "answer")),
        ({"question": Q, "choices": CITIES, "answer": "D"}, "mmlu", ("FP281", "f:7", "answer")),
        ({"question": Q, "choices": ["2", "1"], "answer": "1"}, "mmlu", None),
        ({"question": Q, "choices": ["1", "2"], "answer": "1"}, "mmlu", ("FP281", "f:7", "answer")),
        ({"question": Q, "choices": ["Lyon"], "answer": 0}, "mmlu", ("FP280", "f:7", "choices")),
        ({"question": Q, "choices": ["Lyon", " lyon"], "answer": 0}, "mmlu", ("FP280", "f:7", "choices")),
        ({"question": Q, "choices": ["Lyon", ""], "answer": 0}, "mmlu", ("FP012", "f:7", "choices[1]")),
        ({"question": Q, "A": "Lyon", "B": "", "answer": "A"}, "mmlu_columns", ("FP012", "f:7", "B")),
        ({"question": Q, "A": "Lyon", "answer": "A"}, "mmlu_columns", ("FP280", "f:7", "A")),
        (
            {"question": Q, "choices": {"text": CITIES, "label": ["1", "2"]}, "answerKey": "1"},
            "arc",
            ("FP282", "f:7", "choices"),
        ),
        (
            {"question": Q, "choices": {"text": CITIES, "label": ["1", "2", "2"]}, "answerKey": "1"},
            "arc",
            ("FP282", "f:7", "choices"),
        ),
        ({"question": Q, "options": CITIES, "history": [["a", "b"]]}, "choice", ("FP283", "f:7", "history")),
    ],
)
def test_a_torn_row_is_told_with_its_line_and_field_and_the_answer_is_never_guessed(row, layout, expected):
    """["2", "1"] with "1": by place and by text it is the second option. ["1", "2"] with "1": the two differ."""
    if expected is None:
        assert read(row, layout).answer == "B"
    else:
        assert problems(row, layout) == [expected]


def test_a_question_without_an_answer_is_read_and_its_answer_is_unknown():
    for row, layout in [
        ({"question": Q, "choices": {"text": CITIES, "label": [*"ABC"]}, "answerKey": ""}, "arc"),
        ({"question": Q, "options": CITIES}, "choice"),
    ]:
        assert read(row, layout).answer == ""


def test_files_by_subject_tell_the_line_and_the_item_of_what_is_torn(tmp_path):
    """Items of R-Tuning and of ReverseGen's release side by side; the bad ones are in lines 4, 5 and 8."""
    path = tmp_path / "questions.json"
    path.write_text(
        '{\n "law": [\n  ["Q?", "one", "two", "B"],\n  ["Q?", "one", "two", "C"],\n  ["Q?", "one"],\n'
        '  "Why?\\nA. one\\nB. two\\nAnswer:A."\n ],\n "art": "none",\n "a b": [["R?", "x", "y", "z", "A"]]\n}\n'
    )
    found = [*read_r_tuning(path)]
    told = [(each.code, each.place, each.field) for row in found for each in row.problems]
    assert told == [
        ("FP281", f"{path}:4", "law[1][3]"),
        ("FP280", f"{path}:5", "law[2]"),
        ("FP284", f"{path}:8", "art"),
    ]
    good = [(each.question, each.answer, each.subject) for row in found for each in row.records]
    assert good == [("Q?", "B", "law"), ("Why?", "A", "law"), ("R?", "A", "a b")]


@pytest.mark.parametrize(
    ("content", "code"),
    [('{"a": [["Q?"', "FP004"), ("[1]", "FP005"), ("{}", "FP002"), ('{"a": [], "a": []}', "FP006")],
)
def test_a_file_by_subject_that_is_no_such_file_is_one_problem(tmp_path, content, code):
    path = tmp_path / "questions.json"
    path.write_text(content)
    (row,) = read_r_tuning(path)
    assert [each.code for each in row.problems] == [code]


def test_files_of_questions_become_rows_of_our_format_and_are_checked(tmp_path):
    source, output = tmp_path / "questions.csv", tmp_path / "out.jsonl"
    source.write_text(f"question,A,B,C,answer,subject\n{Q},Lyon,Paris,Nice,B,geography\n1 + 1?,1,2,3,B,sums\n")
    run = CliRunner().invoke(app, ["convert", "--to", "choice", str(source), str(output)])
    assert run.exit_code == 0, run.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["answer"] for row in rows] == ["B", "B"]
    assert rows[1]["options"] == {"A": "1", "B": "2", "C": "3"}
    assert CliRunner().invoke(app, ["validate", str(output)]).exit_code == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Why?\nA. one\nB. two", Asked("Why?", ("one", "two"))),
        ("Why?\nA) one\nB) two\nC) three", Asked("Why?", ("one", "two", "three"))),
        ("Why?\n(A) one\n(B) two", Asked("Why?", ("one", "two"))),
        ("Why?\n(a) one\n(b) two", Asked("Why?", ("one", "two"))),
        ("Why?\n\n- A. one\n- B. two\n", Asked("Why?", ("one", "two"))),
        ("Why?\n**A.** one\n**B.** two", Asked("Why?", ("one", "two"))),
        ("Why? A. one B. two C. three", Asked("Why?", ("one", "two", "three"))),
        ("Why? (A) one, (B) two", Asked("Why?", ("one", "two"))),
        ("Q4. Why?\nA. one\nB. two\nAnswer:B.", Asked("Why?", ("one", "two"), "B")),
        ("Why?\nA. one\nB. two\n\nThe correct answer is: (A) one", Asked("Why?", ("one", "two"), "A")),
        ("Which?\nA. Vitamin A\nB. Vitamin C", Asked("Which?", ("Vitamin A", "Vitamin C"))),
        ("It's (B).", "no options"),
        ("D. 80", "the options are not A, B, C, ... in order: D"),
        ("Why?", "no options"),
        ("A. one\nB. two", "no question before the options"),
        ("Why?\nA. one\nC. two", "the options are not A, B, C, ... in order: A, C"),
        ("Why?\nA. one\nB. two\nB. three", "the options are not A, B, C, ... in order: A, B, B"),
        ("Why?\nA. one\nB. One", "two options are equal"),
        ("Why?\nA. one\nB.", "an option is empty"),
        ("Why?\nA. one\nB. two\n\nHint: it is small.", "text after an option, in another line"),
        ("Why?\nA. one\nB. two\nAnswer: D", "the answer line names D, which is no option"),
    ],
)
def test_a_question_in_a_text_is_read_in_the_usual_spellings_or_refused_with_a_reason(text, expected):
    assert parse_choice(text) == expected
