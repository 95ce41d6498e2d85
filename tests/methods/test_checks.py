"""What is checked of every record, whatever its stage."""

from __future__ import annotations

from dataclasses import replace

import pytest
from finepref.formats.records import parse
from finepref.methods import apo_rm, seapo_kto, sepo, tdpo
from finepref.methods.checks import record_problems
from finepref.methods.options import in_yaml

NEGATIVE = {"id": "a", "prompt": "p", "chosen": "good", "rejected": "worse", "rejected_spans": [[0, 2, -0.5]]}


def problems(stage, row, formatting, **given):
    options = stage.options.read("llamafactory", given, in_yaml)
    return [str(problem) for problem in record_problems(parse(row, formatting), stage, options)]


@pytest.mark.parametrize("stage", [sepo.STAGE, tdpo.STAGE], ids=lambda stage: stage.name)
def test_a_span_of_negative_weight_is_a_record_but_not_for_a_stage_that_has_none(stage):
    said = f"FP217 record a rejected_spans: -0.5 in stage {stage.name}"
    assert problems(stage, NEGATIVE, "span_pair") == [said]
    assert problems(replace(stage, negative_weights=True), NEGATIVE, "span_pair") == []
    assert problems(stage, NEGATIVE | {"rejected_spans": [[0, 2, 0.5]]}, "span_pair") == []


@pytest.mark.parametrize(("margin", "bad"), [(1.5, False), (0.0, True), (-1.0, True)])
def test_a_margin_must_say_that_chosen_is_better(margin, bad):
    row = {"id": "a", "prompt": "p", "chosen": "good", "rejected": "worse", "margin": margin}
    said = [f"FP220 record a margin: is {margin:g}, so chosen is not above rejected"]
    assert problems(apo_rm.STAGE, row, "pair") == (said if bad else [])


def test_a_record_needs_a_negative_of_the_types_asked_for():
    row = {"id": "a", "prompt": "p", "chosen": "good", "negatives": {"logic": "bad"}}
    assert problems(seapo_kto.STAGE, row, "negatives", seapo_error_types="logic,correctness") == []
    said = "FP204 record a negatives: has logic, but `seapo_error_types` is correctness"
    assert problems(seapo_kto.STAGE, row, "negatives", seapo_error_types="correctness") == [said]


def test_a_single_row_may_name_no_error_type_but_not_another_than_those_asked_for():
    row = {"id": "a", "prompt": "p", "response": "bad", "label": False}
    asked = {"seapo_error_types": "correctness"}
    for more in ({}, {"error_type": "correctness"}, {"label": True}):
        assert problems(seapo_kto.STAGE, row | more, "feedback", **asked) == []
    said = "FP204 record a error_type: has logic, but `seapo_error_types` is correctness"
    assert problems(seapo_kto.STAGE, row | {"error_type": "logic"}, "feedback", **asked) == [said]
