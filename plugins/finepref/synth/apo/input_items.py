"""Queries, samples and golden answers from a file, by id."""

from __future__ import annotations

from pathlib import Path

from finepref.formats.apo_samples import ApoItem, read_items
from finepref.formats.problems import BadData


def input_items(path: Path, kind: str) -> dict[str, ApoItem]:
    """The items of a file; `kind` is query, sample or golden, see `formats.apo_samples`.

    Raises:
        BadData: with all problems of the file.
    """
    items, problems = read_items(path, kind)
    if problems:
        raise BadData(problems)
    return items
