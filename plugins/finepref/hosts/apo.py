"""APO, ADVERSARIAL preference optimization (arXiv 2311.08045), on any host: records as scored lists of responses."""

from __future__ import annotations

from finepref.formats import records


def scored(record: records.Record) -> tuple[tuple[str, ...], tuple[float, ...], str]:
    """(responses, scores, kind) of a record. A pair is a human list of two: margin and 0, or 1 and 0 without one."""
    if isinstance(record, records.Ranked):
        return record.responses, record.scores, record.kind
    if isinstance(record, records.Pair):
        return (record.chosen, record.rejected), (1.0 if record.margin is None else record.margin, 0.0), "human"
    raise TypeError(f"a {type(record).__name__} has no scored responses")
