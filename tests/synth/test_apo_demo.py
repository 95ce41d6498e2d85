"""The shipped demo set of apo_rm is what its command makes, with the answers that have no error on top."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

from finepref.formats.jsonl import write_jsonl
from finepref.synth.gsm import questions

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "dataset_info" / "samples" / "apo_demo.jsonl"


def test_the_script_makes_the_shipped_file_byte_by_byte(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "gsm.jsonl", questions(24, seed=11).rows)
    monkeypatch.setattr(sys, "argv", ["make", str(tmp_path / "gsm.jsonl"), str(tmp_path / "made.jsonl")])
    runpy.run_path(str(ROOT / "scripts" / "make_apo_demo.py"), run_name="__main__")
    assert (tmp_path / "made.jsonl").read_bytes() == SHIPPED.read_bytes()


def test_the_set_has_both_kinds_lists_of_several_lengths_and_the_golden_answer_on_top():
    records = [json.loads(line) for line in SHIPPED.read_text(encoding="utf-8").splitlines()]
    human = [record for record in records if "kind" not in record]
    samples = [record for record in records if record.get("kind") == "apo"]
    assert (len(human), len(samples)) == (12, 36)
    assert {len(record["responses"]) for record in human} >= {2, 3, 4}
    assert any(min(record["scores"]) < 0 for record in human)
    for record in records:
        assert record["scores"][0] == max(record["scores"]) > sorted(record["scores"])[-2]
        assert len(set(record["responses"])) == len(record["responses"])
