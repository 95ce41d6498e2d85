"""Margins: how much more probable the better of two responses is to a model, for several models on the same records.

With log-probability l_t of token t of a response, given its prompt, and weights w_t of its spans, the measures are

    sum = sum_t l_t,  mean = sum / T,  span_sum = sum_t w_t l_t,  span_mean = span_sum / sum_t w_t

of the chosen response minus those of the other one. With a reference, the reference's margin is taken off: then `sum`
is DPO's implicit reward margin without beta. The end token is one of the T tokens. `span_mean` is there if one of the
two has spans; the other then counts as a whole, as in training. `span_sum` needs spans in both: a sum over all tokens
does not compare with one over a few.

A negative repeats the chosen answer up to its error, so a model reads that part only once (`scorers.hf`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from finepref.formats import spans
from finepref.formats.bad_rows import BadRows
from finepref.formats.check import read_records
from finepref.formats.jsonl import RawRow
from finepref.formats.negatives import LACKING, join_feedback
from finepref.formats.problems import CODES, Problem
from finepref.formats.records import (
    Feedback,
    FunctionCall,
    Negatives,
    Pair,
    Record,
    ScoredPair,
    Span,
    SpanPair,
    content_id,
    to_row,
)
from finepref.synth.ask import Job
from finepref.synth.data_sources.job_rows import PAIRS, JobRows, Placed, Row, Rows, Wants, rows_of
from finepref.synth.engines.checkpoint import with_base
from finepref.synth.intervals import bootstrap, shown

if TYPE_CHECKING:
    from finepref.synth.encoding import Template, Tokens

MEASURES = ("mean", "sum", "span_mean", "span_sum")
REJECTED = "rejected"
"""The error type of the other response of a plain pair."""
MEANING = (
    "log-probability of the chosen response minus that of the other, in nats: sum over the tokens, end token "
    "included; mean per token; span_sum and span_mean over the tokens of spans, by their weights"
)


@dataclass(frozen=True, slots=True)
class Model:
    """A model to measure: its name in tables, its folder or hub name, and perhaps an adapter to put on it."""

    name: str
    path: str
    adapter: str | None = None


def model_at(given: str) -> Model:
    """A model by what a user gives: PATH or NAME=PATH, of a model or of an adapter that names its base.

    Raises:
        ValueError: an adapter that names no base.
    """
    name, equal, path = given.partition("=")
    if not equal or Path(given).is_dir():
        name, path = Path(given).name, given
    return Model(name, *with_base(path))


class Side(NamedTuple):
    """A response as tokens.

    Attributes:
        tokens: its token ids, end token included.
        weights: of its spans, as many; None without spans.
    """

    tokens: Sequence[int]
    weights: Sequence[float] | None


class Case(NamedTuple):
    """A record as a model reads it: the tokens of the prompt, and the responses: "" is the chosen one."""

    id: str
    prompt: Sequence[int]
    sides: Mapping[str, Side]


Values = Mapping[str, Mapping[str, float]]
"""Response name -> measure -> value."""


def _joined(placed: Sequence[Placed], told: Counter[str]) -> Iterator[tuple[str, RawRow]]:
    """Records of negatives, of feedback that is joined by prompt; prompts that give none are counted by code."""
    raws = {(each.file, each.raw.line): each.raw for each in placed}
    rows = [(each.file, each.raw.line, each.record) for each in placed if isinstance(each.record, Feedback)]
    joined, problems = join_feedback(rows)
    for problem in problems:
        if problem.code in LACKING:
            told[f"{problem.code}, {CODES[problem.code]}"] += 1
        else:
            yield problem.file, raws[problem.file, problem.line]._replace(value=None, problems=[problem])
    for each in joined:
        yield each.file, raws[each.file, each.line]._replace(value=to_row(each.record), problems=[])


class Input:
    """The records of a job's input, all as negatives; those of pairs have one, named `REJECTED`."""

    def __init__(self, source: Rows, job: str, *, pairs: bool) -> None:
        formats = (*PAIRS, "negatives", "feedback") if pairs else ("negatives", "feedback")
        what = "pairs, negatives or feedback" if pairs else "negatives, or feedback"
        wants = Wants(
            job, what, lambda row: "negatives" in row, ("negatives",), formats, self._row, {"feedback": _joined}
        )
        self._chosen_spans: dict[str, tuple[Span, ...]] = {}
        self.rows: JobRows = rows_of(source, wants)

    def chosen_spans(self, record: Negatives) -> tuple[Span, ...]:
        """The spans of the chosen response, which the format of negatives has no place for."""
        if REJECTED not in record.negatives:
            return ()
        return self._chosen_spans.get(content_id(record.prompt, record.chosen, record.negatives[REJECTED]), ())

    def _row(self, record: Record, told: Counter[str]) -> Row:
        if isinstance(record, Negatives):
            return Row({name: value for name, value in to_row(record).items() if name != "id"})
        assert isinstance(record, Pair | SpanPair | ScoredPair)
        key = content_id(record.prompt, record.chosen, record.rejected)
        row = to_row(Pair(record.id, record.prompt, record.chosen, record.rejected))
        made = {name: value for name, value in row.items() if name not in ("id", REJECTED)}
        made["negatives"] = {REJECTED: row[REJECTED]}
        if isinstance(record, SpanPair):
            self._chosen_spans[key] = record.chosen_spans
            if record.rejected_spans:
                made["spans"] = {REJECTED: to_row(record)["rejected_spans"]}
        told["pairs whose token scores are not read"] += isinstance(record, ScoredPair)
        return Row(made, key)


def measure(
    source: Rows,
    models: Sequence[Model],
    *,
    job: str = "margins",
    pairs: bool = True,
    template: Template | None = None,
    merge_system: bool = False,
    dtype: str = "auto",
    batch_tokens: int | None = None,
    bad_rows: BadRows | None = None,
    work_dir: Path,
) -> dict[str, dict[str, Values]]:
    """The measures of every response of a file: model's name -> record id -> response ("" is the chosen) -> values.

    Only one model is in memory at a time. Each has a journal, so that a job that was stopped resumes.

    Args:
        source: negatives, or feedback, joined by prompt; pairs too if `pairs`.
        models: with names of their own.
        job: name for messages and the progress bar.
        pairs: whether pairs are taken.
        template: what writes prompts and responses; None: the prompt in each tokenizer's chat template, the response
            as its text and the end token.
        merge_system: without a template, see `checkpoint.rendered`.
        dtype, batch_tokens: see `HfScorer`.
        bad_rows: see `read_records`; rows that the template refuses or a model has no room for are bad too.
        work_dir: folder of the journals.

    Raises:
        BadData: see `read_records`.
        ValueError: two models have one name, a model has no chat template, or it gives no number.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    if len({each.name for each in models}) < len(models):
        names = Counter(each.name for each in models)
        twice = next(name for name, count in names.items() if count > 1)
        raise ValueError(f"two models have the name {twice}: give NAME=PATH")
    given = Input(source, job, pairs=pairs)
    reader = _Reader(models, given, template, merge_system=merge_system)
    found = read_records(given.rows, "negatives", bad_rows=bad_rows, check=reader.check)
    records = [record for record in found if isinstance(record, Negatives)]
    return {
        model.name: _measured(
            model,
            reader.cases(model, records),
            Job(
                name=job,
                source=given.rows,
                folder=work_dir,
                prompt_version=reader.version(model),
                settings={"dtype": dtype, "merge_system": merge_system},
            ),
            given.rows.digest(),
            dtype=dtype,
            batch_tokens=batch_tokens,
        )
        for model in models
    }


class _Reader:
    """Tokenises records for each model; models of one base share their tokenizer."""

    def __init__(
        self, models: Sequence[Model], given: Input, template: Template | None, *, merge_system: bool
    ) -> None:
        self.models, self.given, self.template, self.merge_system = models, given, template, merge_system
        self._loaded: dict[str, tuple[Any, int, Callable[..., Tokens]]] = {}
        self._cases: dict[tuple[str, str], Case] = {}

    def loaded(self, path: str) -> tuple[Any, int, Callable[..., Tokens]]:
        """(tokenizer, context, encoder) of a model; not before a good record needs it."""
        from finepref.synth.encoding import by_prompt_and_end_token
        from finepref.synth.engines.checkpoint import context_of, load_tokenizer

        if path not in self._loaded:
            tokenizer = load_tokenizer(path, chat_template=self.template is None)
            if self.template is None:
                encode = by_prompt_and_end_token(tokenizer, merge_system=self.merge_system)
            else:
                encode = self.template.encoder(tokenizer)
            self._loaded[path] = tokenizer, context_of(path), encode
        return self._loaded[path]

    def version(self, model: Model) -> str:
        """A name of what makes the tokens, for the journal."""
        from finepref.formats.scores import fingerprint

        if not self._cases:
            return ""
        tokenizer = self.loaded(model.path)[0]
        layout = str(self.template.name if self.template else tokenizer.chat_template)
        mark = fingerprint(tokenizer.backend_tokenizer.to_str())
        return f"{mark}-{hashlib.blake2b(layout.encode(), digest_size=4).hexdigest()}"

    def check(self, record: Record, line: int) -> list[Problem]:
        """Tokenise a record for every model; gives its problems, without a file."""
        assert isinstance(record, Negatives)
        for path in {model.path: None for model in self.models}:
            made = self._case(path, record, line)
            if isinstance(made, list):
                return made
            self._cases[path, record.id] = made
        return []

    def cases(self, model: Model, records: Sequence[Negatives]) -> list[Case]:
        """The records for a model."""
        return [self._cases[model.path, record.id] for record in records]

    def _case(self, path: str, record: Negatives, line: int) -> Case | list[Problem]:
        from finepref.synth.encoding import ChangedByTemplateError, encoding_problem
        from finepref.synth.engines.checkpoint import RefusedByTemplateError

        _, room, encode = self.loaded(path)
        texts = {"": record.chosen, **record.negatives}
        calls = [name or "chosen" for name, text in texts.items() if isinstance(text, FunctionCall)]
        if calls and self.template is None:
            told = "the margins are those of texts, and the response calls functions"
            return [Problem("", line, calls[0], "FP242", told)]
        sides, prompt = {}, None
        annotated = {"": self.given.chosen_spans(record), **record.spans}
        for name, text in texts.items():
            try:
                tokens = encode(record.prompt, text)
            except (RefusedByTemplateError, ChangedByTemplateError) as error:
                return [encoding_problem(error, file="", line=line)]
            if prompt is not None and tokens.prompt != prompt:
                told = "the template writes it differently before the responses"
                return [Problem("", line, "prompt", "FP211", told)]
            prompt = tokens.prompt
            own = annotated.get(name) or ()
            if own and tokens.start < 0:
                told = "the tokens of the template do not hold those of the response in one piece"
                return [Problem("", line, name or "chosen", "FP211", told)]
            sides[name] = Side(tokens.response, _weights(text, own, tokens) if own else None)
        longest = len(prompt or ()) + max(len(side.tokens) for side in sides.values())
        if longest > room:
            told = f"prompt and longest answer have {longest} tokens, and the model has room for {room}"
            return [Problem("", line, "", "FP241", told)]
        return Case(record.id, prompt or (), sides)


def _weights(text: str, own: Sequence[Span], tokens: Tokens) -> list[float]:
    """The weight of the span around each token; 0 outside spans and for what the template writes around the text."""
    found = spans.token_weights(own, spans.covering(text, tokens.offsets))
    after = len(tokens.response) - tokens.start - len(found)
    return [0.0] * tokens.start + found + [0.0] * after


def _measured(
    model: Model, cases: Sequence[Case], job: Job, data: str, *, dtype: str, batch_tokens: int | None
) -> dict[str, Values]:
    """A model's values, from its journal where it has been read."""
    if not cases:
        return {}
    from finepref.synth.scorers.hf import HfScorer
    from finepref.synth.scorers.protocol import Item

    scorer = HfScorer(model.path, adapter=model.adapter, dtype=dtype, batch_tokens=batch_tokens)
    by_id = {case.id: case for case in cases}
    items = [Item(each.id, each.prompt, {name: side.tokens for name, side in each.sides.items()}) for each in cases]

    def compute(done: Collection[str]) -> Iterator[list[dict[str, object]]]:
        for batch in scorer.logps(items, done=done):
            entries: list[dict[str, object]] = []
            for name, responses in batch:
                sides = by_id[name].sides
                sums = {key: _sums(logps.double().tolist(), sides[key].weights) for key, logps in responses.items()}
                if any(value != value or abs(value) == float("inf") for each in sums.values() for value in each):
                    raise ValueError(f"{scorer.name} gives no number for record {name}")
                entries.append({"id": name, "sums": sums})
            yield entries

    settings = {**job.settings, "batch_tokens": scorer.batch_tokens}
    key = json.dumps([scorer.model, job.prompt_version, data, settings])
    folder = job.folder / hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    with replace(job, folder=folder, settings=settings).journal(scorer.model) as journal:
        done: Any = journal.complete([case.id for case in cases], compute, unit="record")
    return {case.id: _values(case.sides, done[case.id]["sums"]) for case in cases}


def _sums(logps: Sequence[float], weights: Sequence[float] | None) -> list[float]:
    whole = sum(logps)
    return [whole, whole if weights is None else sum(w * each for w, each in zip(weights, logps, strict=True))]


def _values(sides: Mapping[str, Side], sums: Mapping[str, Sequence[float]]) -> Values:
    """The measures of each response; `span_sum` only of one with spans, `span_mean` of all if one has spans."""
    found: dict[str, dict[str, float]] = {}
    annotated = any(side.weights is not None for side in sides.values())
    for name, side in sides.items():
        whole, weighted = sums[name]
        found[name] = {"mean": whole / len(side.tokens), "sum": whole}
        mass = len(side.tokens) if side.weights is None else sum(side.weights)
        if annotated and mass:
            found[name]["span_mean"] = weighted / mass
        if side.weights is not None and mass:
            found[name]["span_sum"] = weighted
    return found


def margins(values: Mapping[str, Values], reference: Mapping[str, Values] | None = None) -> dict[str, Any]:
    """record id -> error type -> measure -> margin, less the reference's if there is one."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for record, sides in values.items():
        found[record] = {}
        for name in sorted(sides.keys() - {""}):
            own = _margin(sides[""], sides[name])
            if reference is not None:
                before = _margin(reference[record][""], reference[record][name])
                own = {key: value - before[key] for key, value in own.items() if key in before}
            found[record][name] = own
    return found


def _margin(good: Mapping[str, float], bad: Mapping[str, float]) -> dict[str, float]:
    spans_there = "span_sum" in good or "span_sum" in bad
    keys = [key for key in MEASURES if key in good and key in bad and (key != "span_mean" or spans_there)]
    return {key: good[key] - bad[key] for key in keys}


def compared(
    models: Sequence[Model], values: Mapping[str, Mapping[str, Values]], *, reference: str = "", seed: int = 0
) -> dict[str, Any]:
    """Margins of all models, summaries by error type, and differences to the first model, JSON-ready.

    - `records`: model -> record id -> error type -> measure -> margin.
    - `summary`: model -> measure -> error type or "overall" -> n, mean, its 95 % bootstrap `interval`,
      share_above_zero.
    - `differences`: for every later model, measure and type: `difference` of the means, paired by record, its
      `interval`, `verdict` ("higher", "lower" or "not shown"), and the same of the share of margins above 0.

    All negatives of one record are drawn together.

    Args:
        models: the models of the table, without the reference.
        values: from `measure`.
        reference: the name of the model whose margins are taken off.
        seed: of the bootstrap.
    """
    before = values[reference] if reference else None
    by_model = {model.name: margins(values[model.name], before) for model in models}
    tables = {name: _by_measure(found) for name, found in by_model.items()}
    summary = {
        name: {
            measure: {kind: _summary(rows, seed) for kind, rows in kinds.items()} for measure, kinds in table.items()
        }
        for name, table in tables.items()
    }
    first, *others = [model.name for model in models]
    differences = []
    for other in others:
        for measure, kinds in tables[other].items():
            for kind, rows in kinds.items():
                base = tables[first].get(measure, {}).get(kind, {})
                differences.append({"model": other, "against": first, "measure": measure, "type": kind})
                differences[-1] |= _difference(rows, base, seed)
    return {"summary": summary, "differences": differences, "records": by_model}


Table = dict[tuple[str, str], float]
"""(record id, error type) -> margin."""


def _by_measure(found: Mapping[str, Any]) -> dict[str, dict[str, Table]]:
    """measure -> error type, and "overall" -> margins."""
    tables: dict[str, dict[str, Table]] = {}
    for record, kinds in found.items():
        for kind, measures in kinds.items():
            for measure, value in measures.items():
                for into in (kind, "overall"):
                    tables.setdefault(measure, {}).setdefault(into, {})[record, kind] = value
    return {
        measure: {kind: tables[measure][kind] for kind in sorted(tables[measure], key=lambda k: (k == "overall", k))}
        for measure in MEASURES
        if measure in tables
    }


def _summary(rows: Table, seed: int) -> dict[str, Any]:
    mean, low, high = bootstrap([*rows.values()], groups=[record for record, _ in rows], seed=seed)
    above = fmean(value > 0 for value in rows.values())
    return {"n": len(rows), "mean": mean, "interval": _known(low, high), "share_above_zero": above}


def _difference(rows: Table, base: Table, seed: int) -> dict[str, Any]:
    keys = [key for key in rows if key in base]
    groups = [record for record, _ in keys]
    mean, low, high = bootstrap([rows[key] - base[key] for key in keys], groups=groups, seed=seed)
    signs = [float(rows[key] > 0) - float(base[key] > 0) for key in keys]
    share, least, most = bootstrap(signs, groups=groups, seed=seed)
    return {
        "n": len(keys),
        "difference": mean,
        "interval": _known(low, high),
        "verdict": shown(low, high),
        "share_above_zero": {"difference": share, "interval": _known(least, most), "verdict": shown(least, most)},
    }


def _known(low: float, high: float) -> list[float] | None:
    return [low, high] if low == low else None
