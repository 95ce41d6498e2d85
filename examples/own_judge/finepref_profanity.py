"""A judge of one's own: the linear classifier of alt-profanity-check, whose weights are in its wheel."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from finepref.synth.judges.verdict import BatchJudge, Row, Verdict


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """The probability that each response is rude, as `score`; the judge's threshold makes a verdict of it."""
    from profanity_check import predict_prob

    return [Verdict(True, score=float(rude)) for rude in predict_prob([str(row["response"]) for row in rows])]


JUDGE = BatchJudge(judge, f"alt-profanity-check-{version('alt-profanity-check')}", batch_size=256, threshold=0.5)
