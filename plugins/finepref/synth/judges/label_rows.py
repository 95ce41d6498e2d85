"""The job behind `finepref judge`: rows with responses in, the same rows with a label out."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from finepref.formats.check import digest
from finepref.formats.jsonl import RawRow, read_rows, write_aside, write_jsonl
from finepref.formats.problems import BadData, Problem
from finepref.formats.records import content_id
from finepref.formats.row import RowReader
from finepref.synth.engines.protocol import UNANSWERED, Engine, Request, ask_all, request_seed
from finepref.synth.journal import Journal
from finepref.synth.judges.by_rule import Asked, Rule, Verdict


class Outcome(NamedTuple):
    """rows = passed + failed + unjudged; the last are in `<stem>.unjudged.jsonl` and in no other file."""

    passed: int
    failed: int
    unjudged: int
    unanswered: int
    """How many of the last the engine failed on; the same command asks those again."""


def judge(
    path: Path,
    output: Path,
    *,
    judge: Rule | Asked,
    name: str,
    engine: Engine | None = None,
    work_dir: Path | None = None,
    max_new_tokens: int = 256,
    seed: int = 0,
) -> Outcome:
    """Write every row that got a verdict, with `label` (passed) and `verdict` {judge, reason, score}.

    The rows of the format `feedback` stay so: what passes is desirable. Rows without a verdict go to
    `<stem>.unjudged.jsonl` with the reason; they never become data.

    Args:
        path: rows with `response` (entropy: `responses`), and for a model with prompt or messages.
        output: the JSON Lines file to write.
        judge: by rule, or by a model with `engine`.
        name: of the judge, for the rows and the journal.
        engine: answers what a judge by a model asks, greedily.
        work_dir: where the journal is; by default `<stem>.work` beside the output.
        max_new_tokens, seed: for the engine.

    Raises:
        BadData: the input has problems, such as a row that has `label` or `verdict` already.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    raws = _rows(path)
    rows = [raw.value for raw in raws if raw.value is not None]
    if isinstance(judge, Asked):
        assert engine is not None
        verdicts = _asked(
            path, raws, judge, name, engine, work_dir or output.with_suffix(".work"), max_new_tokens, seed
        )
    else:
        verdicts = [judge(row) for row in tqdm(rows, desc=f"judge {name}", unit="row", disable=None)]
    judged, unjudged = [], []
    for row, verdict in zip(rows, verdicts, strict=True):
        if verdict.passed is None:
            unjudged.append({**row, "reason_unjudged": verdict.reason})
        else:
            told = {"judge": name, "reason": verdict.reason, "score": verdict.score}
            judged.append(
                {**row, "label": verdict.passed, "verdict": {k: v for k, v in told.items() if v not in ("", None)}}
            )
    write_aside(output.with_suffix(".unjudged.jsonl"), unjudged)
    write_jsonl(output, judged)
    passed = sum(bool(row["label"]) for row in judged)
    unanswered = sum(verdict.reason.startswith(UNANSWERED) for verdict in verdicts if verdict.passed is None)
    return Outcome(passed, len(judged) - passed, len(unjudged), unanswered)


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


def _asked(
    path: Path,
    rows: list[RawRow],
    judge: Asked,
    name: str,
    engine: Engine,
    work_dir: Path,
    max_new_tokens: int,
    seed: int,
) -> list[Verdict]:
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
    with Journal(
        work_dir,
        job=f"judge {name}",
        model=engine.model,
        prompt_version=judge.version,
        sampling={"max_new_tokens": max_new_tokens, "temperature": 0.0},
        seed=seed,
        input_digest=digest(path),
    ) as journal:
        found = ask_all(requests, engine=engine, journal=journal)
    return [_verdict(judge, found[request.id].error, found[request.id].text) for request in requests]


def _verdict(judge: Asked, error: str | None, text: str) -> Verdict:
    return judge.read(text) if error is None else Verdict(None, f"{UNANSWERED}{error}")
