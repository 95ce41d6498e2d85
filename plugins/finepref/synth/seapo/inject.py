"""`finepref seapo inject`: a file of questions with good answers in, a file of negatives out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from finepref.formats.bad_rows import BadRows
from finepref.formats.convert import Converter
from finepref.formats.files import write_json
from finepref.formats.identified import read_identified
from finepref.formats.jsonl import write_jsonl
from finepref.formats.records import FIELDS, Negatives, Pair, Record, ScoredPair, SpanPair, content_id, to_row
from finepref.formats.row import RowReader
from finepref.formats.row_source import RowSource
from finepref.synth.ask import Job, ask, work_folder
from finepref.synth.data_sources.job_rows import (
    PAIRS,
    SUPERVISED,
    Row,
    Rows,
    Wants,
    answer_of,
    ends_in_question,
    prompt_fields,
    rows_of,
)
from finepref.synth.engines.protocol import Engine
from finepref.synth.left_out import ENGINE, FAILED, Ledger
from finepref.synth.seapo.attempts import Attempt, by_model, by_rule, checked
from finepref.synth.seapo.prompts import (
    CHECK_VERSION,
    ERRORS,
    PROMPT_VERSION,
    Source,
    check_request,
    request,
    variants,
)

ALSO = ("feedback", "pair", "span_pair")
"""Formats that negatives can be written in besides their own."""

Attempts = Mapping[str, Attempt]
"""The attempts for one source, by error type or variant."""


@dataclass(frozen=True, slots=True)
class Injected:
    """The result of the job: records = written + failed.

    Attributes:
        written: records with at least one usable negative.
        failed: records without one.
        negatives: the number of usable negatives by error type.
        rejected: every text that is not a usable negative: {id, type, reason, measured?, text, chosen}, with the
            error of the engine in place of the text if there is none.
        taken_off: the number of answers from which a thought or a fence was taken off.
        examples: for each reason that has one, an example: what a gate measured, or an error of the engine.
    """

    written: int
    failed: int
    negatives: Counter[str]
    rejected: Ledger = field(repr=False)
    taken_off: Counter[str] = field(default_factory=Counter)
    examples: Mapping[str, str] = field(default_factory=dict)


def outputs(output: Path, also: Sequence[str] = ()) -> list[Path]:
    """All files that the job may write or remove."""
    further = (output.with_suffix(f".{target}.jsonl") for target in also)
    return [output, output.with_suffix(".report.json"), FAILED.path(output), *further]


def inject(
    source: Rows,
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
    bad_rows: BadRows | None = None,
    **gates: float,
) -> Injected:
    """Make negatives for every row {id?, prompt or messages, chosen, ...} of a file.

    Writes `output` (rows of the format `negatives` in the order of the input, other fields kept) and, beside it,
    `<stem>.report.json` (counts, and every rejected text with its reason) and, if there are any, `<stem>.failed.jsonl`
    (input rows without a usable negative). All of them depend on the input and the answers only.

    Args:
        source: such rows, or the prompts and good answers of any layout.
        output: the file to write.
        engine: the model that makes the errors; None makes them by rule.
        types: error types to make.
        work_dir: folder of the journal; by default `<stem>.work` beside the output.
        max_new_tokens: longest answer of the engine.
        temperature: 0 is greedy.
        seed: of the engine's samples and of the rules.
        count: negatives of each type; the second is named logic-2, and so on.
        check: ask the engine about each usable negative whether it contains the error, and keep those it confirms.
        also: further formats to write, as `<stem>.<format>.jsonl`: feedback (prompts interleaved), pair, span_pair.
        bad_rows: see `read_identified`.
        gates: bounds of `gates.fault`.

    Raises:
        BadData: the input has problems.
        ValueError: an unknown error type or format, or settings that contradict each other.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    if not types or not {*types} <= ERRORS.keys() or len({*types}) < len(types):
        raise ValueError(f"error types are one or more of {', '.join(ERRORS)}, each once; got {', '.join(types)!r}")
    if not {*also} <= {*ALSO}:
        raise ValueError(f"further formats are {', '.join(ALSO)}; got {', '.join(also)!r}")
    if engine is None and check:
        raise ValueError("a check is for a model's errors: errors by rule are known to be there")
    if engine is not None and count > 1 and temperature == 0:
        raise ValueError("several negatives of one type need a temperature above 0, or they are all the same")
    given = rows_of(source, WANTS)
    sources = read_sources(given, bad_rows)
    names = variants(types, count)
    settings: dict[str, object] = {"model": engine.model if engine else "rules", "gates": gates}
    if engine is None:
        attempts: list[Attempts] = [{name: by_rule(each, name, seed=seed) for name in names} for each in sources]
        return _write(sources, attempts, output, settings, also)
    job = Job(
        name="seapo inject",
        source=given,
        folder=work_folder(output, work_dir),
        prompt_version=PROMPT_VERSION,
        settings={"max_new_tokens": max_new_tokens, "temperature": temperature},
        seed=seed,
    )
    requests = [
        request(each, name, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        for each in sources
        for name in names
    ]
    answers = ask(requests, engine=engine, job=job)
    attempts = [{name: by_model(each, answers[f"{each.id}/{name}"], **gates) for name in names} for each in sources]
    if check:
        settings["check"] = CHECK_VERSION
        attempts = _confirmed(sources, attempts, engine, job, max_new_tokens)
    return _write(sources, attempts, output, settings, also)


def read_sources(source: RowSource | Path, bad_rows: BadRows | None = None) -> list[Source]:
    """The rows of an input.

    Raises:
        BadData: see `read_identified`.
    """
    return read_identified(source, _source, bad_rows=bad_rows)


def _has_answer(row: Mapping[str, object]) -> bool:
    """Whether a row is {prompt or messages, chosen, ...}, and not the step of a solution."""
    return type(row.get("chosen")) is str and ends_in_question(row)


def _answered(record: Record, told: Counter[str]) -> Row | None:
    """The prompt and the good answer of a record, each once; a pair keeps its rejected response."""
    if (chosen := answer_of(record, told)) is None:
        return None
    row = prompt_fields(record.prompt) | {"chosen": chosen}
    if isinstance(record, Pair | SpanPair | ScoredPair):
        row["rejected"] = record.rejected
    return Row(row, content_id(record.prompt, chosen))


WANTS = Wants(
    "seapo inject",
    "prompts with good answers",
    _has_answer,
    (*PAIRS, "negatives", "rewardbench"),
    (*PAIRS, "ranked", "feedback", SUPERVISED),
    _answered,
)


def _source(reader: RowReader) -> Source:
    given, prompt, chosen = reader.id(), reader.prompt(), reader.required_text("chosen")
    reader.optional_text("rejected")
    for name in ("negatives", "spans"):
        if name in reader.values:
            reader.note(name, "FP015", "the row has negatives already")
    return Source(given or content_id(prompt), prompt, chosen, {**reader.row})


def _confirmed(
    sources: Sequence[Source], attempts: Sequence[Attempts], engine: Engine, job: Job, max_new_tokens: int
) -> list[Attempts]:
    """The attempts after a check by the engine: it is asked whether each usable negative contains its error.

    Args:
        sources: the questions.
        attempts: of each source.
        engine: the model that is asked.
        job: the job that made the attempts; the checks have a journal of their own in its folder.
        max_new_tokens: longest answer.
    """
    requests = [
        check_request(source, name, attempt.text, max_new_tokens=max_new_tokens)
        for source, by_name in zip(sources, attempts, strict=True)
        for name, attempt in by_name.items()
        if attempt.reason is None
    ]
    check = replace(
        job, name="seapo check", folder=job.folder / "check", prompt_version=f"{job.prompt_version}+{CHECK_VERSION}"
    )
    answers = ask(requests, engine=engine, job=check)
    return [
        {
            name: attempt if attempt.reason else checked(attempt, answers[f"{source.id}/{name}"])
            for name, attempt in by_name.items()
        }
        for source, by_name in zip(sources, attempts, strict=True)
    ]


def _write(
    sources: Sequence[Source],
    attempts: Sequence[Attempts],
    output: Path,
    settings: Mapping[str, object],
    also: Sequence[str],
) -> Injected:
    """Write all files of the job.

    Args:
        sources: the input.
        attempts: of each source.
        output: the file of negatives; the others are beside it.
        settings: for the report.
        also: see `inject`.
    """
    records: list[Negatives] = []
    rows: list[dict[str, object]] = []
    failed, rejected = Ledger(), Ledger()
    usable: Counter[str] = Counter()
    taken_off: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for source, by_type in zip(sources, attempts, strict=True):
        good: dict[str, Attempt] = {}
        for name, attempt in by_type.items():
            repeated = any(attempt.text == other.text for other in good.values())
            reason = attempt.reason or ("same_as_another" if repeated else None)
            taken_off.update(attempt.taken_off)
            if reason:
                told = {"id": source.id, "type": name, "reason": reason}
                if attempt.measured:
                    told["measured"] = attempt.measured
                if example := attempt.text if reason == ENGINE else attempt.measured:
                    examples.setdefault(reason, example)
                told |= {"text": attempt.text, "chosen": source.chosen}
                rejected.add(told, reason, kind=name)
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
            failed.add(source.row, "no usable negative")
    failed.write(output, FAILED)
    report = {
        "job": "seapo inject",
        "prompt_version": PROMPT_VERSION,
        **settings,
        "records": len(sources),
        "written": len(rows),
        "failed": len(failed),
        "negatives": dict(usable),
        "taken_off": dict(taken_off),
        "rejected": {name: dict(counts) for name, counts in rejected.counts_by_kind.items()},
        "rejected_texts": rejected.rows,
    }
    write_json(output.with_suffix(".report.json"), report)
    for target in also:
        placed = ((str(output), number, record) for number, record in enumerate(records, start=1))
        write_jsonl(output.with_suffix(f".{target}.jsonl"), map(to_row, Converter(target).run(placed)))
    write_jsonl(output, rows)
    return Injected(len(rows), len(failed), usable, rejected, taken_off, examples)
