"""`finepref judge`: rows with responses in, the same rows with a label out."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from finepref.formats.bad_rows import BadRows
from finepref.formats.identified import read_each
from finepref.formats.jsonl import write_jsonl
from finepref.formats.records import Feedback, Message, Record, content_id
from finepref.formats.row import RowReader
from finepref.synth.ask import Job, ask, work_folder
from finepref.synth.data_sources.job_rows import SUPERVISED, Row, Rows, Wants, prompt_fields, rows_of
from finepref.synth.engines.protocol import Completion, Engine, Request, prompt_problems, request_seed
from finepref.synth.judges.verdict import ModelJudge, Rule, Verdict
from finepref.synth.left_out import UNJUDGED, Ledger, unanswered


class Labelled(NamedTuple):
    """Number of rows = passed + failed + unjudged; the last are in `<stem>.unjudged.jsonl` and in no other file."""

    passed: int
    failed: int
    unjudged: int
    unanswered: int
    """The number of unjudged rows that the engine failed on; the same command asks for those again."""


def _answer(record: Record, told: Counter[str]) -> Row:
    """The prompt and the answer of a supervised row, which has no verdict."""
    assert isinstance(record, Feedback)
    return Row(prompt_fields(record.prompt) | {"response": record.response})


WANTS = Wants(
    "judge",
    "rows with a response and no label",
    lambda row: not {"response", "responses", "letters"}.isdisjoint(row),
    None,
    (SUPERVISED,),
    _answer,
)


def judge(
    source: Rows,
    output: Path,
    *,
    judge: Rule | ModelJudge,
    name: str,
    engine: Engine | None = None,
    work_dir: Path | None = None,
    max_new_tokens: int = 256,
    seed: int = 0,
    bad_rows: BadRows | None = None,
) -> Labelled:
    """Write every row that got a verdict, with `label` (passed) and `verdict` {judge, reason, score}.

    Rows of the format `feedback` keep that format: a response that passes is desirable. Rows without a verdict go to
    `<stem>.unjudged.jsonl` with the reason and are never used as data.

    Args:
        source: rows with `response` (entropy: `responses` or `letters`); a judge by a model also needs prompt or
            messages. Of sets for supervised training the answer is the response.
        output: the JSON Lines file to write.
        judge: a rule, or a judge by a model together with `engine`.
        name: of the judge, for the rows and the journal.
        engine: answers the questions of a judge by a model, greedily.
        work_dir: folder of the journal; by default `<stem>.work` beside the output.
        max_new_tokens: longest answer of the model.
        seed: of the requests, for the journal.
        bad_rows: see `read_each`.

    Raises:
        BadData: see `read_each`; a problem is, for example, a row that has `label` or `verdict` already.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    given = rows_of(source, WANTS)
    found = read_each(given, partial(_read, judge=judge, engine=engine), bad_rows=bad_rows)
    rows = [each.row for each in found]
    if isinstance(judge, ModelJudge):
        assert engine is not None
        requests = []
        for number, each in enumerate(found):
            key = f"{number}/{each.key}"
            requests.append(Request(key, each.question, max_new_tokens, seed=request_seed(seed, key)))
        job = Job(
            name=f"judge {name}",
            source=given,
            folder=work_folder(output, work_dir),
            prompt_version=judge.version,
            settings={"max_new_tokens": max_new_tokens, "temperature": 0.0},
            seed=seed,
        )
        answers = ask(requests, engine=engine, job=job)
        verdicts = [_verdict(judge, answers[request.id]) for request in requests]
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


class _Judgeable(NamedTuple):
    """A row, and for a judge by a model the question about it and a key of its content."""

    row: dict[str, object]
    question: tuple[Message, ...] = ()
    key: str = ""


def _read(reader: RowReader, *, judge: Rule | ModelJudge, engine: Engine | None) -> _Judgeable | None:
    for field in ("label", "verdict"):
        if field in reader.row:
            reader.note(field, "FP013", "the row has a verdict already")
    row = {**reader.row}
    if not isinstance(judge, ModelJudge):
        return _Judgeable(row)
    prompt, response = reader.prompt(), reader.required_text("response")
    if reader.problems:
        return None
    question = judge.ask(prompt, response)
    reader.problems += prompt_problems(engine, question, file=reader.file, line=reader.line)
    return _Judgeable(row, question, content_id(prompt, response))


def _verdict(judge: ModelJudge, answer: Completion) -> Verdict:
    return judge.read(answer.text) if answer.error is None else Verdict(None, unanswered(answer.error))
