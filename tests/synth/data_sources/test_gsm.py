"""Questions from reasoning-gym: clean, checked, unique, and the same for everyone."""

from __future__ import annotations

import sys

import pytest
from finepref.formats.records import Message, content_id
from finepref.synth.arithmetic import equations
from finepref.synth.data_sources.gsm import questions


def test_every_worked_answer_is_exactly_right_and_ends_in_the_answer():
    for row in questions(300, seed=3).rows:
        assert list(row) == ["id", "prompt", "chosen", "answer"]
        assert all(step.holds for step in equations(row["chosen"]))
        assert row["chosen"].endswith(f"\nThe answer is {row['answer']}.")


def test_texts_are_clean():
    for row in questions(500, seed=4).rows:
        text = row["prompt"] + row["chosen"]
        assert "####" not in text
        assert "Do not include units" not in text
        assert ".0 " not in text
        assert sum(sign in text for sign in "$€£") <= 1
        assert row["prompt"] == row["prompt"].strip()
        assert row["chosen"] == row["chosen"].strip()


def test_questions_are_unique_and_their_ids_are_those_of_their_content():
    rows = questions(500, seed=0).rows
    assert len({row["prompt"] for row in rows}) == len({row["id"] for row in rows}) == 500
    assert rows[0]["id"] == content_id((Message("user", rows[0]["prompt"]),))


def test_a_slice_is_the_same_whatever_is_taken_before_or_after_it():
    rows = questions(120, seed=9).rows
    assert questions(20, seed=9).rows == rows[:20]
    assert questions(50, seed=9, skip=40).rows == rows[40:90]


def test_neighbouring_seeds_share_next_to_nothing():
    first, second = ({row["id"] for row in questions(300, seed=seed).rows} for seed in (1, 2))
    assert len(first & second) < 6


def test_what_is_left_out_is_counted_by_reason():
    made = questions(300, seed=0)
    assert made.left_out["wrong step"] > 0
    assert made.left_out["unclean template"] > 0


def test_without_reasoning_gym_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.delitem(sys.modules, "reasoning_gym.factory", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "finepref\[data\]"'):
        questions(1, seed=0)
