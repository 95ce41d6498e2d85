"""SeaPO negatives: the number behind every draw (`finepref.methods.draws`), and feedback rows joined into records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from finepref.formats.problems import Problem
from finepref.formats.records import Feedback, Negatives, Prompt, content_id

ERROR_TYPES = ("correctness", "logic", "hallucination")
"""The error types of the paper. A record may use any other name; a stage or `validate --error-types` may restrict."""


def pick(n: int, *, seed: int, epoch: int, record_id: str) -> int:
    """A number in [0, n) that depends on its arguments only: 8 bytes of blake2b of "seed:epoch:id", modulo n."""
    digest = hashlib.blake2b(f"{seed}:{epoch}:{record_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % n


def group_feedback(rows: Iterable[tuple[str, int, Feedback]]) -> tuple[list[Negatives], list[Problem]]:
    """Feedback rows (file, line, record) of any number of files, joined by prompt, in order of first appearance.

    The desirable response of a prompt may appear once per file, as in the SeaPO release, which has one file per error
    type. A record's id is the content id of its prompt. Rows of a prompt with a problem give no record; every such
    prompt is named by a Problem at its first row or at the row that contradicts an earlier one.
    """
    groups: dict[Prompt, list[tuple[str, int, Feedback]]] = {}
    for file, line, row in rows:
        groups.setdefault(row.prompt, []).append((file, line, row))
    records: list[Negatives] = []
    problems: list[Problem] = []
    for prompt, group in groups.items():
        record, found = _join(prompt, group)
        problems += found
        if record is not None:
            records.append(record)
    return records, problems


def _join(prompt: Prompt, group: list[tuple[str, int, Feedback]]) -> tuple[Negatives | None, list[Problem]]:
    first_file, first_line, _ = group[0]
    problems: list[Problem] = []
    chosen: str | None = None
    negatives: dict[str, str] = {}
    for file, line, row in group:
        if row.label:
            if chosen is not None and row.response != chosen:
                problems.append(
                    Problem(
                        file,
                        line,
                        "response",
                        "FP064",
                        f"another desirable response to the prompt of {first_file}:{first_line}",
                    )
                )
            chosen = row.response
        elif row.error_type is None:
            problems.append(
                Problem(
                    file,
                    line,
                    "error_type",
                    "FP066",
                    "an undesirable response needs an error type, in its row or in the dataset entry",
                )
            )
        elif negatives.setdefault(row.error_type, row.response) != row.response:
            problems.append(
                Problem(
                    file,
                    line,
                    "response",
                    "FP065",
                    f"another response of type {row.error_type} to the prompt of {first_file}:{first_line}",
                )
            )
    if chosen is None:
        problems.append(Problem(first_file, first_line, "label", "FP062", "the prompt has no desirable response"))
    if all(row.label for _, _, row in group):
        problems.append(Problem(first_file, first_line, "label", "FP063", "the prompt has no undesirable response"))
    seen: dict[str, str] = {} if chosen is None else {chosen.strip(): "chosen"}
    for file, line, row in group:
        if row.error_type is None:
            continue
        other = seen.setdefault(row.response.strip(), row.error_type)
        if other == "chosen":
            problems.append(Problem(file, line, "response", "FP032", "the negative equals the desirable response"))
        elif other != row.error_type:
            problems.append(Problem(file, line, "response", "FP033", f"the negative equals that of {other}"))
    if problems or chosen is None:
        return None, problems
    return Negatives(content_id(prompt), prompt, chosen, dict(sorted(negatives.items()))), []
