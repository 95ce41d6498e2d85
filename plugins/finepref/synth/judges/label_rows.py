"""`finepref judge`: rows with responses in, the same rows with a label out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from finepref.formats.jsonl import RawRow, read_rows, write_jsonl
from finepref.formats.problems import BadData, Problem
from finepref.formats.records import content_id
from finepref.formats.row import RowReader
from finepref.synth.ask import Job, ask, work_folder
from finepref.synth.engines.protocol import Completion, Engine, Request, request_seed
from finepref.synth.judges.verdict import ModelJudge, Rule, Verdict
from finepref.synth.left_out import UNJUDGED, Ledger, unanswered


class Labelled(NamedTuple):
    """Number of rows = passed + failed + unjudged; the last are in `<stem>.unjudged.jsonl` and in no other file."""

    passed: int
    failed: int
    unjudged: int
    unanswered: int
    """The number of unjudged rows that the engine failed on; the same command asks for those again."""


def judge(
    path: Path,
    output: Path,
    *,
    judge: Rule | ModelJudge,
    name: str,
    engine: Engine | None = None,
    work_dir: Path | None = None,
    max_new_tokens: int = 256,
    seed: int = 0,
) -> Labelled:
    """Write every row that got a verdict, with `label` (passed) and `verdict` {judge, reason, score}.

    Rows of the format `feedback` keep that format: a response that passes is desirable. Rows without a verdict go to
    `<stem>.unjudged.jsonl` with the reason and are never used as data.

    Args:
        path: rows with `response` (entropy: `responses`); a judge by a model also needs prompt or messages.
        output: the JSON Lines file to write.
        judge: a rule, or a judge by a model together with `engine`.
        name: of the judge, for the rows and the journal.
        engine: answers the questions of a judge by a model, greedily.
        work_dir: folder of the journal; by default `<stem>.work` beside the output.
        max_new_tokens: longest answer of the model.
        seed: of the requests, for the journal.

    Raises:
        BadData: the input has problems, such as a row that has `label` or `verdict` already.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    raws = _rows(path)
    rows = [raw.value for raw in raws if raw.value is not None]
    if isinstance(judge, ModelJudge):
        assert engine is not None
        requests = _requests(path, raws, judge, max_new_tokens, seed)
        job = Job(
            name=f"judge {name}",
            source=path,
            folder=work_folder(output, work_dir),
            prompt_version=judge.version,
            settings={"max_new_tokens": max_new_tokens, "temperature": 0.0},
            seed=seed,
        )
        found = ask(requests, engine=engine, job=job)
        verdicts = [_verdict(judge, found[request.id]) for request in requests]
    else:
        verdicts = [judge(row) for row in tqdm(rows, desc=f"judge {name}", unit="row", disable=None)]
    judged, left_out = [], Ledger()
    for row, verdict in zip(rows, verdicts, strict=True):
        if verdict.passed is None:
            left_out.add(row, verdict.reason, kind="unjudged")
        else:
            told = {"judge": name, "reason": verdict.reason, "score": verdict.score}
            judged.append(
                {**row, "label": verdict.passed, "verdict": {k: v for k, v in told.items() if v not in ("", None)}}
            )
    left_out.write(output, UNJUDGED)
    write_jsonl(output, judged)
    passed = sum(bool(row["label"]) for row in judged)
    return Labelled(passed, len(judged) - passed, len(left_out), left_out.unanswered)


def _rows(path: Path) -> list[RawRow]:
    rows: list[RawRow] = []
    problems: list[Problem] = []
    for raw in read_rows(path):
        problems += raw.problems
        if raw.value is not None:
            problems += [
                Problem(str(path), raw.line, field, "FP013", "the row has a verdict already")
                for field in ("label", "verdict")
                if field in raw.value
            ]
            rows.append(raw)
    if problems:
        raise BadData(problems)
    return rows


def _requests(path: Path, rows: Sequence[RawRow], judge: ModelJudge, max_new_tokens: int, seed: int) -> list[Request]:
    """One request per row.

    Args:
        path: of the input, for the problems.
        rows: of the input.
        judge: says what to ask.
        max_new_tokens: longest answer.
        seed: see `request_seed`.
    """
    requests: list[Request] = []
    problems: list[Problem] = []
    for number, raw in enumerate(rows):
        reader = RowReader(raw.value or {}, columns={}, file=str(path), line=raw.line, nulls_absent=False)
        prompt, response = reader.prompt(), reader.required_text("response")
        problems += reader.problems
        if not reader.problems:
            key = f"{number}/{content_id(prompt, response)}"
            messages = judge.ask(prompt, response)
            requests.append(Request(key, messages, max_new_tokens, seed=request_seed(seed, key)))
    if problems:
        raise BadData(problems)
    return requests


def _verdict(judge: ModelJudge, answer: Completion) -> Verdict:
    return judge.read(answer.text) if answer.error is None else Verdict(None, unanswered(answer.error))
