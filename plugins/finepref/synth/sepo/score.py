"""`finepref sepo score`: the reward of every response token, computed once; shares are selected when training.

The oracle reads all pairs, then the reference does, so that only one model is in memory at a time. The journal holds
their exact log-probabilities, as base64 of little-endian float32. Under torchrun each rank scores every world-th
record and writes a part; the rank that finds all parts complete joins them.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import json
import sys
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from finepref.formats.check import digest, read_records
from finepref.formats.files import replacing, write_json
from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.formats.records import Pair, ScoredPair, to_row
from finepref.formats.scores import fingerprint
from finepref.formats.sepo_csv import ScoredText, write_sepo_csv
from finepref.synth.ask import Job, work_folder
from finepref.synth.engines.checkpoint import context_of, load_tokenizer, prompt_ids
from finepref.synth.left_out import Ledger
from finepref.synth.scorers.protocol import Item, Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SIDES = ("chosen", "rejected")
ROLES = ("oracle", "reference")
DIGITS = 6
"""Decimals of the scores in JSON; the parquet file has the exact log-probabilities."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits in tokens, end token included, beyond which a record is left out; 0 = no limit.

    The paper's limits are 1900, 8 and 2048. Records longer than the models' context are always left out.
    """

    max_prompt: int = 0
    min_response: int = 0
    max_total: int = 0

    def reason(self, prompt: int, responses: Sequence[int], *, context: int) -> str | None:
        """The reason to leave out a record, None if there is none."""
        total = prompt + max(responses)
        if self.max_prompt and prompt > self.max_prompt:
            return "long_prompt"
        if min(responses) < self.min_response:
            return "short_response"
        if self.max_total and total > self.max_total:
            return "long_total"
        return "context" if total > context else None


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """The number of scored pairs, and of pairs left out by reason.

    `scored` is None on a rank that is done while other ranks are not; `dropped` then counts that rank's pairs only.
    """

    scored: int | None
    dropped: Mapping[str, int]


def score(
    path: Path,
    output: Path,
    *,
    oracle: Scorer,
    reference: Scorer,
    limits: Limits,
    csv_share: float = 0.0,
    work_dir: Path | None = None,
    rank: int = 0,
    world: int = 1,
) -> ScoredPairs:
    """Score every pair of a file {prompt or messages, chosen, rejected, ...}.

    Writes `output` (format `scored_pair`, scores rounded to 6 digits), `<stem>.parquet` (both models'
    exact log-probabilities of every token), `<stem>.report.json` (counts, and every record left out with its reason)
    and, with a `csv_share`, `<stem>.csv` (the released form with that share of tokens).

    Args:
        path: JSON Lines or a JSON array of pairs; other fields are ignored.
        output: the JSON Lines file to write.
        oracle, reference: the models; both use the reference's tokenizer and chat template.
        limits: which records to leave out.
        csv_share: share of tokens in the released form; 0 = do not write it.
        work_dir: folder of journals and parts; by default `<stem>.work` beside the output.
        rank, world: which part of the records is scored here.

    Raises:
        BadData: the input has problems.
        ValueError: the models' tokenizers differ, the tokenizer has no chat template or end token, or a model gives a
            log-probability that is NaN or infinite.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    import pyarrow as _  # noqa: F401 (so that a missing package is reported before the work, not after it)

    pairs = [pair for pair in read_records(path, "pair") if isinstance(pair, Pair)]
    tokenizer = load_tokenizer(reference.name)
    mark = fingerprint(tokenizer.backend_tokenizer.to_str())
    if mark != fingerprint(load_tokenizer(oracle.name).backend_tokenizer.to_str()):
        raise ValueError(f"the tokenizers of {oracle.name} and {reference.name} differ: their scores do not compare")
    context = min(context_of(oracle.name), context_of(reference.name))
    rows: dict[int, Row] = {}
    for i in range(rank, len(pairs), world):
        whole = tokenise(pairs[i], tokenizer)
        lengths = [len(whole.prompt), *map(len, whole.tokens.values())]
        rows[i] = whole._replace(reason=limits.reason(lengths[0], lengths[1:], context=context))
    items = [Item(pairs[i].id, row.prompt, row.tokens) for i, row in rows.items() if row.reason is None]
    version = f"{mark}-{hashlib.blake2b(tokenizer.chat_template.encode(), digest_size=4).hexdigest()}"
    sampling = {**asdict(limits), "context": context}
    folder = work_folder(output, work_dir)
    logps = {}
    for role, scorer in zip(ROLES, (oracle, reference), strict=True):
        reading = Job(
            name=f"sepo score, {role}",
            source=path,
            folder=folder / f"{role}-{rank}-of-{world}",
            prompt_version=version,
            settings=sampling,
        )
        logps[role] = _read(scorer, items, reading)
    settings = {"input_digest": digest(path), "prompt_version": version, "sampling": sampling}
    job = {"tokenizer": mark, "oracle": oracle.model, "reference": reference.model, "settings": settings}
    key = hashlib.blake2b(json.dumps(job).encode(), digest_size=8).hexdigest()
    parts = [folder / f"part-{key}-{number}-of-{world}.jsonl" for number in range(world)]
    write_jsonl(parts[rank], (_part(i, pairs[i].id, row, logps) for i, row in rows.items()))
    if not all(part.exists() for part in parts):
        return ScoredPairs(None, Counter(row.reason for row in rows.values() if row.reason))
    return _join(parts, pairs, output, job, csv_share, tokenizer.eos_token)


class Row(NamedTuple):
    """A pair as token ids.

    Attributes:
        prompt: tokens of the dialogue in the chat template.
        tokens: for each side, those of the response and the end token.
        offsets: for each side, the half-open range of characters of each token.
        reason: why the pair is left out, None if it is not.
    """

    prompt: list[int]
    tokens: dict[str, list[int]]
    offsets: dict[str, list[list[int]]]
    reason: str | None = None


def tokenise(pair: Pair, tokenizer: PreTrainedTokenizerBase) -> Row:
    """The prompt in the chat template, and each response on its own, followed by the end token."""
    tokens: dict[str, list[int]] = {}
    offsets: dict[str, list[list[int]]] = {}
    for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens[side] = [*encoded["input_ids"], tokenizer.eos_token_id]
        offsets[side] = [*map(list, encoded["offset_mapping"]), [len(text), len(text)]]
    return Row(prompt_ids(tokenizer, pair.prompt), tokens, offsets)


def _read(scorer: Scorer, items: Sequence[Item], job: Job) -> Mapping[str, Mapping[str, object]]:
    """A model's log-probabilities of the items, by id: {side: packed log-probabilities}."""

    def logps(done: Collection[str]) -> Iterator[list[dict[str, object]]]:
        for batch in scorer.logps(items, done=done):
            for name, sides in batch:
                if not all(values.isfinite().all() for values in sides.values()):
                    raise ValueError(f"{scorer.name} gives no number for record {name}: nothing can be selected by it")
            yield [
                {"id": name} | {side: pack(values.tolist()) for side, values in sides.items()} for name, sides in batch
            ]

    whole = replace(job, settings={**job.settings, "batch_tokens": scorer.batch_tokens})
    with whole.journal(scorer.model) as journal:
        return journal.complete([item.id for item in items], logps, unit="pair")


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
        lengths = {side: len(tokens) for side, tokens in row.tokens.items()}
        return {"row": number, "id": name, "reason": row.reason, "tokens": {"prompt": len(row.prompt), **lengths}}
    sides = {
        side: {"tokens": row.tokens[side], "offsets": row.offsets[side]}
        | {role: logps[role][name][side] for role in ROLES}
        for side in SIDES
    }
    return {"row": number, "id": name, **sides}


def _join(
    parts: Sequence[Path], pairs: Sequence[Pair], output: Path, job: dict[str, Any], share: float, eos: str
) -> ScoredPairs:
    """Write all results from the parts, in the order of the input, one record in memory at a time.

    Args:
        parts: files of all ranks.
        pairs: the input.
        output: the JSON Lines file; the others are beside it.
        job: for the report and the parquet file.
        share: of tokens in the released form, 0 to not write it.
        eos: text of the end token.
    """

    def rows() -> Iterator[dict[str, Any]]:
        each = [(row for _, row in read_jsonl(part, problems=None)) for part in parts]
        return heapq.merge(*each, key=lambda row: row["row"])

    left_out = Ledger()
    for row in rows():
        if "reason" in row:
            left_out.add({name: row[name] for name in ("id", "reason", "tokens")}, row["reason"])
    _write_parquet(output.with_suffix(".parquet"), (row for row in rows() if "reason" not in row), job)
    if share:
        texts = ((pairs[row["row"]], row) for row in rows() if "reason" not in row)
        write_sepo_csv(output.with_suffix(".csv"), (_released(pair, row, eos) for pair, row in texts), share=share)
    report = {
        "job": "sepo score",
        **job,
        "records": len(pairs),
        "scored": len(pairs) - len(left_out),
        "dropped": dict(left_out.counts),
        "dropped_records": left_out.rows,
    }
    write_json(output.with_suffix(".report.json"), report)
    records = (_record(pairs[row["row"]], row, job["tokenizer"]) for row in rows() if "reason" not in row)
    return ScoredPairs(write_jsonl(output, map(to_row, records)), left_out.counts)


def _rewards(side: Mapping[str, str]) -> list[float]:
    """s_t = log pi_oracle - log pi_ref of each token of a response, as in `losses.sepo.token_reward`."""
    oracle, reference = (unpack(side[role]) for role in ROLES)
    return [round(a - b, DIGITS) for a, b in zip(oracle, reference, strict=True)]


def _record(pair: Pair, row: Mapping[str, Any], tokenizer: str) -> ScoredPair:
    scores = {f"{side}_scores": tuple(_rewards(row[side])) for side in SIDES}
    offsets = {f"{side}_offsets": tuple((start, end) for start, end in row[side]["offsets"]) for side in SIDES}
    return ScoredPair(pair.id, pair.prompt, pair.chosen, pair.rejected, tokenizer, **scores, **offsets)


def _released(pair: Pair, row: Mapping[str, Any], eos: str) -> tuple[str, list[ScoredText]]:
    texts = [
        (text + eos, row[side]["tokens"], _rewards(row[side]))
        for side, text in zip(SIDES, (pair.chosen, pair.rejected), strict=True)
    ]
    return "\n\n".join(turn.content for turn in pair.prompt), texts


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]], job: Mapping[str, object]) -> None:
    """Columns id, tokenizer, and per side tokens, oracle and reference: float32 log-probabilities."""
    import pyarrow
    from pyarrow import parquet

    columns = {"id": pyarrow.string(), "tokenizer": pyarrow.string()}
    for side in SIDES:
        columns[f"{side}_tokens"] = pyarrow.list_(pyarrow.int32())
        columns |= {f"{side}_{role}": pyarrow.list_(pyarrow.float32()) for role in ROLES}
    schema = pyarrow.schema(list(columns.items()), metadata={"finepref": json.dumps(job)})
    with replacing(path) as file, parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(rows, 1000)):
            flat = [
                {"id": row["id"], "tokenizer": job["tokenizer"]}
                | {f"{side}_tokens": row[side]["tokens"] for side in SIDES}
                | {f"{side}_{role}": unpack(row[side][role]).tolist() for side in SIDES for role in ROLES}
                for row in group
            ]
            writer.write_table(pyarrow.Table.from_pylist(flat, schema=schema))
