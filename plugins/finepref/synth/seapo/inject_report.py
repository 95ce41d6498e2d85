"""The report of `finepref seapo inject` to read: yield by error type and reason, and examples with their originals."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from finepref.formats.markdown_table import table
from finepref.synth.left_out import Ledger
from finepref.synth.seapo.attempts import Attempt
from finepref.synth.seapo.content import changes
from finepref.synth.seapo.prompts import Source

EXAMPLES = 5
"""So many usable texts of each type, and rejected ones of each type and reason, are shown."""
AROUND, LONGEST = 60, 300
"""Characters of a whole answer that are shown before its first change, and of any text."""


class Shown(NamedTuple):
    """A usable text: what was rewritten, what it became, and what kinds of content that changed."""

    id: str
    type: str
    original: str
    edited: str
    changed: tuple[str, ...]


def shown(source: Source, name: str, attempt: Attempt) -> Shown:
    """A usable attempt for the report: its sentence, or else the answer from shortly before the first change."""
    if attempt.old:
        old, new = attempt.old, attempt.new
    else:
        begin = max(0, min((span.start for span in attempt.spans), default=0) - AROUND)
        old, new = source.chosen[begin:], attempt.text[begin:]
    return Shown(source.id, name, old, new, tuple(sorted(changes(old, new))))


def yields(names: Sequence[str], negatives: Mapping[str, int], rejected: Ledger, records: int) -> list[list[str]]:
    """The rows of the table by type: what became of the texts, and of how many records.

    Returns:
        A row "usable" with the share of records, then a row for each reason with the number of rejected texts; each
        begins with its name and has a value for each type.
    """
    counts = rejected.counts_by_kind
    reasons = sorted({reason for by_reason in counts.values() for reason in by_reason})
    first = [
        f"{negatives.get(name, 0)} of {records} ({negatives.get(name, 0) / max(1, records):.0%})" for name in names
    ]
    return [
        ["usable", *first],
        *([reason, *(str(counts[name][reason] if name in counts else 0) for name in names)] for reason in reasons),
    ]


def as_markdown(
    report: Mapping[str, Any],
    names: Sequence[str],
    negatives: Mapping[str, int],
    rejected: Ledger,
    passed: Sequence[Shown],
) -> str:
    """The report of a job as Markdown.

    Args:
        report: as in the JSON file.
        names: error types and variants.
        negatives: the number of usable texts by error type.
        rejected: the rejected texts.
        passed: the usable texts.
    """
    parts = [
        "# Negatives with one injected error",
        f"Model: {html.escape(str(report['model']), quote=False)}. Rewritten: {report.get('by', 'answer')}. Records:"
        f" {report['records']}, of which {report['written']} have a negative and {report['failed']} have none.",
        "## Yield",
        "Usable negatives by error type, then the rejected texts by reason. A record can have several rejected texts"
        " of a type, one for each try.",
        table(["", *names], yields(names, negatives, rejected, report["records"])),
    ]
    if len(report["tries"]) > 1:
        rows = [[number, each["asked"], each["usable"]] for number, each in enumerate(report["tries"], start=1)]
        parts += [table(["try", "asked", "usable"], rows)]
    if report["taken_off"]:
        told = ", ".join(f"{what} {count}" for what, count in sorted(report["taken_off"].items()))
        parts += [f"Taken off around the texts: {told}."]
    parts += [
        "## What was changed",
        "Kinds of changes by a list of words (a text can have several). No list tells a synonym from an error: read"
        " the examples.",
        table(["", *names], _kinds(names, passed)),
    ]
    for name in names:
        own = [each for each in passed if each.type == name][:EXAMPLES]
        if own:
            rows = [
                [_text(each.id), _text(each.original), _text(each.edited), ", ".join(each.changed)] for each in own
            ]
            parts += [f"## Usable: {name}", table(["id", "original", "edited", "changed"], rows)]
    return "\n\n".join([*parts, *_rejected(names, rejected)]) + "\n"


def _kinds(names: Sequence[str], passed: Sequence[Shown]) -> list[list[object]]:
    counts = Counter((each.type, kind) for each in passed for kind in each.changed or ("none of these",))
    return [[kind, *(counts[name, kind] for name in names)] for kind in sorted({kind for _, kind in counts})]


def _rejected(names: Sequence[str], rejected: Ledger) -> list[str]:
    parts = []
    for name in names:
        seen: Counter[str] = Counter()
        rows = []
        for each in rejected.entries:
            if each.kind == name and seen[each.reason] < EXAMPLES:
                seen[each.reason] += 1
                original = each.row.get("sentence", each.row["chosen"])
                measured = each.row.get("measured", "")
                rows.append(
                    [_text(value) for value in (each.row["id"], each.reason, measured, original, each.row["text"])]
                )
        if rows:
            parts += [f"## Rejected: {name}", table(["id", "reason", "measured", "original", "text"], rows)]
    return parts


def _text(value: object) -> str:
    """A text for a cell, cut if it is long, and never read as HTML."""
    text = str(value)
    return html.escape(text if len(text) <= LONGEST else f"{text[:LONGEST]} ...", quote=False)
