"""The letter in the text of an answer: hand-made answers of every shape give the right letter or none."""

from __future__ import annotations

import pytest
from finepref.synth.judges import by_rule
from finepref.synth.judges.letters import letter_of

CITIES = {"A": "Lyon", "B": "Paris", "C": "Nice", "D": "Lille"}
SUMS = {"A": "80", "B": "156", "C": "1", "D": "15.6"}
PETS = {"A": "cat", "B": "a dog", "C": "a"}
NINE = dict(zip("ABCDEFGHI", "qrstuvwxy", strict=True))

OF_CITIES = {
    "(B)": "B",
    "B.": "B",
    "B": "B",
    "b": "B",
    "(b)": "B",
    "b)": "B",
    "Ｂ": "B",
    "\n\nB\n": "B",
    "**B**": "B",
    "**B. Paris**": "B",
    "\\boxed{B}": "B",
    "$\\boxed{\\text{B}}$": "B",
    "B) Paris": "B",
    "B: Paris": "B",
    "B Paris": "B",
    "B - Paris": "B",
    "B, not A": "B",
    "B\n\nParis is the capital.": "B",
    "Answer: B": "B",
    "Answer:B.": "B",
    "answer: b": "B",
    "The answer is B": "B",
    "The answer is (B).": "B",
    "The correct answer is: B) Paris": "B",
    "The correct option is b.": "B",
    "The right choice would be (C), Nice.": "C",
    "The answer is B because A is wrong.": "B",
    "The answer is A because it is the largest.": "A",
    "A is correct.": "A",
    "Option B": "B",
    "So I choose option B because it is there.": "B",
    "Between B and C, I pick B": "B",
    "It's (B).": "B",
    "I think it's B.": "B",
    "Not A but B": "B",
    "C, I believe": "C",
    "答案是B": "B",
    "答案：B": "B",
    "正确答案为 B": "B",
    "选择B。": "B",
    "我选(B)": "B",
    "应该选B": "B",
    "Paris": "B",
    "paris!": "B",
    "It is Paris.": "B",
    # none
    "": "",
    "I do not know.": "",
    "A cat is an animal.": "",
    "A city in the south": "",
    "The answer is a city": "",
    "A or B": "",
    "A, B": "",
    "AB": "",
    "A. B. C.": "",
    "A and B are both right.": "",
    "A: no. B: yes.": "",
    "The answer is B or C": "",
    "The answer is B. No, the answer is C.": "",
    "B. Lyon": "",
    "The answer is B: Lyon": "",
    "It is not B.": "",
    "B is wrong.": "",
    "The answer is not B": "",
    "It is not Paris.": "",
    "不是B": "",
    "B不对": "",
    "Lyon and Paris": "",
    "None of the above": "",
    "Vitamin B.": "",
    "E": "",
    "42": "",
    "Bravo": "",
}


@pytest.mark.parametrize(("text", "letter"), OF_CITIES.items())
def test_a_hand_made_answer_gives_its_letter_or_none_and_never_another(text, letter):
    found = letter_of(text, CITIES)
    assert found.letter == letter
    assert bool(found.reason) == (not letter)


@pytest.mark.parametrize(
    ("text", "options", "letter"),
    [
        ("C. 1", SUMS, "C"),
        ("C. 156", SUMS, ""),
        ("D. 80", SUMS, ""),
        ("156", SUMS, "B"),
        ("The result is 15.6", SUMS, "D"),
        ("80 + 76 = 156", SUMS, ""),
        ("A cat", PETS, "A"),
        ("The answer is A cat.", PETS, "A"),
        ("The answer is a cat", PETS, ""),
        ("a", PETS, "A"),
        ("It is a mystery", PETS, ""),
        ("I am sure that it is D.", NINE, "D"),
        ("I do not know", NINE, ""),
        ("(I)", NINE, "I"),
        ("The answer is D", None, "D"),
        ("F", None, ""),
    ],
)
def test_the_texts_of_the_options_decide_where_a_letter_alone_does_not(text, options, letter):
    assert letter_of(text, options).letter == letter


def row(**fields):
    return {"options": CITIES, **fields}


def test_sampled_answers_of_one_letter_are_one_answer_and_those_without_one_are_a_group_that_is_counted():
    """6, 2 and 2 of 10 (B, C, none): -(.6 ln .6 + 2 * .2 ln .2) = 0.9503."""
    answers = ["B", "B. Paris", "The answer is B", "(b)", "Paris", "**B**", "C.", "Nice", "Hm.", "A or B"]
    found = by_rule.letter_entropy()(row(responses=answers))
    assert (found.passed, found.reason) == (True, "of 10 answers: B 6, C 2, no letter 2")
    assert found.score == pytest.approx(0.950271, abs=1e-6)
    assert by_rule.letter_entropy(threshold=0.95)(row(responses=answers)).passed is False
    assert by_rule.entropy(by_rule.as_text)(row(responses=answers)).passed is False


def test_a_row_of_which_no_answer_has_a_letter_is_unjudged_and_not_certain():
    found = by_rule.letter_entropy()(row(responses=["I do not know."] * 10))
    assert found == (None, "no answer has the letter of an option", None)


def test_a_distribution_over_letters_is_judged_by_its_own_entropy():
    """(.5, .25, .125, .125): 1.75 ln 2 = 1.2130 nats."""
    letters = {"A": 0.125, "B": 0.5, "C": 0.25, "D": 0.125}
    for judge in (by_rule.entropy(by_rule.as_text), by_rule.letter_entropy()):
        found = judge(row(letters=letters))
        assert (found.passed, found.reason) == (False, "B with probability 0.500")
        assert found.score == pytest.approx(1.213007, abs=1e-6)
        assert judge(row(letters={"A": 1.0, "B": 0.0})).score == 0
        assert judge(row(letters={"A": 0.5, "B": 0.2})).passed is None
        assert judge(row(letters={"A": 0.5})).passed is None
        assert judge(row(letters="B")).passed is None


@pytest.mark.parametrize(
    ("fields", "passed"),
    [
        ({"response": "It's (B).", "answer": "B"}, True),
        ({"response": "C", "answer": "B. Paris"}, False),
        ({"response": "Well.", "answer": "B"}, None),
        ({"letters": {"A": 0.3, "B": 0.7}, "response": "C", "answer": "B"}, True),
        ({"response": "B"}, None),
        ({"response": "B", "answer": "the capital"}, None),
    ],
)
def test_the_judge_letter_compares_letters_and_says_nothing_without_one(fields, passed):
    assert by_rule.letter_answer(row(**fields)).passed is passed
