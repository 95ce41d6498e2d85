"""Equations in running text, against values worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest
from finepref.synth.arithmetic import equations, numbers


@pytest.mark.parametrize(
    ("text", "left", "result"),
    [
        ("He sold 21 + 11 = 32 boxes.", 32, "32"),
        ("so that's 0.8*100 = 80 students", 80, "80"),
        ("The fee is $450,000 x 6/100 = $27,000.", 27000, "27,000"),
        ("3 batches * 12 minutes/batch = 36 minutes", 36, "36"),
        ("17 skeins per vest + 10 skeins per beanie = 27 skeins of wool", 27, "27"),
        ("Room: 2(40+38) = 156", 156, "156"),
        ("9+2(21)=51", 51, "51"),
        ("(3 + 4) * 2 = 14", 14, "14"),
        ("$1056 * 25% = $264", 264, "264"),
        ("19 / 20 = 95%", Fraction(19, 20), "95"),
        ("   - 103 plants × €6 per plant = €618", 618, "618"),
        ("1. 12 ÷ 12 = 1 times per year", 1, "1"),
        ("20 - 5 - 7/12 = 14", Fraction(173, 12), "14"),
        ("She needs 2 + 3 * 4 = 14 of them", 14, "14"),
        ("It is 5 − 2 = 3", 3, "3"),
    ],
)
def test_one_equation_is_found_with_its_left_side_computed_and_its_result_located(text, left, result):
    (equation,) = equations(text)
    assert equation.left == left
    assert text[equation.result_start : equation.result_end] == result
    assert equation.holds == (left == equation.right)


@pytest.mark.parametrize(
    "text",
    [
        "Karen = 438 points",
        "she has 75 + 46 + T = 141 apples",
        "half * 186 ladybugs = 93 caterpillars",
        "a rate of 15/45 = 1/3 per minute",
        "we get x = 14",
        "3 + 4 <= 7 and 3 + 4 != 8 and 3 + 4 == 7",
        "4 / 0 = 4",
        "(3 + 4 = 7",
        "the sum 3 + 4 is 7",
        "",
    ],
)
def test_what_is_no_computation_with_one_number_as_its_result_is_no_equation(text):
    assert equations(text) == []


def test_each_link_of_a_chain_from_a_computation_to_a_number_is_an_equation():
    (equation,) = equations("70 + 44 + T = 114 + 20 = 134 toys")
    assert (equation.left, equation.right) == (134, 134)


def test_only_exact_equality_holds():
    first, second = equations("48 / 18 = 2 pans\n1.1 * 3 = 3.3")
    assert not first.holds
    assert second.holds


def test_an_equation_does_not_reach_over_a_line_or_a_sentence():
    text = "He has 2 +\n3 = 3. 4 + 5 = 9"
    (equation,) = equations(text)
    assert text[equation.start : equation.end] == "4 + 5 = 9"


def test_offsets_are_of_the_whole_text():
    text = "First line.\nThen 2 + 2 = 4 apples, and 3 * 3 = 9 pears."
    assert [text[e.start : e.end] for e in equations(text)] == ["2 + 2 = 4", "3 * 3 = 9"]


def test_numbers_are_found_with_their_values():
    text = "$1,250.50 for 3 of 20%"
    assert [(text[a:b], value) for a, b, value in numbers(text)] == [
        ("1,250.50", Fraction(2501, 2)),
        ("3", Fraction(3)),
        ("20", Fraction(1, 5)),
    ]
