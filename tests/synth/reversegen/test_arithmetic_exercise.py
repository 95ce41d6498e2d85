"""Arithmetic exercises read exactly, and judged by the last number of the answer."""

from __future__ import annotations

from fractions import Fraction

import pytest
from finepref.synth.judges import by_model, by_rule
from finepref.synth.reversegen.arithmetic_exercise import Exercise, exercise
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "expression", "value"),
    [
        ("What is 17 + 25?", "17 + 25", 42),
        ("What is the sum of 17 + 25?", "17 + 25", 42),
        ("Calculate 12 minus 5 plus 8", "12 - 5 + 8", 15),
        ("Compute 3 * (4 - 1).", "3 * (4 - 1)", 9),
        ("Evaluate: 3 x 4.", "3 x 4", 12),
        ("Solve 10 divided by 4.", "10 / 4", Fraction(5, 2)),
        ("7 multiplied by 8 =", "7 * 8", 56),
        ("what is 2 + 3 * 4 = ?", "2 + 3 * 4", 14),
        ("1.5 + 2.5", "1.5 + 2.5", 4),
    ],
)
def test_an_exercise_has_its_exact_value(text, expression, value):
    assert exercise(text) == Exercise(expression, Fraction(value))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("What is 5?", "not one computation"),
        ("What is 5 / 0?", "not one computation"),
        ("What is 3 apples + 4?", "not one computation"),
        ("What is 3 + 4? Or 5?", "not one computation"),
        ("What is $3 + 4%?", "not one computation"),
        ("What is x + 4?", "not one computation"),
        ("", "not one computation"),
        ("What is 3 + 4?\nWhat is 5 + 6?", "more than one line"),
        ("1 + 2 + 3 + 4", "more than 3 numbers"),
        ("12345 + 1", "a number of more than 4 digits"),
    ],
)
def test_what_does_not_fit_as_a_whole_is_no_exercise(text, reason):
    assert exercise(text) == reason


@given(st.integers(0, 999), st.sampled_from("+-*"), st.integers(0, 999), st.sampled_from("+-*"), st.integers(0, 99))
def test_the_value_is_that_of_python(a, first, b, second, c):
    text = f"{a} {first} {b} {second} {c}"
    assert exercise(f"What is {text}?").value == eval(text)


@pytest.mark.parametrize(
    ("answer", "response", "passed"),
    [
        ("42", "17 + 25 = 42.", True),
        ("42", "17+25=42", True),
        ("42", "42 is what 17 and 25 make, not 43", False),
        ("42", "17 + 25", False),
        ("-2", "It is -2", True),
        ("-2", "7 - 9 is −2.", True),
        ("-2", "It is 2", False),
        ("5", "7 - 5", True),
        ("-5", "7 - 5", False),
        ("1670", "It is 1,670.", True),
        ("5/2", "2.5", True),
        ("1/2", "1/2", True),
        ("1", "1/0", False),
        ("12", "x12", False),
        ("7", "I do not know.", False),
        ("seven", "7", None),
        ("7", None, None),
    ],
)
def test_the_last_number_is_the_answer(answer, response, passed):
    assert by_rule.number_answer({"answer": answer, "response": response}).passed is passed


def test_a_question_that_is_repeated_is_no_answer_though_it_has_the_right_value():
    row = {"answer": "911", "response": "The result of 689 + 222 is"}
    assert by_rule.math_answer(row).passed is True
    assert by_rule.number_answer(row).passed is False


@pytest.mark.parametrize("text", ["safe\nS1", "safe, or unsafe", "unsafe\nsafe", "unsafe: not safe"])
def test_a_guard_that_contradicts_itself_says_nothing(text):
    assert by_model.guard().read(text).passed is None


def test_a_verdict_with_two_values_of_pass_is_none():
    verdict = by_model.read_verdict('{"pass": true, "pass": false}')
    assert (verdict.passed, verdict.reason) == (None, "the answer has a key twice")
