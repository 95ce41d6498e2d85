"""Responses with the rewards that a model gave them: the rows of `finepref apo score`, and a win rate over them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from finepref.formats.bad_rows import BadRows
from finepref.formats.identified import read_identified
from finepref.formats.records import Prompt, Ranked, to_row
from finepref.formats.row import RowReader


class Scored(NamedTuple):
    """Responses to one prompt with the rewards that a model gave them.

    Attributes:
        rewards: one per response, None for an empty response.
        scores: the file's own scores of the responses, such as people's, if there are any.
        kind: "human" or "apo".
    """

    id: str
    prompt: Prompt
    responses: tuple[str, ...]
    rewards: tuple[float | None, ...]
    scores: tuple[float, ...] = ()
    kind: Literal["human", "apo"] = "human"

    @property
    def row(self) -> dict[str, object]:
        """JSON-ready: {id, prompt or messages, responses, rewards} and, if there are scores, scores and kind."""
        row = to_row(Ranked(self.id, self.prompt, self.responses, self.scores, self.kind))
        if not self.scores:
            del row["scores"]
        return row | {"rewards": [*self.rewards]}


def read_scored(path: Path, *, ids: bool = True, bad_rows: BadRows | None = None) -> list[Scored]:
    """The rows that `finepref apo score` wrote.

    Args:
        path: the file.
        ids: every row must have an id; otherwise a row without one is named by its line.
        bad_rows: collects rows with a problem; None = each is an error.

    Raises:
        BadData: there are bad rows that `bad_rows` does not accept.
    """
    return read_identified(path, partial(_scored, ids=ids), bad_rows=bad_rows)


def scored_by(path: Path) -> str:
    """The model that gave the rewards of a file, as its report names it; "" without a report."""
    try:
        report = json.loads(path.with_suffix(".report.json").read_bytes())
    except (OSError, ValueError):
        return ""
    return str(report["model"]) if isinstance(report, dict) and report.get("job") == "apo score" else ""


def texts_of(reader: RowReader) -> tuple[str, ...]:
    """The field `responses` as a list of any length, in which a text may be empty."""
    found = []
    for i, value in enumerate(_list(reader, "responses")):
        blank = type(value) is str and not value.strip()
        found.append(str(value) if blank else reader.reply(value, f"responses[{i}]"))
    return tuple(found)


def win_rate(ours: Sequence[Scored], theirs: Sequence[Scored]) -> float:
    """The share of pairs of responses to one prompt in which ours has the higher reward; a tie is half a win.

    An empty response loses to any other.

    Raises:
        ValueError: the two do not answer the same prompts, or one has no response to a prompt.
    """
    others = {scored.id: scored for scored in theirs}
    if others.keys() != {scored.id for scored in ours}:
        differing = sorted(others.keys() ^ {scored.id for scored in ours})
        raise ValueError(f"{len(differing)} ids are in one of the files only, such as {differing[0]}")
    return sum(_wins(scored, others[scored.id]) for scored in ours) / len(ours)


def _scored(reader: RowReader, *, ids: bool) -> Scored:
    given, prompt = reader.id(), reader.prompt()
    if given is None and not ids and "id" not in reader.row:
        given = f"line {reader.line}"
    if given is None:
        reader.missing("id")
    texts = texts_of(reader)
    rewards = _list(reader, "rewards")
    numbers = [None if value is None else reader.number(value, f"rewards[{i}]") for i, value in enumerate(rewards)]
    scores = reader.numbers(_list(reader, "scores"), "scores") if "scores" in reader.values else ()
    if not reader.problems and len(rewards) != len(texts):
        reader.note("rewards", "FP051", f"{len(texts)} responses, {len(rewards)} rewards")
    if not reader.problems and scores and len(scores) != len(texts):
        reader.note("scores", "FP051", f"{len(texts)} responses, {len(scores)} scores")
    kind: Literal["human", "apo"] = "apo" if reader.row.get("kind") == "apo" else "human"
    return Scored(str(given), prompt, texts, tuple(numbers), tuple(scores), kind)


def _list(reader: RowReader, name: str) -> Sequence[object]:
    if name not in reader.values:
        reader.missing(name)
        return ()
    return reader.items(reader.values[name], name)


def _wins(one: Scored, other: Scored) -> float:
    duels = [(a, b) for a in _numbers(one) for b in _numbers(other)]
    if not duels:
        raise ValueError(f"{one.id} has no response to compare")
    return sum((a > b) + (a == b) / 2 for a, b in duels) / len(duels)


def _numbers(scored: Scored) -> Iterator[float]:
    return (float("-inf") if reward is None else reward for reward in scored.rewards)
