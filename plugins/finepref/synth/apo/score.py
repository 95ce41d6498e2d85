"""`finepref apo score`: the reward of every response of a file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from finepref.formats.apo_samples import ApoItem, cut_at_next_turn, read_items
from finepref.formats.bad_rows import BadRows
from finepref.formats.identified import read_identified
from finepref.formats.jsonl import RawRow, write_jsonl
from finepref.formats.problems import Problem
from finepref.formats.records import (
    Feedback,
    Pair,
    Prompt,
    Ranked,
    Record,
    ScoredPair,
    SpanPair,
    content_id,
    parse,
    to_row,
)
from finepref.formats.row import RowReader
from finepref.formats.row_source import RowSource, parts_of
from finepref.synth.apo.reward_model import RewardModel, Sequences
from finepref.synth.apo.scored import Scored, texts_of
from finepref.synth.ask import Job, work_folder
from finepref.synth.data_sources.job_rows import (
    PAIRS,
    SUPERVISED,
    Placed,
    Row,
    Rows,
    Wants,
    ends_in_question,
    prompt_fields,
    rows_of,
)
from finepref.synth.encoding import ChangedByTemplateError, RefusedByTemplateError, encoding_problem
from finepref.synth.left_out import LEFT_OUT, Ledger

Check = Callable[[Scored, str, int], list[Problem]]
"""(record, file, line) -> its problems."""


class ScoredFile(NamedTuple):
    """What became of a file.

    Attributes:
        rows: number of rows written.
        responses: number of responses in them.
        empty: how many of these are empty; they have no reward.
        cut: how many of these were scored in part, or after a part of the prompt.
        left_out: the rows that are not scored, each with its reason.
        cut_rows: id -> what was cut, see `methods.overlong.Fit`.
    """

    rows: int
    responses: int
    empty: int
    cut: int
    left_out: Ledger
    cut_rows: Mapping[str, str]

    @property
    def cut_counts(self) -> Counter[str]:
        """The number of rows by what was cut."""
        return Counter(part for cut in self.cut_rows.values() for part in cut.split(","))


def _is_scorable(row: Mapping[str, object]) -> bool:
    """Whether a row is one of samples, {responses, ...}, or a pair of texts with a prompt."""
    if not {"query", "query_id", "responses"}.isdisjoint(row):
        return True
    return type(row.get("chosen")) is str and type(row.get("rejected")) is str and ends_in_question(row)


def _own_row(record: Record, told: Counter[str]) -> Row:
    """A record with its responses; a pair keeps its margin."""
    if isinstance(record, SpanPair | ScoredPair):
        told["pairs whose spans or scores are not kept"] += 1
        record = Pair(record.id, record.prompt, record.chosen, record.rejected)
    row = {name: value for name, value in to_row(record).items() if name != "id"}
    return Row(row, content_id(record.prompt, *row.values()))


def _together(placed: Sequence[Placed], told: Counter[str]) -> Iterator[tuple[str, RawRow]]:
    """The responses to each prompt of feedback as one row; the labels are the scores 1 and 0 if they differ."""
    groups: dict[Prompt, list[Placed]] = {}
    for each in placed:
        groups.setdefault(each.record.prompt, []).append(each)
    for prompt, group in groups.items():
        texts: dict[str, bool] = {}
        for each in group:
            assert isinstance(each.record, Feedback)
            if texts.setdefault(each.record.response, each.record.label) != each.record.label:
                told["responses labelled both ways, scored without labels"] += 1
        row: dict[str, object] = {"id": content_id(prompt, [*texts]), **prompt_fields(prompt), "responses": [*texts]}
        if len({*texts.values()}) == 2:
            row["scores"] = [float(label) for label in texts.values()]
        yield group[0].file, group[0].raw._replace(value=row, problems=[])


WANTS = Wants(
    "apo score",
    "samples, pairs, ranked responses or feedback",
    _is_scorable,
    (*PAIRS, "ranked", "rewardbench", "apo_samples"),
    (*PAIRS, "ranked", "feedback", SUPERVISED),
    _own_row,
    {"feedback": _together},
)


def score(
    source: Rows,
    output: Path,
    *,
    model: RewardModel,
    cut: bool = True,
    bad_rows: BadRows | None = None,
    work_dir: Path | None = None,
) -> ScoredFile:
    """Write the rewards of all responses of a file: rows {id, prompt or messages, responses, rewards, scores?, kind?}.

    Rows that are too long for the model's policy are not scored: they go to `<stem>.left_out.jsonl` with a reason.

    Args:
        source: samples {query_id, query, sample_0, ...}; pairs, ranked responses or feedback of any layout, whose
            scores are kept; or rows {id?, prompt or messages, responses} with any number of responses. An empty
            response gets the reward null.
        output: the JSON Lines file to write.
        model: the reward model.
        cut: remove what follows "\\nHuman:" in samples.
        bad_rows: collects rows with a problem; None = each is an error.
        work_dir: folder of the journal; by default `<stem>.work` beside the output.

    Raises:
        BadData: there are bad rows that `bad_rows` does not accept; a template that cannot write a dialogue (FP231,
            FP240) and a row that is too long for the policy `error` (FP203) are among them.
        ValueError: see `RewardModel.sequences`; or a reward is NaN or infinite.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    found: dict[str, Sequences] = {}

    def tokenise(record: Scored, file: str, line: int) -> list[Problem]:
        texts = [text for text in record.responses if text.strip()]
        try:
            made = model.sequences(record.prompt, texts) if texts else Sequences([])
        except (RefusedByTemplateError, ChangedByTemplateError) as error:
            return [encoding_problem(error, file=file, line=line)]
        if made.refused:
            return [Problem(file, line, "prompt", "FP203", made.refused)]
        found.setdefault(record.id, made)  # the first row with an id; a second one is refused
        return []

    given = rows_of(source, WANTS)
    records = read_scorable(given, cut=cut, bad_rows=bad_rows, check=tokenise)
    left_out = Ledger()
    for record in records:
        if reason := found[record.id].skipped:
            left_out.add(record.row, reason, kind="not scored")
    records = [record for record in records if not found[record.id].skipped]
    places = {
        record.id: [i for i, text in enumerate(record.responses) if text.strip()] for record in records
    }  # of the responses that are not empty
    items = {
        f"{name}/{i}": row
        for name, numbers in places.items()
        for i, row in zip(numbers, found[name].rows, strict=True)
    }
    settings = {
        "pooling": model.pooling,
        "cutoff_len": model.cutoff_len,
        "overlong": model.overlong,
        "cut": cut,
        "batch_tokens": model.batch_tokens,
    }

    def compute(done: Collection[str]) -> Iterator[list[dict[str, object]]]:
        for rewards in model.rewards(items, done=done):
            if not all(map(math.isfinite, rewards.values())):
                raise ValueError(f"{model.folder} gives no number for one of {', '.join(rewards)}")
            yield [{"id": name, "reward": value} for name, value in rewards.items()]

    job = Job(
        name="apo score",
        source=given,
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
    left_out.write(output, LEFT_OUT)
    responses = sum(len(record.responses) for record in records)
    cuts = {record.id: found[record.id].cut for record in records if found[record.id].cut}
    return ScoredFile(
        len(rows), responses, responses - len(items), sum(item.cut for item in items.values()), left_out, cuts
    )


def read_scorable(
    source: RowSource | Path,
    *,
    cut: bool = True,
    bad_rows: BadRows | None = None,
    check: Check = lambda record, file, line: [],
) -> list[Scored]:
    """The good rows of a file of samples, records or responses, with no rewards yet.

    Args:
        source: the file, or the rows of `score`.
        cut: remove what follows "\\nHuman:" in samples.
        bad_rows: collects the other rows; None = each is an error.
        check: gives further problems of a row.

    Raises:
        BadData: there are bad rows that `bad_rows` does not accept.
    """
    first = next((raw for part in parts_of(source) for raw in part.rows), None)
    if first is None or not {"query", "query_id"} & (first.value or {}).keys():

        def read(reader: RowReader) -> Scored | None:
            scored = _scorable(reader)
            if scored is not None and not reader.problems:
                reader.problems += check(scored, reader.file, reader.line)
            return scored

        return read_identified(source, read, bad_rows=bad_rows)
    found: list[Scored] = []

    def keep(key: str, item: ApoItem) -> list[Problem]:
        texts = [cut_at_next_turn(text) if cut else text for text in item.texts.values()]
        prompt, responses = item.dialogue(texts)
        scored = Scored(key, prompt, tuple(responses), (None,) * len(texts))
        problems = check(scored, item.file, item.line)
        if not problems:
            found.append(scored)
        return problems

    read_items(source, "sample", bad_rows=bad_rows, check=keep)
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
