"""Injected errors are wrong in the way that their type says, and nothing outside their span is changed."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from finepref.formats.records import Message, Span
from finepref.synth.data_sources.gsm import questions
from finepref.synth.seapo.error_rules import INVENTED, inject
from hypothesis import given, settings
from hypothesis import strategies as st

ROWS = questions(400, seed=11).rows
PLAIN_STEP = re.compile(r"(?<![\d.*/x+$€£-])(?<![*/x+-] )[$€£]?([\d.,]+) ?([-+*/x]) ?[$€£]?([\d.,]+)\s*=\s*[$€£]?$")

gsm_rows = st.sampled_from(ROWS)
seeds = st.integers(0, 2**32)


def injected(error_type, row, seed=0):
    prompt = (Message("user", row["prompt"]),)
    return inject(error_type, prompt=prompt, chosen=row["chosen"], seed=seed, record_id=row["id"])


def number(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def pieces(chosen: str, text: str, span: Span) -> tuple[str, str, str]:
    """What was before, what is instead, and what comes before both; fails if anything outside the span differs."""
    tail = len(text) - span.end
    before, old, after = chosen[: span.start], chosen[span.start : len(chosen) - tail], chosen[len(chosen) - tail :]
    assert text == before + text[span.start : span.end] + after
    return old, text[span.start : span.end], before


@given(gsm_rows, seeds)
@settings(max_examples=300, deadline=None)
def test_a_correctness_error_is_one_other_number_as_the_result_of_one_right_step(row, seed):
    text, span = injected("correctness", row, seed)
    old, new, before = pieces(row["chosen"], text, span)
    assert number(old) != number(new) > 0
    assert re.search(r"=\s*[$€£]?$", before), "the span is the result of a step"
    assert len(old.partition(".")[2]) == len(new.partition(".")[2]), "as many decimals as before"


def test_the_changed_step_is_wrong_by_arithmetic_done_here():
    """Steps of two plain numbers are computed again by this test: 12 x 4 = 48 before, another number after."""
    compute = {
        "+": Fraction.__add__,
        "-": Fraction.__sub__,
        "*": Fraction.__mul__,
        "x": Fraction.__mul__,
        "/": Fraction.__truediv__,
    }
    checked = 0
    for row in ROWS:
        text, span = injected("correctness", row)
        old, new, before = pieces(row["chosen"], text, span)
        step = PLAIN_STEP.search(before)
        if step and "%" not in row["chosen"]:
            result = compute[step[2]](number(step[1]), number(step[3]))
            assert number(old) == result != number(new)
            checked += 1
    assert checked > 150


@given(gsm_rows, seeds)
@settings(max_examples=300, deadline=None)
def test_a_logic_error_changes_the_conclusion_alone(row, seed):
    text, span = injected("logic", row, seed)
    old, new, before = pieces(row["chosen"], text, span)
    assert before.endswith("\nThe answer is ")
    assert text.endswith(f"{new}.")
    assert number(old) == number(row["answer"]) != number(new)


def test_a_wrong_conclusion_is_the_result_of_an_earlier_step_where_there_is_one():
    row = {
        "id": "a",
        "prompt": "How many?",
        "chosen": "There are 2 + 3 = 5 cats.\nSo 5 * 4 = 20 paws.\nThe answer is 20.",
    }
    text, span = injected("logic", row)
    assert text == row["chosen"].replace("answer is 20", "answer is 5")
    assert text[span.start : span.end] == "5"


def test_an_answer_without_a_conclusion_of_its_own_gets_a_wrong_one():
    row = {"id": "a", "prompt": "How many?", "chosen": "There are 2 + 3 = 5 cats, so 5 * 4 = 20 paws."}
    text, span = injected("logic", row)
    assert text == row["chosen"] + " So the answer is 5."
    assert text[span.start :] == " So the answer is 5."


@given(gsm_rows, seeds)
@settings(max_examples=300, deadline=None)
def test_a_hallucination_is_one_sentence_put_in_with_a_number_that_was_nowhere(row, seed):
    text, span = injected("hallucination", row, seed)
    old, new, before = pieces(row["chosen"], text, span)
    assert old == ""
    assert new.startswith("\n")
    (invented,) = re.findall(r"\d+", new)
    assert new[1:].replace(invented, "{n}") in INVENTED
    assert invented not in re.findall(r"\d[\d,.]*", row["prompt"] + " " + row["chosen"])
    assert before, "it does not come first"
    assert text[span.end] == "\n", "nor last"


def test_a_hallucination_goes_between_sentences_of_a_text_in_one_line():
    row = {"id": "a", "prompt": "How many?", "chosen": "There are 2 + 3 = 5 cats. They have 5 * 4 = 20 paws."}
    text, span = injected("hallucination", row)
    assert text.startswith("There are 2 + 3 = 5 cats. ")
    assert text.endswith(". They have 5 * 4 = 20 paws.")
    assert text[: span.start] + text[span.end :] == row["chosen"]


def test_the_errors_of_a_record_depend_on_seed_and_id_alone():
    row, other = ROWS[0], ROWS[0] | {"id": "another"}
    for name in ("correctness", "logic", "hallucination"):
        assert injected(name, row, 5) == injected(name, dict(reversed(row.items())), 5)
    assert len({injected("hallucination", row, seed) for seed in range(20)}) > 10
    assert injected("hallucination", row) != injected("hallucination", other)


@pytest.mark.parametrize("chosen", ["Paris is the capital.", "x = 4", "There are 2 + 2 = 5 of them."])
def test_an_answer_without_a_right_equation_has_no_rule(chosen):
    for name in ("correctness", "logic", "hallucination"):
        assert injected(name, {"id": "a", "prompt": "?", "chosen": chosen}) is None


def test_an_error_type_without_a_rule_is_refused():
    with pytest.raises(ValueError, match="no rule for errors of type style: correctness, logic, hallucination"):
        injected("style", ROWS[0])


def test_a_changed_number_keeps_its_commas_and_decimals():
    row = {"id": "a", "prompt": "?", "chosen": "It costs $999.50 + $500.25 = $1,499.75 now."}
    for seed in range(30):
        text, span = injected("correctness", row, seed)
        assert re.fullmatch(r"\d,\d{3}\.\d\d", text[span.start : span.end])
