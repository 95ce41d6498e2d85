"""The job behind `finepref sepo score`: the reward of every response token, once; shares are picked at train time.

The oracle reads all pairs, then the reference, so that one model is in memory at a time. What a model said is in the
journal as base64 of little-endian float32, exactly. Under torchrun each rank scores every world-th record and writes
a part; whichever rank finds all parts there puts them together.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import json
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from finepref.formats.check import digest, read_records
from finepref.formats.files import replacing, write_json
from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.formats.records import Pair, ScoredPair, to_row
from finepref.formats.scores import fingerprint
from finepref.formats.sepo_csv import ScoredText, write_sepo_csv
from finepref.synth.engines.hf import context_of, load_tokenizer, prompt_ids
from finepref.synth.journal import Journal
from finepref.synth.scorers.hf import Item, Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SIDES = ("chosen", "rejected")
ROLES = ("oracle", "reference")
DIGITS = 6
"""Of the scores in JSON; the parquet file has the log-probabilities as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Longer prompts and totals and shorter responses, in tokens with the end token, are left out; 0 is no limit.

    The paper's are 1900, 8 and 2048. What is longer than the models' context is always left out.
    """

    max_prompt: int = 0
    min_response: int = 0
    max_total: int = 0

    def reason(self, prompt: int, responses: Sequence[int], *, context: int) -> str | None:
        """Why a record is left out, None if it is not."""
        total = prompt + max(responses)
        if self.max_prompt and prompt > self.max_prompt:
            return "long_prompt"
        if min(responses) < self.min_response:
            return "short_response"
        if self.max_total and total > self.max_total:
            return "long_total"
        return "context" if total > context else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of the job. `scored` is None on a rank that others still owe their parts to."""

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
) -> Outcome:
    """Score every pair of a file {prompt or messages, chosen, rejected, ...}.

    Writes `output` (format `scored_pair`, scores rounded to 6 digits), `<stem>.parquet` (both models'
    log-probabilities of every token, exactly), `<stem>.report.json` (counts, and every record left out with its
    reason) and, with a `csv_share`, `<stem>.csv` (the released form with that share of tokens).

    Args:
        path: JSON Lines or a JSON array of pairs; fields that pairs do not have are not read.
        output: the JSON Lines file to write.
        oracle, reference: the models; the reference's tokenizer and chat template are used for both.
        limits: which records to leave out.
        csv_share: share of tokens in the released form, 0 for no such file.
        work_dir: where journals and parts are; by default `<stem>.work` beside the output.
        rank, world: which part of the records is scored here.

    Raises:
        BadData: the input has problems.
        ValueError: the models' tokenizers differ, the tokenizer has no chat template or end token, or a model gives a
            log-probability that is NaN or infinite.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    import pyarrow as _  # noqa: F401 (a missing package is told before the work, not after it)

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
    settings = {
        "input_digest": digest(path),
        "prompt_version": f"{mark}-{hashlib.blake2b(tokenizer.chat_template.encode(), digest_size=4).hexdigest()}",
        "sampling": {**asdict(limits), "context": context},
    }
    folder = work_dir or output.with_suffix(".work")
    logps = {
        role: _read(scorer, items, folder / f"{role}-{rank}-of-{world}", job=f"sepo score, {role}", **settings)
        for role, scorer in zip(ROLES, (oracle, reference), strict=True)
    }
    job = {"tokenizer": mark, "oracle": oracle.model, "reference": reference.model, "settings": settings}
    key = hashlib.blake2b(json.dumps(job).encode(), digest_size=8).hexdigest()
    parts = [folder / f"part-{key}-{number}-of-{world}.jsonl" for number in range(world)]
    write_jsonl(parts[rank], (_part(i, pairs[i].id, row, logps) for i, row in rows.items()))
    if not all(part.exists() for part in parts):
        return Outcome(None, Counter(row.reason for row in rows.values() if row.reason))
    return _join(parts, pairs, output, job, csv_share, tokenizer.eos_token)


class Row(NamedTuple):
    """A pair as token ids.

    Attributes:
        prompt: of the dialogue in the chat template.
        tokens: per side those of the response and the end token.
        offsets: per side the half-open characters of each.
        reason: why it is left out.
    """

    prompt: list[int]
    tokens: dict[str, list[int]]
    offsets: dict[str, list[list[int]]]
    reason: str | None = None


def tokenise(pair: Pair, tokenizer: PreTrainedTokenizerBase) -> Row:
    """The prompt in the chat template; responses by themselves, and the end token after them."""
    tokens: dict[str, list[int]] = {}
    offsets: dict[str, list[list[int]]] = {}
    for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens[side] = [*encoded["input_ids"], tokenizer.eos_token_id]
        offsets[side] = [*map(list, encoded["offset_mapping"]), [len(text), len(text)]]
    return Row(prompt_ids(tokenizer, pair.prompt), tokens, offsets)


def _read(scorer: Scorer, items: list[Item], directory: Path, **job: Any) -> Mapping[str, Mapping[str, object]]:
    """What a model says of the items: id -> {side: packed log-probabilities}."""
    job |= {"sampling": job["sampling"] | {"batch_tokens": scorer.batch_tokens}}
    with Journal(directory, model=scorer.model, seed=0, **job) as journal:
        if any(item.id not in journal.done for item in items):
            with tqdm(total=len(items), initial=len(journal.done), desc=job["job"], unit="pair", disable=None) as bar:
                for batch in scorer.logps(items, done=journal.done.keys()):
                    for name, sides in batch:
                        if not all(values.isfinite().all() for values in sides.values()):
                            raise ValueError(
                                f"{scorer.name} gives no number for record {name}: nothing can be selected by it"
                            )
                    journal.append(
                        {"id": name} | {side: pack(values.tolist()) for side, values in sides.items()}
                        for name, sides in batch
                    )
                    bar.update(len(batch))
        return journal.done


def pack(values: Iterable[float]) -> str:
    """Numbers as base64 of little-endian float32."""
    packed = array("f", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()


def unpack(text: str) -> array[float]:
    """The numbers in what `pack` gave."""
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
) -> Outcome:
    """Write all results from the parts, in the order of the input, one record in memory at a time."""

    def rows() -> Iterator[dict[str, Any]]:
        each = [(row for _, row in read_jsonl(part, problems=None)) for part in parts]
        return heapq.merge(*each, key=lambda row: row["row"])

    dropped = [row for row in rows() if "reason" in row]
    counts = Counter(row["reason"] for row in dropped)
    _write_parquet(output.with_suffix(".parquet"), (row for row in rows() if "reason" not in row), job)
    if share:
        texts = ((pairs[row["row"]], row) for row in rows() if "reason" not in row)
        write_sepo_csv(output.with_suffix(".csv"), (_released(pair, row, eos) for pair, row in texts), share=share)
    report = {
        "job": "sepo score",
        **job,
        "records": len(pairs),
        "scored": len(pairs) - len(dropped),
        "dropped": dict(counts),
        "dropped_records": [{name: row[name] for name in ("id", "reason", "tokens")} for row in dropped],
    }
    write_json(output.with_suffix(".report.json"), report)
    records = (_record(pairs[row["row"]], row, job["tokenizer"]) for row in rows() if "reason" not in row)
    return Outcome(write_jsonl(output, map(to_row, records)), counts)


def _rewards(side: Mapping[str, str]) -> list[float]:
    """s_t = log pi_oracle - log pi_ref of a response's tokens, as `losses.sepo.token_reward`."""
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
