"""Questions of any data set of reasoning-gym: unique, sliced, and the same for everyone."""

from __future__ import annotations

import json

import pytest
from finepref.cli import app
from finepref.formats.jsonl import read_jsonl
from finepref.synth.data_sources.reasoning_gym import questions, with_choices
from typer.testing import CliRunner

SUMS = {"max_terms": 2, "max_digits": 1}


def test_a_slice_is_the_same_whatever_is_taken_before_or_after_it():
    rows = questions("chain_sum", 30, seed=9, options=SUMS)
    assert len({row["id"] for row in rows}) == len({row["prompt"] for row in rows}) == 30
    assert questions("chain_sum", 10, seed=9, options=SUMS) == rows[:10]
    assert questions("chain_sum", 12, seed=9, skip=10, options=SUMS) == rows[10:22]
    assert questions("chain_sum", 30, seed=10, options=SUMS) != rows


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("nobody", {}, "reasoning-gym's nobody: .*not registered"),
        ("chain_sum", {"colour": 1}, "reasoning-gym's chain_sum: .*colour"),
        ("chain_sum", {"min_terms": 0}, "reasoning-gym's chain_sum: min_terms must be positive"),
        ("chain_sum", {**SUMS, "min_terms": 2}, r"has \d+ different questions among \d+: not 300"),
    ],
)
def test_what_cannot_be_made_is_refused(name, options, told):
    with pytest.raises(ValueError, match=told):
        questions(name, 300, seed=0, options=options)


def test_the_command_takes_options_as_yaml(tmp_path):
    output = tmp_path / "out.jsonl"
    words = ["data", "gym", "basic_arithmetic", "--n", "5", "--output", str(output)]
    for option in ('operators=["*"]', "max_terms=2", "allow_parentheses=false", "allow_negation=false"):
        words += ["--option", option]
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, result.output.strip()) == (0, f"{output}: 5 questions of basic_arithmetic")
    assert all("*" in row["prompt"] and "+" not in row["prompt"] for _, row in read_jsonl(output, problems=None))


def test_numbers_near_the_answer_make_a_multiple_choice_question(tmp_path):
    """Options are different, of the answer's sign and at most twice as many away as there are; places are drawn."""
    output = tmp_path / "out.jsonl"
    words = ["data", "gym", "basic_arithmetic", "--n", "40", "--choices", "4", "--output", str(output)]
    words += ["--option", 'operators=["+", "-"]', "--option", "max_digits=1"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    plain = questions("basic_arithmetic", 40, seed=0, options={"operators": ["+", "-"], "max_digits": 1})
    assert [row["id"] for row in rows] == [row["id"] for row in plain]
    for row, question in zip(rows, plain, strict=True):
        right = int(question["answer"])
        numbers = [int(text) for text in row["options"].values()]
        assert [*row["options"]] == [*"ABCD"]
        assert len({*numbers}) == 4
        assert all((number < 0) == (right < 0) and abs(number - right) <= 8 for number in numbers)
        assert row["options"][row["answer"]] == question["answer"]
        assert row["prompt"] == "\n".join([question["prompt"], *(f"{k}. {v}" for k, v in row["options"].items())])
    assert {row["answer"] for row in rows} == {*"ABCD"}


def test_questions_without_whole_numbers_get_no_options():
    with pytest.raises(ValueError, match="choices need whole numbers for answers, not 'yes'"):
        with_choices([{"id": "1", "prompt": "Q", "answer": "yes"}], 4)
    with pytest.raises(ValueError, match="2 to 26 options, not 1"):
        with_choices([], 1)
