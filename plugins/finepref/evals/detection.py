"""Whether a model tells an answer with an injected error from the good answer to the same question.

The model is shown a question with one answer and two options, "it contains an error" and "it is right". P(error) is
the probability of the first one's letter, the mean over both orders of the options, as small models prefer a letter.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from finepref.formats.bad_rows import BadRows
from finepref.formats.check import read_records
from finepref.formats.problems import Problem
from finepref.formats.records import FunctionCall, Message, Negatives, Record
from finepref.synth.ask import Job, ask
from finepref.synth.data_sources.job_rows import JobRows
from finepref.synth.engines import letters
from finepref.synth.engines.protocol import Engine, Request, prompt_problems
from finepref.synth.left_out import unanswered

ASK = """\
Below are a question and an answer to it. Does the answer contain an error?

### Question
{question}

### Answer
{answer}

### Options
A. {first}
B. {second}

Reply with the letter of the right option and nothing else.
"""
OPTIONS = ("It contains an error.", "It is right.")
VERSION = "detection-" + hashlib.blake2b("\0".join([ASK, *OPTIONS]).encode(), digest_size=4).hexdigest()


class Detected(NamedTuple):
    """P(error) by record, of the good answer and of each negative by name; and why other texts have none."""

    probabilities: Mapping[str, tuple[float, Mapping[str, float]]]
    without: Mapping[str, str]


def detect(data: JobRows, *, engine: Engine, folder: Path, bad_rows: BadRows | None = None) -> Detected:
    """Ask about every good answer and every negative, in both orders of the options.

    Args:
        data: rows in the format `negatives`.
        engine: of letters, see `letters.letters_of`.
        folder: of the journal.
        bad_rows: see `read_records`; rows that the chat template refuses are bad too.

    Raises:
        BadData, JournalBusy, JournalChanged, JournalDamaged: see `read_records` and `ask`.
    """

    def problems(record: Record, line: int) -> list[Problem]:
        assert isinstance(record, Negatives)
        calls = [name for name, text in _texts(record).items() if isinstance(text, FunctionCall)]
        if calls:
            told = "the model is asked about texts, and the response calls functions"
            return [Problem("", line, calls[0] or "chosen", "FP242", told)]
        return prompt_problems(engine, _messages(record, record.chosen, 0), file="", line=line)

    records = read_records(data, "negatives", bad_rows=bad_rows, check=problems)
    requests = [
        Request(f"{record.id}/{name}/{order}", _messages(record, text, order), 1)
        for record in records
        if isinstance(record, Negatives)
        for name, text in _texts(record).items()
        for order in (0, 1)
    ]
    job = Job(name="eval detection", source=data, folder=folder, prompt_version=VERSION, settings={})
    answers = ask(requests, engine=engine, job=job)
    found: dict[str, tuple[float, Mapping[str, float]]] = {}
    failed: dict[str, str] = {}
    for record in records:
        assert isinstance(record, Negatives)
        shares: dict[str, float] = {}
        for name in _texts(record):
            both: list[float] = []
            for order, letter in enumerate("AB"):
                answer = answers[f"{record.id}/{name}/{order}"]
                read = unanswered(answer.error) if answer.error else letters.read(answer.text, "AB")
                if isinstance(read, str):
                    failed[f"{record.id}/{name}"] = read
                else:
                    both.append(read[0][letter])
            if len(both) == 2:
                shares[name] = fmean(both)
        if "" in shares:
            good = shares.pop("")
            found[record.id] = good, shares
    return Detected(found, failed)


def auroc(good: Sequence[float], bad: Sequence[float]) -> float:
    """The probability that P(error) is higher for an answer with an error than for a good one; a tie counts half."""
    ordered = sorted(good)
    below = (bisect_left(ordered, each) + bisect_right(ordered, each) for each in bad)
    return sum(below) / (2 * len(good) * len(bad))


def _texts(record: Negatives) -> dict[str, str]:
    return {"": record.chosen, **record.negatives}


def _messages(record: Negatives, answer: str, order: int) -> tuple[Message, ...]:
    """The question about an answer; with order 1 the options change places."""
    turns = record.prompt
    question = turns[0].content
    if len(turns) > 1:
        question = "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in turns)
    first, second = OPTIONS if order == 0 else OPTIONS[::-1]
    return (Message("user", ASK.format(question=question, answer=answer, first=first, second=second)),)
