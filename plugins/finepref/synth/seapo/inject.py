"""`finepref seapo inject`: a file of questions with good answers in, a file of negatives out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from finepref.formats.bad_rows import BadRows
from finepref.formats.convert import Converter
from finepref.formats.files import write_json, write_text
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
from finepref.synth.engines.protocol import Engine, request_seed
from finepref.synth.left_out import ENGINE, FAILED, Ledger
from finepref.synth.seapo.attempts import Attempt, by_model, by_rule, by_sentence, checked
from finepref.synth.seapo.choice import candidates
from finepref.synth.seapo.inject_report import Shown, as_markdown, shown, yields
from finepref.synth.seapo.prompts import (
    CHECK_VERSION,
    ERRORS,
    PROMPT_VERSION,
    Source,
    check_request,
    kind,
    number_of,
    request,
    variants,
)
from finepref.synth.seapo.sentences import Sentence, sentences
from finepref.synth.seapo.shots import SHOTS_VERSION, sentence_request
from finepref.synth.seapo.tries import NO_SENTENCE, Asked, Attempts, in_tries, usable

ALSO = ("feedback", "pair", "span_pair")
"""Formats that negatives can be written in besides their own."""

Chosen = dict[tuple[str, str], list[Sentence]]
"""The sentences for a source's id and an error type, the best first."""
RETRIES = {"answer": 0, "sentence": 3}
"""What a model rewrites, the whole answer, as in the paper, or one sentence of it -> how often by default it is asked
again for what a gate rejects."""


@dataclass(frozen=True, slots=True)
class Injected:
    """The result of the job: records = written + failed.

    Attributes:
        written: records with at least one usable negative.
        failed: records without one.
        names: error types and variants.
        negatives: the number of usable negatives by error type.
        rejected: every text that is not a usable negative: {id, type, reason, measured?, try?, sentence?, text,
            chosen}, with the error of the engine in place of the text if there is none.
        tries: for each try, how many texts were asked for and how many of them are usable.
        taken_off: the number of answers from which a thought or a fence was taken off.
        examples: for each reason that has one, an example: what a gate measured, or an error of the engine.
    """

    written: int
    failed: int
    names: Sequence[str]
    negatives: Counter[str]
    rejected: Ledger = field(repr=False)
    tries: Sequence[Mapping[str, int]] = ()
    taken_off: Counter[str] = field(default_factory=Counter)
    examples: Mapping[str, str] = field(default_factory=dict)

    def yields(self) -> list[list[str]]:
        """The rows of the table by type and reason, see `inject_report.yields`."""
        return yields(self.names, self.negatives, self.rejected, self.written + self.failed)


def outputs(output: Path, also: Sequence[str] = ()) -> list[Path]:
    """All files that the job may write or remove."""
    further = (output.with_suffix(f".{target}.jsonl") for target in also)
    reports = (output.with_suffix(suffix) for suffix in (".report.json", ".report.md"))
    return [output, *reports, FAILED.path(output), *further]


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
    by: str = "answer",
    retries: int | None = None,
    retry_temperature: float = 0.7,
    check: bool = False,
    also: Sequence[str] = (),
    bad_rows: BadRows | None = None,
    **gates: Any,
) -> Injected:
    """Make negatives for every row {id?, prompt or messages, chosen, ...} of a file.

    Writes `output` (rows of the format `negatives` in the order of the input, other fields kept) and, beside it,
    `<stem>.report.json` (counts, and every rejected text with its reason), the same to read with examples in
    `<stem>.report.md` and, if there are any, `<stem>.failed.jsonl` (input rows without a usable negative). All of them
    depend on the input and the answers only.

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
        by: what the model rewrites: the "answer", or one "sentence" of it, which `choice` chooses.
        retries: how often a text that a gate rejects is asked for again, by sentence with the next sentence; by
            default as in `RETRIES`.
        retry_temperature: of these requests.
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
    if by not in RETRIES:
        raise ValueError(f"a model rewrites the answer or a sentence; got {by!r}")
    if engine is None and (by == "sentence" or retries):
        raise ValueError("sentences and retries are for a model; the rules find the place of an error themselves")
    retries = RETRIES[by] if retries is None else retries
    if engine is not None and by == "answer" and count > 1 and temperature == 0:
        raise ValueError("several negatives of one type need a temperature above 0, or they are all the same")
    if retries and retry_temperature <= 0:
        raise ValueError("a retry needs a temperature above 0, or it gives the same text again")
    given = rows_of(source, WANTS)
    sources = read_sources(given, bad_rows)
    names = variants(types, count)
    settings: dict[str, object] = {"model": engine.model if engine else "rules", "gates": gates}
    if engine is None:
        made: list[Attempts] = in_tries(
            sources, names, lambda asked, _: [by_rule(source, name, seed=seed) for source, name in asked], tries=1
        )
        return _write(sources, made, output, settings, also)
    sampling: dict[str, object] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    chosen: Chosen = {}
    if by == "sentence":
        chosen = _sentences(sources, names, seed)
        texts = [each.text for asked in chosen for each in chosen[asked]]
        sampling |= {"by": by, "sentences": blake2b("\0".join(texts).encode(), digest_size=8).hexdigest()}
        settings["by"] = by
    if retries:
        settings |= {"retries": retries, "retry_temperature": retry_temperature}
    if check:
        settings["check"] = CHECK_VERSION
    first = Job(
        name="seapo inject",
        source=given,
        folder=work_folder(output, work_dir),
        prompt_version=SHOTS_VERSION if by == "sentence" else PROMPT_VERSION,
        settings=sampling,
        seed=seed,
    )

    def attempt(asked: Sequence[Asked], number: int) -> list[Attempt]:
        job = first if number == 1 else _again(first, number, retry_temperature)
        drawn = {"max_new_tokens": max_new_tokens, "temperature": job.settings["temperature"], "seed": job.seed}
        if by == "answer":
            answers = ask([request(*each, **drawn) for each in asked], engine=engine, job=job)
            found = [by_model(source, answers[f"{source.id}/{name}"], **gates) for source, name in asked]
        else:
            found = _by_sentence(asked, chosen, number, engine, job, drawn, gates)
        return _confirmed(asked, found, engine, job, max_new_tokens) if check else found

    return _write(sources, in_tries(sources, names, attempt, tries=1 + retries), output, settings, also)


def _again(first: Job, number: int, temperature: float) -> Job:
    """The job of a later try: with a journal of its own, another temperature and other seeds."""
    return replace(
        first,
        name=f"{first.name}, try {number}",
        folder=first.folder / f"try-{number}",
        settings={**first.settings, "temperature": temperature},
        seed=request_seed(first.seed, f"try-{number}"),
    )


def _sentences(sources: Sequence[Source], names: Sequence[str], seed: int) -> Chosen:
    """The sentences for each source and error type, the best first; a variant begins with a later one."""
    found: Chosen = {}
    for source in sources:
        there = sentences(source.chosen)
        for name in names:
            best = candidates(kind(name), there, seed=seed, record_id=source.id)
            begin = (number_of(name) - 1) % max(1, len(best))
            found[source.id, name] = best[begin:] + best[:begin]
    return found


def _by_sentence(
    asked: Sequence[Asked],
    chosen: Chosen,
    number: int,
    engine: Engine,
    job: Job,
    drawn: Mapping[str, Any],
    gates: Mapping[str, Any],
) -> list[Attempt]:
    """One attempt by sentence for each of what is asked.

    Args:
        asked: sources and error types.
        chosen: the sentences for each, the best first.
        number: of the try, from 1; each takes the next sentence, and after the last one the first again.
        engine: the model.
        job: of this try.
        drawn: max_new_tokens, temperature and seed of the requests.
        gates: see `fault`.
    """
    taken: list[Sentence | None] = []
    for source, name in asked:
        own = chosen[source.id, name]
        taken.append(own[(number - 1) % len(own)] if own else None)
    requests = [
        sentence_request(f"{source.id}/{name}", kind(name), sentence.text, **drawn)
        for (source, name), sentence in zip(asked, taken, strict=True)
        if sentence
    ]
    answers = ask(requests, engine=engine, job=job) if requests else {}
    return [
        by_sentence(source, kind(name), sentence, answers[f"{source.id}/{name}"], **gates)
        if sentence
        else Attempt("", reason=NO_SENTENCE)
        for (source, name), sentence in zip(asked, taken, strict=True)
    ]


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
    asked: Sequence[Asked], attempts: Sequence[Attempt], engine: Engine, job: Job, max_new_tokens: int
) -> list[Attempt]:
    """The attempts after a check by the engine: it is asked whether each usable negative contains its error.

    Args:
        asked: sources and error types.
        attempts: one for each.
        engine: the model that is asked.
        job: the job that made the attempts; the checks have a journal of their own in its folder.
        max_new_tokens: longest answer.
    """
    requests = [
        check_request(*each, attempt.text, max_new_tokens=max_new_tokens)
        for each, attempt in zip(asked, attempts, strict=True)
        if attempt.reason is None
    ]
    check = replace(
        job, name="seapo check", folder=job.folder / "check", prompt_version=f"{job.prompt_version}+{CHECK_VERSION}"
    )
    answers = ask(requests, engine=engine, job=check) if requests else {}
    return [
        attempt if attempt.reason else checked(attempt, answers[f"{source.id}/{name}"])
        for (source, name), attempt in zip(asked, attempts, strict=True)
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
    good: Counter[str] = Counter()
    taken_off: Counter[str] = Counter()
    tries: list[dict[str, int]] = []
    examples: dict[str, str] = {}
    passed: list[Shown] = []
    for source, by_type in zip(sources, attempts, strict=True):
        for name, made in by_type.items():
            for number, attempt in enumerate(made, start=1):
                taken_off.update(attempt.taken_off)
                if number > len(tries):
                    tries.append({"asked": 0, "usable": 0})
                tries[number - 1]["asked"] += 1
                tries[number - 1]["usable"] += attempt.reason is None
                if attempt.reason is None:
                    passed.append(shown(source, name, attempt))
                    continue
                rejected.add(_told(source, name, number, attempt), attempt.reason, kind=name)
                if example := attempt.text if attempt.reason == ENGINE else attempt.measured:
                    examples.setdefault(attempt.reason, example)
        texts = usable(by_type)
        good.update(texts.keys())
        if texts:
            spans = {name: by_type[name][-1].spans for name in texts}
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
        "prompt_version": SHOTS_VERSION if settings.get("by") == "sentence" else PROMPT_VERSION,
        **settings,
        "records": len(sources),
        "written": len(rows),
        "failed": len(failed),
        "negatives": dict(good),
        "tries": tries,
        "taken_off": dict(taken_off),
        "rejected": {name: dict(counts) for name, counts in rejected.counts_by_kind.items()},
        "rejected_texts": rejected.rows,
    }
    write_json(output.with_suffix(".report.json"), report)
    names = [*attempts[0]] if attempts else []
    write_text(output.with_suffix(".report.md"), as_markdown(report, names, good, rejected, passed))
    for target in also:
        placed = ((str(output), number, record) for number, record in enumerate(records, start=1))
        write_jsonl(output.with_suffix(f".{target}.jsonl"), map(to_row, Converter(target).run(placed)))
    write_jsonl(output, rows)
    return Injected(len(rows), len(failed), names, good, rejected, tries, taken_off, examples)


def _told(source: Source, name: str, number: int, attempt: Attempt) -> dict[str, object]:
    """A rejected text for the report, beside the original."""
    told: dict[str, object] = {"id": source.id, "type": name, "reason": attempt.reason}
    if attempt.measured:
        told["measured"] = attempt.measured
    if number > 1:
        told["try"] = number
    if attempt.old:
        told["sentence"] = attempt.old
    return told | {"text": attempt.text, "chosen": source.chosen}
