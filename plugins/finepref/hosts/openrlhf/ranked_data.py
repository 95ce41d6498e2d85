"""Scored lists of responses on OpenRLHF, of reward models and of policies: tokenised, stored, best response first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from finepref.formats.problems import BadData
from finepref.hosts import packed, reference_cache, reward_metrics
from finepref.hosts.openrlhf import cached_reference, data, pairs
from finepref.hosts.openrlhf.command_line import Request
from finepref.hosts.openrlhf.notes import Notes
from finepref.hosts.openrlhf.stored_rows import IDS, TokenisedRows, Values
from finepref.hosts.reading import Sourced
from finepref.losses.pooling import tokens_read
from finepref.methods.options import RankedOptions
from finepref.methods.overlong import same
from finepref.methods.ranked_rows import response_field, scored, without_end


class RankedRow(NamedTuple):
    """A tokenised record, its responses sorted from best to worst.

    Attributes:
        sequences: prompt and response, int32 [L], of each response.
        ranks: rank of each response's score, 0 for the lowest; equal scores have equal ranks.
        is_apo: whether the record is of kind "apo".
        prompt: number of tokens of the prompt.
        reference: log pi_ref of each response's tokens, if it is kept.
    """

    sequences: list[Tensor]
    ranks: list[int]
    is_apo: bool
    prompt: int = 0
    reference: Sequence[np.ndarray] | None = None


SCHEMA = pa.schema({"prompt": IDS, "ids": IDS, "lengths": IDS, "ranks": IDS, "is_apo": pa.bool_()})
"""Columns of stored records, see `RankedRow`; `ids` and `lengths` as in `packed.joined`."""


def record_of(values: Values, rows: TokenisedRows) -> RankedRow:
    """The record of these columns."""
    prompt = values["prompt"]
    ends = np.cumsum(values["lengths"])[:-1]
    sequences = [torch.from_numpy(np.concatenate([prompt, ids])) for ids in np.split(values["ids"], ends)]
    reference = values.get(cached_reference.NAME)
    return RankedRow(sequences, values["ranks"].tolist(), values["is_apo"], len(prompt), reference)


def tokenise(
    found: Iterable[Sourced],
    encoder: data.Encoder,
    name: str,
    notes: Notes,
    path: Path | None = None,
    *,
    options: RankedOptions | None = None,
) -> TokenisedRows:
    """Tokenise records.

    All responses of a record have the same tokens of the prompt. A response that is cut keeps its end token. The host
    reads the reward at a sequence's last token, so for a reward model a sequence ends at the token where the reward is
    to be read.

    Args:
        found: the records.
        encoder: tokenises prompts and responses.
        name: name of the data, for the progress bar.
        notes: where it is noted what becomes of each record.
        path: file of the rows; None for memory.
        options: those of a reward model, for where the reward is read; None: responses are read as a whole.
    """
    return TokenisedRows.of(_columns(found, encoder, name, notes, options), SCHEMA, record_of, path)


def _columns(
    found: Iterable[Sourced], encoder: data.Encoder, name: str, notes: Notes, options: RankedOptions | None
) -> Iterator[dict[str, Any]]:
    end = encoder.tokenizer.eos_token_id

    def read(ids: list[int]) -> int | None:
        return len(ids) if options is None else tokens_read(ids, end, options.pooling[1])

    for source in data.watched(found, name):
        record, problems = source.record, []
        responses, scores, kind = scored(record)
        texts = {response_field(record, index): text for index, text in enumerate(responses)}
        prompt, encoded = encoder.encode(record, texts, problems)
        whole = [response.ids for response in encoded]
        if options is not None and not problems and any(read(ids) is None for ids in whole):
            problems.append(without_end(record.id, options))
        if problems:
            notes.reject(source, problems)
            continue
        fit = encoder.fit(source, prompt, whole, notes)
        if fit is None:
            continue
        kept = [encoder.cut(ids, fit.response) for ids in whole]
        if reason := same(scores, whole, kept):
            notes.skip(source, reason)
            continue
        notes.keep(source, fit.cut)
        start = prompt[fit.start : fit.stop]
        best_first = sorted(range(len(scores)), key=lambda i: -scores[i])
        order = sorted(set(scores))
        ids, lengths = packed.joined(kept[i][: read(kept[i])] for i in best_first)
        yield {
            "prompt": packed.ids(start),
            "ids": ids,
            "lengths": lengths,
            "ranks": packed.ids(order.index(scores[i]) for i in best_first),
            "is_apo": kind == "apo",
        }


def texts_of(rows: TokenisedRows) -> reference_cache.Texts:
    """The texts of stored records."""

    def row(index: int) -> tuple[Any, list[Any]]:
        values = rows.values(index)
        return values["prompt"], packed.parted(values["ids"], values["lengths"])

    tables = (pa.Table.from_batches([batch]) for batch in rows.batches)
    return reference_cache.texts_of(tables, [("ids", "lengths")], row)


def check_kinds(request: Request, rows: TokenisedRows) -> None:
    """The stage's own check of the kinds of records in its training data. Raises BadData."""
    kinds = {reward_metrics.KINDS[int(is_apo)] for is_apo in np.unique(rows.column("is_apo"))}
    check = request.stage.check_data
    if check and (problems := check(kinds, request.options)):
        raise BadData([replace(problem, file=request.host.data.dataset) for problem in problems])


class Dataset(pairs.PairDataset):
    """Base of the data sets of `RankedRow` for the host's loader."""

    def lengths(self) -> np.ndarray:
        """Tokens of the longest sequence of each record, [N]."""
        return self.rows.list_lengths("prompt") + self.rows.list_maxima("lengths")

    def __getitem__(self, index: int) -> RankedRow:
        return self.rows[index]
