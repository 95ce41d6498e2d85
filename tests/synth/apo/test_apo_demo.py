"""The shipped sets of apo_rm are what their script makes, with the answers that have no error on top."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "dataset_info" / "samples"
NAMES = ("apo_demo.jsonl", "apo_demo_test.jsonl")


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (SHIPPED / name).read_text(encoding="utf-8").splitlines()]


def test_the_script_makes_the_shipped_files_byte_by_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_apo_demo.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "scripts" / "make_apo_demo.py"), run_name="__main__")
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes()


def test_no_question_is_in_both_sets():
    train, test = ({record["prompt"] for record in read(name)} for name in NAMES)
    assert (len(train), len(test)) == (36, 36)
    assert not train & test


@pytest.mark.parametrize(("name", "human", "samples"), [(NAMES[0], 30, 24), (NAMES[1], 36, 0)])
def test_a_set_has_lists_of_two_to_four_different_responses_and_the_right_one_on_top(name, human, samples):
    records = read(name)
    assert [sum(record.get("kind", "human") == kind for record in records) for kind in ("human", "apo")] == [
        human,
        samples,
    ]
    assert {len(record["responses"]) for record in records} == {2, 3, 4}
    assert any(min(record["scores"]) < 0 for record in records)
    for record in records:
        assert record["scores"][0] == max(record["scores"]) > sorted(record["scores"])[-2]
        assert len(set(record["responses"])) == len(record["responses"])
