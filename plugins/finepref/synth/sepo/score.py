"""`finepref sepo score`: the reward of every response token, computed once; shares are selected when training.

The oracle reads all pairs, then the reference does, so that only one model is in memory at a time. The journal holds
their exact log-probabilities, as base64 of little-endian float32. Under torchrun each rank scores every world-th
record and writes a part; the rank that finds all parts complete joins them.

With a longest sequence, what is too long is cut as in training (`methods.overlong`), before a model reads it.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import json
import sys
import time
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from finepref.formats.bad_rows import BadRows
from finepref.formats.check import read_records
from finepref.formats.files import replacing, write_json
from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.formats.problems import Problem
from finepref.formats.records import Pair, Record, ScoredPair, SpanPair, content_id, to_row
from finepref.formats.scores import fingerprint, prompt_digest
from finepref.formats.sepo_csv import ScoredText, prompt_text, write_sepo_csv
from finepref.methods import host_rules
from finepref.methods.overlong import NOTHING_SELECTED, Fit, Overlong, equal, fit, told
from finepref.methods.pair_rows import CHAT_TEMPLATE, SIDES
from finepref.synth.ask import Job, work_folder
from finepref.synth.data_sources.job_rows import PAIRS, Rows, Wants, rows_of
from finepref.synth.data_sources.job_rows import Row as OwnRow
from finepref.synth.encoding import (
    ChangedByTemplateError,
    Encode,
    RefusedByTemplateError,
    Template,
    Tokens,
    by_prompt_and_end_token,
    encoding_problem,
)
from finepref.synth.engines.checkpoint import context_of, load_tokenizer, vocabulary_of
from finepref.synth.left_out import Ledger
from finepref.synth.scorers.protocol import Item, Scorer
from finepref.synth.sepo.summary import Summary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("oracle", "reference")
CONTRAST = "contrast"
DIGITS = 6
"""Decimals of the scores in JSON; the parquet file has the exact log-probabilities."""


PLAIN = Template(CHAT_TEMPLATE, by_prompt_and_end_token)
"""The prompt in the tokenizer's chat template; the response is its text and the end token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits in tokens, end token included; 0 = no limit.

    Beyond the first three a record is left out; the paper's values are 1900, 8 and 2048. Beyond `cutoff_len` the
    policy `overlong` decides, as in training; `host` is LLaMA-Factory's rule. What is then still longer than the
    models' context is left out.
    """

    max_prompt: int = 0
    min_response: int = 0
    max_total: int = 0
    cutoff_len: int = 0
    overlong: Overlong = "host"

    def fit(self, prompt: int, responses: Sequence[int], *, context: int) -> Fit:
        """What is kept of a record; its `skipped` is the reason to leave it out."""
        if reason := self._reason(prompt, responses):
            return Fit(0, prompt, max(responses), skipped=reason)
        kept = Fit(0, prompt, max(responses))
        if self.cutoff_len:
            rule = host_rules.llamafactory
            kept = fit(prompt, responses, self.cutoff_len, policy=self.overlong, host_rule=rule)
        too_long = kept.stop - kept.start + min(kept.response, max(responses)) > context
        return kept._replace(skipped="context") if too_long and not kept.skipped else kept

    def _reason(self, prompt: int, responses: Sequence[int]) -> str:
        if self.max_prompt and prompt > self.max_prompt:
            return "long_prompt"
        if min(responses) < self.min_response:
            return "short_response"
        return "long_total" if self.max_total and prompt + max(responses) > self.max_total else ""


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """The result of a job.

    Attributes:
        scored: number of scored pairs; None on a rank that is done while others are not, whose counts are its own.
        dropped: number of pairs left out, by reason.
        cut: number of scored pairs of which the prompt or a response was cut.
        speed: tokens that each model read here, and the seconds that it took; without those of an earlier attempt.
        scores: what the scores look like, see `Summary.content`; {} if they are not complete.
        not_in_csv: number of scored pairs whose prompt has no form in the released layout.
    """

    scored: int | None
    dropped: Mapping[str, int]
    cut: Mapping[str, int] = field(default_factory=dict)
    speed: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    not_in_csv: int = 0


def has_pair(row: Mapping[str, object]) -> bool:
    """Whether a row has two responses as texts."""
    return type(row.get("chosen")) is str and type(row.get("rejected")) is str


def as_pair(record: Record, told: Counter[str]) -> OwnRow | None:
    """A record of two responses as a plain pair."""
    assert isinstance(record, Pair | SpanPair | ScoredPair)
    told["pairs whose spans are not kept"] += isinstance(record, SpanPair)
    row = to_row(Pair(record.id, record.prompt, record.chosen, record.rejected))
    key = content_id(record.prompt, record.chosen, record.rejected)
    return OwnRow({name: value for name, value in row.items() if name != "id"}, key)


WANTS = Wants("sepo score", "pairs", has_pair, (*PAIRS, "rewardbench"), PAIRS, as_pair)


def score(
    source: Rows,
    output: Path,
    *,
    oracle: Scorer,
    reference: Scorer,
    contrast: Scorer | None = None,
    limits: Limits,
    template: Template = PLAIN,
    bad_rows: BadRows | None = None,
    csv_share: float = 0.0,
    work_dir: Path | None = None,
    rank: int = 0,
    world: int = 1,
) -> ScoredPairs:
    """Score every pair of a file {prompt or messages, chosen, rejected, ...}.

    Writes `output` (format `scored_pair`, scores rounded to 6 digits), `<stem>.parquet` (both models'
    exact log-probabilities of every token), `<stem>.report.json` (counts, and every record left out with its reason)
    and, with a `csv_share`, `<stem>.csv` (the released form with that share of tokens). With a `contrast`, the parquet
    file has its numbers too, and `<stem>.contrast.jsonl` is a second file of scored pairs, with these as scores.

    Args:
        source: pairs of any layout; other fields are ignored.
        output: the JSON Lines file to write.
        oracle, reference: the models; both use the reference's tokenizer and chat template.
        contrast: reads both models at once (`scorers.contrast`), in place of the two.
        limits: which records to leave out or to cut.
        template: what writes prompts and responses.
        bad_rows: collects rows with a problem; None = each is an error.
        csv_share: share of tokens in the released form; 0 = do not write it.
        work_dir: folder of journals and parts; by default `<stem>.work` beside the output.
        rank, world: which part of the records is scored here.

    Raises:
        BadData: the input has problems; or the template refuses a dialogue (FP240), changes a response (FP211) or
            writes tokens that the model does not have (FP251); or `limits.overlong` is error, and a record is too
            long (FP203).
        ValueError: the models' tokenizers differ, the tokenizer has no chat template or end token, or a model gives a
            log-probability that is NaN or infinite.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    import pyarrow as _  # noqa: F401 (so that a missing package is reported before the work, not after it)

    reader = Reader(oracle.name, reference.name, limits, template, (rank, world))
    given = rows_of(source, WANTS)
    found = read_records(given, "pair", bad_rows=bad_rows, check=reader.check)
    pairs = [each for each in found if type(each) is Pair]
    reader.open()
    rows = reader.rows
    items = [Item(pairs[i].id, row.prompt, row.tokens) for i, row in rows.items() if not row.reason]
    sampling = {**asdict(limits), "context": reader.context}
    folder = work_folder(output, work_dir)
    logps: dict[str, Mapping[str, Mapping[str, object]]] = {}
    speed = {}
    readings = {"oracle": oracle, "reference": reference} if contrast is None else {CONTRAST: contrast}
    for role, scorer in readings.items():
        reading = Job(
            name=f"sepo score, {role}",
            source=given,
            folder=folder / f"{role}-{rank}-of-{world}",
            prompt_version=reader.version,
            settings=sampling,
        )
        logps[role], speed[role] = _read(scorer, items, reading)
    if contrast is not None:
        logps = _by_role(logps[CONTRAST])
    settings = {"input_digest": given.digest(), "prompt_version": reader.version, "sampling": sampling}
    job = {
        "tokenizer": reader.mark,
        "template": template.name,
        "oracle": oracle.model,
        "reference": reference.model,
        "settings": settings,
    } | ({} if contrast is None else {CONTRAST: contrast.model})
    key = hashlib.blake2b(json.dumps(job).encode(), digest_size=8).hexdigest()
    parts = [folder / f"part-{key}-{number}-of-{world}.jsonl" for number in range(world)]
    write_jsonl(parts[rank], (_part(i, pairs[i].id, row, logps) for i, row in rows.items()))
    if not all(part.exists() for part in parts):
        dropped = Counter(row.reason for row in rows.values() if row.reason)
        return ScoredPairs(None, dropped, _cuts(rows.values()), speed)
    return replace(_join(parts, pairs, output, job, csv_share, reader.tokenizer), speed=speed)


class Row(NamedTuple):
    """A pair as token ids, cut as the limits say.

    Attributes:
        prompt: tokens of the dialogue in the template.
        digest: of the whole prompt's tokens.
        tokens: for each side, those of the response, from what the template writes before the text to the end token.
        before: for each side, how many of them come before the text; they get no score.
        offsets: for each side, the half-open range of characters of each token that gets a score.
        lengths: number of tokens of the whole prompt, and of each whole response.
        cut: see `methods.overlong.Fit`.
        reason: why the pair is left out, "" if it is not.
    """

    prompt: list[int]
    digest: str
    tokens: dict[str, list[int]]
    before: dict[str, int]
    offsets: dict[str, list[list[int]]]
    lengths: dict[str, int]
    cut: str = ""
    reason: str = ""


class Reader:
    """Tokenises the good records of a file as they are read, and keeps those of its share.

    Args:
        oracle, reference: names of the models.
        limits, template: as for `score`.
        share: (rank, world): which part of the records is kept.

    Attributes:
        rows: number of a record among the good ones -> its row.
        tokenizer: of the reference.
        mark: the tokenizer's fingerprint.
        version: a name of what makes the tokens, for the journal.
        context: the longest sequence that both models can read.
    """

    def __init__(
        self, oracle: str, reference: str, limits: Limits, template: Template, share: tuple[int, int]
    ) -> None:
        self.oracle, self.reference, self.limits = oracle, reference, limits
        self.template, self.share = template, share
        self.rows: dict[int, Row] = {}
        self.good = 0
        self.tokenizer: PreTrainedTokenizerBase | None = None

    def open(self) -> None:
        """Load the tokenizer, once; not before a good record needs it, so that bad ones are told without a model."""
        if self.tokenizer is not None:
            return
        chat = self.template.name == CHAT_TEMPLATE
        tokenizer, other = (load_tokenizer(each, chat_template=chat) for each in (self.reference, self.oracle))
        self.mark = fingerprint(tokenizer.backend_tokenizer.to_str())
        if self.mark != fingerprint(other.backend_tokenizer.to_str()):
            text = f"the tokenizers of {self.oracle} and {self.reference} differ: their scores do not compare"
            raise ValueError(text)
        self.context = min(context_of(self.oracle), context_of(self.reference))
        self.vocabulary = min(vocabulary_of(self.oracle), vocabulary_of(self.reference))
        layout = self.template.name
        if chat:
            layout = hashlib.blake2b(tokenizer.chat_template.encode(), digest_size=4).hexdigest()
        self.version = f"{self.mark}-{layout}"
        self.encode: Encode = self.template.encoder(tokenizer)
        self.tokenizer = tokenizer

    def check(self, record: Record, line: int) -> list[Problem]:
        """Tokenise a record and keep the row. Gives the problems for which it cannot be scored, without a file."""
        self.open()
        assert isinstance(record, Pair)
        try:
            sides = {side: self.encode(record.prompt, getattr(record, side)) for side in SIDES}
        except (RefusedByTemplateError, ChangedByTemplateError) as error:
            return [encoding_problem(error, file="", line=line)]
        lengths = [len(sides["chosen"].prompt), *(len(tokens.response) for tokens in sides.values())]
        kept = self.limits.fit(lengths[0], lengths[1:], context=self.context)
        problems = self._problems(sides, kept, lengths)
        if not problems:
            rank, world = self.share
            if self.good % world == rank:
                self.rows[self.good] = _row(sides, kept)
            self.good += 1
        return [Problem("", line, *each) for each in problems]

    def _problems(self, sides: Mapping[str, Tokens], kept: Fit, lengths: Sequence[int]) -> list[tuple[str, str, str]]:
        """(field, code, text) of each problem of a record's tokens."""
        found = []
        if kept.refused:
            found.append(("prompt", "FP203", told(lengths[0], lengths[1:], self.limits.cutoff_len, "--cutoff-len")))
        if sides["chosen"].prompt != sides["rejected"].prompt:
            found.append(("prompt", "FP211", "the template writes it differently before the two responses"))
        for side, tokens in sides.items():
            if tokens.start < 0:
                text = "the tokens of the template do not hold those of the response in one piece"
                found.append((side, "FP211", text))
        if max(max(tokens.prompt + tokens.response) for tokens in sides.values()) >= self.vocabulary:
            text = f"{self.template.name} writes a token that is beyond the model's {self.vocabulary}"
            found.append(("", "FP251", text))
        return found


def _row(sides: Mapping[str, Tokens], kept: Fit) -> Row:
    prompt = sides["chosen"].prompt
    whole = {side: tokens.response for side, tokens in sides.items()}
    reason = kept.skipped or equal([*whole.values()], kept.response)
    ids, offsets = {}, {}
    for side, tokens in sides.items():
        end = tokens.start + len(tokens.offsets) + 1  # with the end token, if there is one
        ids[side] = whole[side][: min(end, kept.response)]
        places = [[*each] for each in tokens.offsets]
        length = places[-1][1] if places else 0
        offsets[side] = [*places, [length, length]][: max(0, len(ids[side]) - tokens.start)]
        reason = reason or ("" if offsets[side] else NOTHING_SELECTED)
    lengths = {"prompt": len(prompt)} | {side: len(response) for side, response in whole.items()}
    before = {side: tokens.start for side, tokens in sides.items()}
    return Row(prompt[kept.start : kept.stop], prompt_digest(prompt), ids, before, offsets, lengths, kept.cut, reason)


def _cuts(rows: Iterable[Row]) -> Counter[str]:
    return Counter(part for row in rows if not row.reason for part in row.cut.split(",") if part)


def _read(
    scorer: Scorer, items: Sequence[Item], job: Job
) -> tuple[Mapping[str, Mapping[str, object]], tuple[int, float]]:
    """A model's log-probabilities of the items, by id: {side: packed log-probabilities}; tokens read, and seconds."""
    sizes = {item.id: len(item.prompt) + sum(map(len, item.responses.values())) for item in items}
    count, start = 0, time.perf_counter()

    def logps(done: Collection[str]) -> Iterator[list[dict[str, object]]]:
        nonlocal count
        for batch in scorer.logps(items, done=done):
            count += sum(sizes[name] for name, _ in batch)
            for name, sides in batch:
                if not all(values.isfinite().all() for values in sides.values()):
                    raise ValueError(f"{scorer.name} gives no number for record {name}: nothing can be selected by it")
            yield [
                {"id": name} | {side: pack(values.tolist()) for side, values in sides.items()} for name, sides in batch
            ]

    whole = replace(job, settings={**job.settings, "batch_tokens": scorer.batch_tokens})
    with whole.journal(scorer.model) as journal:
        found = journal.complete([item.id for item in items], logps, unit="pair")
    return found, (count, time.perf_counter() - start)


def pack(values: Iterable[float]) -> str:
    """Numbers as base64 of little-endian float32."""
    packed = array("f", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()


def unpack(text: str) -> array[float]:
    """The numbers in a text from `pack`."""
    values = array("f", base64.b64decode(text))
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _part(number: int, name: str, row: Row, logps: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    if row.reason:
        return {"row": number, "id": name, "reason": row.reason, "tokens": row.lengths}
    sides = {
        side: {"tokens": row.tokens[side][row.before[side] :], "offsets": row.offsets[side]}
        | {role: _after(found[name][side], row.before[side]) for role, found in logps.items()}
        for side in SIDES
    }
    return {"row": number, "id": name, "digest": row.digest, "cut": row.cut, **sides}


def _by_role(found: Mapping[str, Mapping[str, object]]) -> dict[str, Mapping[str, Mapping[str, object]]]:
    """The results of `scorers.contrast` as those of three scorers."""
    suffixes = {"oracle": "", "reference": "_reference", CONTRAST: "_contrast"}
    return {
        role: {name: {side: sides[f"{side}{suffix}"] for side in SIDES} for name, sides in found.items()}
        for role, suffix in suffixes.items()
    }


def _after(packed: str, before: int) -> str:
    """Packed log-probabilities without the first ones."""
    return pack(unpack(packed)[before:]) if before else packed


def _join(
    parts: Sequence[Path],
    pairs: Sequence[Pair],
    output: Path,
    job: dict[str, Any],
    share: float,
    tokenizer: PreTrainedTokenizerBase,
) -> ScoredPairs:
    """Write all results from the parts, in the order of the input, one record in memory at a time.

    Args:
        parts: files of all ranks.
        pairs: the input.
        output: the JSON Lines file; the others are beside it.
        job: for the report and the parquet file.
        share: of tokens in the released form, 0 to not write it.
        tokenizer: of the models, with the template's end token.
    """

    def rows() -> Iterator[dict[str, Any]]:
        each = [(row for _, row in read_jsonl(part, problems=None)) for part in parts]
        return heapq.merge(*each, key=lambda row: row["row"])

    def scored() -> Iterator[dict[str, Any]]:
        return (row for row in rows() if "reason" not in row)

    left_out, cut, summary = Ledger(), Counter[str](), Summary()
    for row in rows():
        if "reason" in row:
            left_out.add({name: row[name] for name in ("id", "reason", "tokens")}, row["reason"])
            continue
        cut.update(filter(None, row["cut"].split(",")))
        for side in SIDES:
            summary.add(side, row[side]["tokens"], _rewards(row[side]))
    _write_parquet(output.with_suffix(".parquet"), scored(), job)
    not_in_csv = []
    if share:
        texts = ((prompt_text(pairs[row["row"]].prompt), row) for row in scored())
        not_in_csv = [pairs[row["row"]].id for row in scored() if prompt_text(pairs[row["row"]].prompt) is None]
        released = (_released(query, pairs[row["row"]], row, tokenizer) for query, row in texts if query is not None)
        write_sepo_csv(output.with_suffix(".csv"), released, share=share)
    report = {
        "job": "sepo score",
        **job,
        "records": len(pairs),
        "scored": len(pairs) - len(left_out),
        "dropped": dict(left_out.counts),
        "dropped_records": left_out.rows,
        "cut": dict(cut),
        "scores": (scores := summary.content(lambda token: tokenizer.decode([token]))),
    }
    if share:
        report["not_in_csv"] = not_in_csv
    write_json(output.with_suffix(".report.json"), report)
    records = (_record(pairs[row["row"]], row, job["tokenizer"], job["template"]) for row in scored())
    written = write_jsonl(output, map(to_row, records))
    if CONTRAST in job:
        contrasts = (_record(pairs[row["row"]], row, job["tokenizer"], job["template"], CONTRAST) for row in scored())
        write_jsonl(contrast_path(output), map(to_row, contrasts))
    return ScoredPairs(written, left_out.counts, cut, {}, scores, len(not_in_csv))


def _rewards(side: Mapping[str, str]) -> list[float]:
    """s_t = log pi_oracle - log pi_ref of each token of a response, as in `losses.sepo.token_reward`."""
    oracle, reference = (unpack(side[role]) for role in ROLES)
    return [round(a - b, DIGITS) for a, b in zip(oracle, reference, strict=True)]


def contrast_path(output: Path) -> Path:
    """The file of scored pairs of the kind "contrast" beside the one of log-ratios."""
    return output.with_suffix(".contrast.jsonl")


def _contrasts(side: Mapping[str, str]) -> list[float]:
    return [round(min(value, 1.0), DIGITS) for value in unpack(side[CONTRAST])]


def _record(
    pair: Pair,
    row: Mapping[str, Any],
    tokenizer: str,
    template: str,
    kind: Literal["log_ratio", "contrast"] = "log_ratio",
) -> ScoredPair:
    numbers = _contrasts if kind == CONTRAST else _rewards
    scores = {f"{side}_scores": tuple(numbers(row[side])) for side in SIDES}
    offsets = {f"{side}_offsets": tuple((start, end) for start, end in row[side]["offsets"]) for side in SIDES}
    known = {"template": template, "prompt_digest": row["digest"], "score_kind": kind}
    return ScoredPair(pair.id, pair.prompt, pair.chosen, pair.rejected, tokenizer, **scores, **offsets, **known)


def _released(
    query: str, pair: Pair, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, list[ScoredText]]:
    """A row of the released form. As there, the end token takes the place of the last token of a cut response."""
    texts = []
    for side, text in zip(SIDES, (pair.chosen, pair.rejected), strict=True):
        start, end = row[side]["offsets"][-1]
        ids = row[side]["tokens"] if start == end else [*row[side]["tokens"][:-1], tokenizer.eos_token_id]
        texts.append((f"{text}{tokenizer.eos_token}", ids, _rewards(row[side])))
    return query, texts


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]], job: Mapping[str, object]) -> None:
    """Columns id, tokenizer, and per side tokens, oracle, reference (float32 log-probabilities), any contrast."""
    import pyarrow
    from pyarrow import parquet

    roles = (*ROLES, *([CONTRAST] if CONTRAST in job else []))
    columns = {"id": pyarrow.string(), "tokenizer": pyarrow.string()}
    for side in SIDES:
        columns[f"{side}_tokens"] = pyarrow.list_(pyarrow.int32())
        columns |= {f"{side}_{role}": pyarrow.list_(pyarrow.float32()) for role in roles}
    schema = pyarrow.schema(list(columns.items()), metadata={"finepref": json.dumps(job)})
    with replacing(path) as file, parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(rows, 1000)):
            flat = [
                {"id": row["id"], "tokenizer": job["tokenizer"]}
                | {f"{side}_tokens": row[side]["tokens"] for side in SIDES}
                | {f"{side}_{role}": unpack(row[side][role]).tolist() for side in SIDES for role in roles}
                for row in group
            ]
            writer.write_table(pyarrow.Table.from_pylist(flat, schema=schema))
