"""The job behind `finepref seapo inject`: a file of questions with good answers in, a file of negatives out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from finepref.formats.check import digest
from finepref.formats.convert import Converter
from finepref.formats.files import write_json
from finepref.formats.identified import read_identified
from finepref.formats.jsonl import write_aside, write_jsonl
from finepref.formats.records import FIELDS, Negatives, content_id, to_row
from finepref.formats.row import RowReader
from finepref.synth.engines.protocol import Engine, ask_all
from finepref.synth.journal import Journal
from finepref.synth.seapo.prompts import (
    CHECK_VERSION,
    ERRORS,
    PROMPT_VERSION,
    Attempt,
    Source,
    by_model,
    by_rule,
    check_request,
    checked,
    request,
    variants,
)

ALSO = ("feedback", "pair", "span_pair")
"""Formats that negatives can be written in besides their own."""


class Rejected(NamedTuple):
    """A text that is no usable negative, and why; for the reason "engine" its error instead of a text."""

    id: str
    type: str
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of the job: records = written + failed, and per error type the usable negatives."""

    written: int
    failed: int
    negatives: Counter[str]
    rejected: Sequence[Rejected] = field(repr=False)

    @property
    def unanswered(self) -> int:
        """Requests that failed at the engine; the same command asks them again."""
        return sum(each.reason == "engine" for each in self.rejected)


def inject(
    path: Path,
    output: Path,
    *,
    engine: Engine | None,
    types: Sequence[str] = tuple(ERRORS),
    work_dir: Path | None = None,
    max_new_tokens: int = 1024,
    temperature: float = 0.0,
    seed: int = 0,
    count: int = 1,
    check: bool = False,
    also: Sequence[str] = (),
    **gates: float,
) -> Outcome:
    """Make negatives for every row {id?, prompt or messages, chosen, ...} of a file.

    Writes `output` (rows of the format `negatives` in the order of the input, other fields kept), beside it
    `<stem>.report.json` (counts, and every rejected text with its reason) and, if there are any, `<stem>.failed.jsonl`
    (input rows without one usable negative). All depend on the input and the answers only.

    Args:
        path: JSON Lines or a JSON array.
        output: the file to write.
        engine: what is asked; None makes errors by rule.
        types: error types to make.
        work_dir: where the journal is; by default `<stem>.work` beside the output.
        max_new_tokens, temperature, seed: for the engine; the rules use `seed` only.
        count: negatives of each type; the second is kept under the name logic-2, and so on.
        check: ask the engine about each usable negative whether the error is there, and keep only what it confirms.
        also: further formats to write, as `<stem>.<format>.jsonl`: feedback (prompts interleaved), pair, span_pair.
        gates: bounds of `seapo.fault`.

    Raises:
        BadData: the input has problems.
        ValueError: an unknown error type or format, or settings that do not go together.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    if not types or not {*types} <= ERRORS.keys() or len({*types}) < len(types):
        raise ValueError(f"error types are one or more of {', '.join(ERRORS)}, each once; got {', '.join(types)!r}")
    if not {*also} <= {*ALSO}:
        raise ValueError(f"further formats are {', '.join(ALSO)}; got {', '.join(also)!r}")
    if engine is None and check:
        raise ValueError("a rule knows what it did: only a model's errors are checked")
    if engine is not None and count > 1 and temperature == 0:
        raise ValueError("several negatives of one type need a temperature above 0, or they are all the same")
    sources = read_sources(path)
    names = variants(types, count)
    settings: dict[str, object] = {"model": engine.model if engine else "rules", "gates": gates}
    if engine is None:
        attempts = [{name: by_rule(source, name, seed=seed) for name in names} for source in sources]
        return _write(sources, attempts, output, settings, also)
    job = {"model": engine.model, "seed": seed, "input_digest": digest(path)}
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    folder = work_dir or output.with_suffix(".work")
    with Journal(folder, job="seapo inject", prompt_version=PROMPT_VERSION, sampling=sampling, **job) as journal:
        requests = [
            request(source, name, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
            for source in sources
            for name in names
        ]
        answers = ask_all(requests, engine=engine, journal=journal)
    attempts = [
        {name: by_model(source, answers[f"{source.id}/{name}"], **gates) for name in names} for source in sources
    ]
    if check:
        settings["check"] = CHECK_VERSION
        with Journal(
            folder / "check",
            job="seapo check",
            prompt_version=f"{PROMPT_VERSION}+{CHECK_VERSION}",
            sampling=sampling,
            **job,
        ) as journal:
            requests = [
                check_request(source, name, attempt.text, max_new_tokens=max_new_tokens)
                for source, by_name in zip(sources, attempts, strict=True)
                for name, attempt in by_name.items()
                if attempt.reason is None
            ]
            answers = ask_all(requests, engine=engine, journal=journal)
        attempts = [
            {
                name: attempt if attempt.reason else checked(attempt, answers[f"{source.id}/{name}"])
                for name, attempt in by_name.items()
            }
            for source, by_name in zip(sources, attempts, strict=True)
        ]
    return _write(sources, attempts, output, settings, also)


def read_sources(path: Path) -> list[Source]:
    """The rows of an input file.

    Raises:
        BadData: with all problems of the file.
    """
    return read_identified(path, _source)


def _source(reader: RowReader) -> Source:
    given, prompt, chosen = reader.id(), reader.prompt(), reader.required_text("chosen")
    reader.optional_text("rejected")
    for name in ("negatives", "spans"):
        if name in reader.values:
            reader.note(name, "FP015", "the row has negatives already")
    return Source(given or content_id(prompt), prompt, chosen, {**reader.row})


def _write(
    sources: Sequence[Source],
    attempts: Sequence[dict[str, Attempt]],
    output: Path,
    settings: dict[str, object],
    also: Sequence[str],
) -> Outcome:
    records: list[Negatives] = []
    rows: list[dict[str, object]] = []
    failed: list[dict[str, object]] = []
    rejected: list[Rejected] = []
    usable: Counter[str] = Counter()
    for source, by_type in zip(sources, attempts, strict=True):
        good: dict[str, Attempt] = {}
        for name, attempt in by_type.items():
            repeated = any(attempt.text == other.text for other in good.values())
            reason = attempt.reason or ("same_as_another" if repeated else None)
            if reason:
                rejected.append(Rejected(source.id, name, reason, attempt.text))
            else:
                good[name] = attempt
        usable.update(good.keys())
        if good:
            texts = {name: attempt.text for name, attempt in good.items()}
            spans = {name: attempt.spans for name, attempt in good.items()}
            original = source.row.get("rejected")
            record = Negatives(source.id, source.prompt, source.chosen, texts, spans, original)
            records.append(record)
            extra = {name: value for name, value in source.row.items() if name not in FIELDS["negatives"]}
            rows.append(to_row(record) | extra)
        else:
            failed.append(dict(source.row))
    reasons: dict[str, Counter[str]] = {}
    for each in rejected:
        reasons.setdefault(each.type, Counter())[each.reason] += 1
    outcome = Outcome(len(rows), len(failed), usable, rejected)
    write_aside(output.with_suffix(".failed.jsonl"), failed)
    report = {
        "job": "seapo inject",
        "prompt_version": PROMPT_VERSION,
        **settings,
        "records": len(sources),
        "written": len(rows),
        "failed": len(failed),
        "negatives": dict(usable),
        "rejected": {name: dict(counts) for name, counts in reasons.items()},
        "rejected_texts": [each._asdict() for each in rejected],
    }
    write_json(output.with_suffix(".report.json"), report)
    for target in also:
        placed = ((str(output), number, record) for number, record in enumerate(records, start=1))
        write_jsonl(output.with_suffix(f".{target}.jsonl"), map(to_row, Converter(target).run(placed)))
    write_jsonl(output, rows)
    return outcome
