"""`finepref apo score`: the reward of every response of a file."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from finepref.formats.apo_samples import cut_at_next_turn
from finepref.formats.identified import read_identified
from finepref.formats.jsonl import read_rows, write_jsonl
from finepref.formats.records import Pair, Ranked, content_id, parse
from finepref.formats.released import dialogue
from finepref.formats.row import RowReader
from finepref.synth.apo.input_items import input_items
from finepref.synth.apo.reward_model import RewardModel, TokenRow
from finepref.synth.apo.scored import Scored, texts_of
from finepref.synth.ask import Job, work_folder


class ScoredFile(NamedTuple):
    """The number of rows and responses, and of responses that are empty (no reward) or cut off at the beginning."""

    rows: int
    responses: int
    empty: int
    cut: int


def score(
    path: Path, output: Path, *, model: RewardModel, cut: bool = True, work_dir: Path | None = None
) -> ScoredFile:
    """Write the rewards of all responses of a file: rows {id, prompt or messages, responses, rewards, scores?, kind?}.

    Args:
        path: samples {query_id, query, sample_0, ...}; `ranked` or `pair` records, whose scores are kept; or rows
            {id?, prompt or messages, responses} with any number of responses. An empty response gets the reward null.
        output: the JSON Lines file to write.
        model: the reward model.
        cut: remove what follows "\\nHuman:" in samples.
        work_dir: folder of the journal; by default `<stem>.work` beside the output.

    Raises:
        BadData: the input has problems.
        ValueError: see `RewardModel.sequence`; or a reward is NaN or infinite.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    records = read_scorable(path, cut=cut)
    items: dict[str, TokenRow] = {}
    for record in records:
        for i, text in enumerate(record.responses):
            if text.strip():
                items[f"{record.id}/{i}"] = model.sequence(record.prompt, text)
    settings = {
        "pooling": model.pooling,
        "cutoff_len": model.cutoff_len,
        "cut": cut,
        "batch_tokens": model.batch_tokens,
    }

    def compute(done: Collection[str]) -> Iterator[list[dict[str, object]]]:
        for found in model.rewards(items, done=done):
            if not all(map(math.isfinite, found.values())):
                raise ValueError(f"{model.folder} gives no number for one of {', '.join(found)}")
            yield [{"id": name, "reward": value} for name, value in found.items()]

    job = Job(
        name="apo score",
        source=path,
        folder=work_folder(output, work_dir),
        prompt_version=model.tokens,
        settings=settings,
    )
    with job.journal(model.model) as journal:
        done = journal.complete(items, compute, unit="response")
    rows = []
    for record in records:
        names = [f"{record.id}/{i}" for i in range(len(record.responses))]
        rewards = tuple(float(str(done[name]["reward"])) if name in items else None for name in names)
        rows.append(record._replace(rewards=rewards).row)
    write_jsonl(output, rows)
    responses = sum(len(record.responses) for record in records)
    return ScoredFile(len(rows), responses, responses - len(items), sum(item.cut for item in items.values()))


def read_scorable(path: Path, *, cut: bool = True) -> list[Scored]:
    """The rows of a file of samples, records or responses, with no rewards yet.

    Raises:
        BadData: with all problems of the file.
    """
    if not any("query" in (raw.value or {}) for raw in islice(read_rows(path), 1)):
        return read_identified(path, _scorable)
    found = []
    for key, item in input_items(path, "sample").items():
        texts = [cut_at_next_turn(text) if cut else text for text in item.texts.values()]
        prompt, responses = dialogue(item.query, texts)
        found.append(Scored(key, prompt, tuple(responses), (None,) * len(texts)))
    return found


def _scorable(reader: RowReader) -> Scored | None:
    row = reader.row
    if "responses" in row and "scores" not in row:
        given, prompt, texts = reader.id(), reader.prompt(), texts_of(reader)
        return Scored(given or content_id(prompt, texts), prompt, texts, (None,) * len(texts))
    record = parse(row, "pair" if "chosen" in row else "ranked", file=reader.file, line=reader.line)
    if isinstance(record, list):
        reader.problems += record
        return None
    if isinstance(record, Pair):
        margin = 1.0 if record.margin is None else record.margin
        if not margin > 0:
            reader.note("margin", "FP220", f"is {margin:g}, so chosen is not above rejected")
        return Scored(record.id, record.prompt, (record.chosen, record.rejected), (None, None), (margin, 0.0))
    assert isinstance(record, Ranked)
    return Scored(
        record.id, record.prompt, record.responses, (None,) * len(record.responses), record.scores, record.kind
    )
