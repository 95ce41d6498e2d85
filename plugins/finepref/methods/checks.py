"""Checks of a record before it is tokenised, the same on every host."""

from __future__ import annotations

from finepref.formats import records
from finepref.formats.problems import Problem
from finepref.formats.record_places import record_mark
from finepref.methods import ranked_rows
from finepref.methods.options import Options
from finepref.methods.pair_rows import SIDES, spans_of
from finepref.methods.stage import Stage


def record_problems(record: records.Record, stage: Stage, options: Options) -> list[Problem]:
    """Problems that are visible in a record itself: FP217, FP220, and the stage's own. Tokenising may find more."""
    found = [] if stage.negative_weights else _negative_weights(record, stage)
    if stage.shape in ranked_rows.SHAPES:
        found += ranked_rows.margin_problems(record)
    return found + (stage.check_record(record, options) if stage.check_record else [])


def _negative_weights(record: records.Record, stage: Stage) -> list[Problem]:
    return [
        Problem(record_mark(record.id), 0, f"{side}_spans", "FP217", f"{span.weight:g} in stage {stage.name}")
        for side in SIDES
        for span in spans_of(record, side)
        if span.weight < 0
    ]
