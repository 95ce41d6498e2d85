"""Data of shape "unpaired": rows with all alternatives of a response, partners for the KL term, and the collator.

A row of format feedback that has no such counterpart is trained on by its label, as by the host's `kto`.
The collator draws one alternative by a hash of (seed, epoch, record id), so a draw does not depend on row order,
data-loader workers, ranks, resuming or the dataset cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llamafactory.data import KTODataCollatorWithPadding
from llamafactory.extras.constants import IGNORE_INDEX

from finepref.formats import records
from finepref.formats.check import Problem
from finepref.hosts import packed, row_cache, trees
from finepref.hosts.llamafactory import cached_reference
from finepref.hosts.llamafactory.record_processor import RecordProcessor
from finepref.hosts.llamafactory.tokenized import encoded
from finepref.hosts.llamafactory.verdicts import rows_of, verdict
from finepref.hosts.reading import JoinedFeedback, Sourced, join_feedback
from finepref.hosts.rows import INCOMPLETE
from finepref.hosts.run import Run
from finepref.methods import overlong
from finepref.methods.draws import (
    EVALUATION_EPOCH,
    draw_digest,
    draw_index,
    error_types_of,
    good_and_bad,
    partners,
    responses_of,
)

JOINED, PARTNERS = "joined-1", "partners-1.npy"  # to be changed whenever what is written changes its meaning
BATCH = 1000
NO_PARTNER = "no_other_prompt_in_the_stream"


@dataclass
class UnpairedProcessor(RecordProcessor):
    """Two rows per record: one with its chosen response, one with all its negatives as alternatives.

    A single row of format feedback gives one row. Its mismatched response may have either label, as on the host.

    All of them, and the mismatched responses of the KL term, keep the same tokens of the prompt. So where the host
    cuts the prompt of one row and not of another, these rows differ from the host's on purpose.
    """

    schema: str = "seapo-4"
    pool: Any = None  # the records of the split, of which `_partner` is an index
    last: records.Record | None = None  # of the batch before, in a stream

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"last": None}

    def of_split(self, records: Any) -> None:
        self.pool = records.select_columns(["_record", "_formatting"])

    def rows(self, cached: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """See `_rows_of` for the columns."""
        found = [row_cache.record_of(row) for row in cached]
        if "_partner" in cached[0]:
            named = self.pool[[row["_partner"] for row in cached]]
            others = [row_cache.record_of(row) for row in rows_of(named)]
        else:
            others = self._partners_in_stream(cached, found)
        each = zip(found, others, cached, strict=True)
        return [made for record, other, row in each for made in self._rows_of(record, other, row)]

    def _partners_in_stream(
        self, cached: list[dict[str, Any]], found: list[records.Record]
    ) -> list[records.Record | None]:
        """Partners from the same batch; for a batch of one prompt, the last record of the batch before.

        None for all if that has the same prompt or if there was none.
        """
        before, self.last = self.last, found[-1]
        keyed = [(row["_prompt_key"], row["_record_id"]) for row in cached]
        if len({key for key, _ in keyed}) > 1:
            return [found[i] for i in partners(keyed, [*map(responses_of, found)])]
        return [before if before is not None and before.prompt != found[0].prompt else None] * len(found)

    def _rows_of(
        self, record: records.Record, partner: records.Record | None, cached: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        other = partner or record
        good, bad = good_and_bad(record)
        other_good, other_bad = good_and_bad(other)
        refused: list[Problem] = []
        prompt_ids, responses = self._encoded(record, record, refused)
        _, mismatched = self._encoded(record, other, [])  # what is wrong with the other record is told at its own row
        kept, problems = self.fit(record, prompt_ids, responses)
        problems = refused or problems
        prompt = prompt_ids[kept.start : kept.stop]
        room = self.data_args.cutoff_len - len(prompt)  # for mismatched responses
        dropped = {}
        single = not (good and bad)
        if not (kept.skipped or problems or single):
            for name in bad:
                if reason := overlong.equal([responses["chosen"], responses[name]], kept.response):
                    dropped[name] = reason
        alone = not single and len(dropped) == len(bad)
        skipped = kept.skipped or (max(dropped.values()) if alone else "") or ("" if partner else NO_PARTNER)
        left = sorted(bad.keys() - (set() if alone else dropped.keys()))
        rows = []
        for desirable in [name for name, own in ((True, good), (False, bad)) if own]:
            mine = ["chosen"] if desirable else left
            theirs = sorted((other_good or other_bad) if desirable else (other_bad or other_good))
            count = cached["_rows"] if desirable or single else 0
            own_ids, lengths = packed.joined(responses[name][: kept.response] for name in mine)
            kl_ids, kl_lengths = packed.joined(mismatched[name][:room] for name in theirs)
            rows.append(
                {
                    "example_id": record.id,
                    "prompt_key": cached["_prompt_key"],
                    "kto_tags": desirable,
                    "types": mine,
                    "single": single,
                    "negative_types": sorted(error_types_of(record)) if single else left,
                    "prompt": packed.ids(prompt),
                    "alternatives": own_ids,
                    "lengths": lengths,
                    "kl_types": theirs,
                    "kl_alternatives": kl_ids,
                    "kl_lengths": kl_lengths,
                    "dropped": sorted(dropped),
                    "rows": count,
                    "place": cached["_place"],
                    "cut": kept.cut,
                }
                | verdict(
                    record.id,
                    cached["_place"],
                    count,
                    cut=kept.cut,
                    skipped=skipped,
                    problems=problems,
                    dropped=None if desirable else dropped,
                )
            )
        return rows

    def _encoded(
        self, record: records.Record, other: records.Record, problems: list[Problem]
    ) -> tuple[list[int], dict[str, list[int]]]:
        """Token ids of the record's prompt, and of each response of `other` after it, by name."""
        good, bad = good_and_bad(other)
        return encoded(self, record, good | bad, problems)

    def print_data_example(self, example: dict[str, Any]) -> None:
        """Print the first row, as the host does for its own data."""
        for name, (ids, _) in zip(example["types"], sequences(example), strict=True):
            print(f"{name}:\n{self.tokenizer.decode(ids, skip_special_tokens=False)}")


def sequences(row: dict[str, Any], kind: str = "") -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of prompt and response, for each alternative of a row; of the mismatched ones for "kl_"."""
    prompt = packed.plain(row["prompt"])
    left_out = [IGNORE_INDEX] * len(prompt)
    responses = packed.parted(row[f"{kind}alternatives"], row[f"{kind}lengths"])
    return [(prompt + ids, left_out + ids) for ids in responses]


KINDS = ("", "kl_")
"""Prefixes in a batch: drawn and mismatched responses."""
NAMES = ("input_ids", "attention_mask", "labels")


@dataclass
class UnpairedCollator(KTODataCollatorWithPadding):
    """Draws an alternative of each row, then pads as the host does. A single row has one, which is not drawn.

    Attributes:
        seed: seed of the draws.
        epoch: int64 [1] in shared memory, so that persistent data-loader workers see changes; None: always epoch 0.
        types: error types to draw from, None for all.
        type_names: all error types that are drawn from; `negative_type` is an index into them.
        reference: the kept log-probabilities of the rows, empty if there are none.
        counts: as in `pairs.PairCollator`: whether to add `needed` and `kl_needed`, the number of response tokens.
        shares: whether to add `trees`, see `_trees`.
    """

    seed: int = 42
    epoch: torch.Tensor | None = None
    types: tuple[str, ...] | None = None
    type_names: tuple[str, ...] = ()
    reference: cached_reference.Rows = field(default_factory=cached_reference.Rows)
    counts: bool = True
    shares: bool = False

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch: the host's keys, `negative_type` [B] (index into type_names, -1 = none), `single` and `draw` [B].

        `draw` is the digest of what is trained on, drawn or not; `single` says of which rows nothing was drawn.
        """
        epoch = int(self.epoch) if self.epoch is not None else EVALUATION_EPOCH
        drawn, kinds, draws = [], [], []
        kept: dict[str, list[np.ndarray]] = {"": [], "kl_": []}
        for feature in features:
            single = feature["single"]
            index = 0 if single else self._draw(feature["types"], feature["example_id"], epoch)
            kl_index = self._draw_mismatched(feature["kl_types"], feature["example_id"], epoch)
            ids, labels = sequences(feature)[index]
            kl_ids, kl_labels = sequences(feature, "kl_")[kl_index]
            drawn.append(
                {
                    "input_ids": ids,
                    "attention_mask": [1] * len(ids),
                    "labels": labels,
                    "kl_input_ids": kl_ids,
                    "kl_attention_mask": [1] * len(kl_ids),
                    "kl_labels": kl_labels,
                    "kto_tags": feature["kto_tags"],
                    "images": None,
                    "videos": None,
                    "audios": None,
                }
            )
            if self.reference:
                values = self.reference[feature[cached_reference.ROW]]
                kept[""].append(values[index])
                kept["kl_"].append(values[len(feature["lengths"]) + kl_index])
            name = feature["types"][index]
            kinds.append(-1 if feature["kto_tags"] or single else self.type_names.index(name))
            draws.append(draw_digest(epoch, feature["example_id"], name))
        batch = super().__call__(drawn)
        batch["negative_type"] = torch.tensor(kinds)
        batch["single"] = torch.tensor([feature["single"] for feature in features])
        batch["draw"] = torch.tensor(draws)
        for kind, values in kept.items() if self.reference else ():
            lengths = [len(row[f"{kind}input_ids"]) for row in drawn]
            width = batch[f"{kind}labels"].shape[1]
            batch[f"{kind}reference"] = cached_reference.placed(values, lengths, width, self.tokenizer.padding_side)
        if self.counts:
            for kind in KINDS:
                batch[f"{kind}needed"] = int((batch[f"{kind}labels"][:, 1:] != IGNORE_INDEX).sum())
        if self.shares:
            batch["trees"] = self._trees(batch, [feature["example_id"] for feature in features])
        return batch

    @staticmethod
    def _trees(batch: dict[str, Any], names: list[str]) -> dict[str, Any]:
        """The trees of the drawn responses (""), of the mismatched ones ("kl_"), and of both ("both").

        Rows of the same record share a tree, wherever they are in the batch. In "both", the mismatched responses are
        behind the drawn ones. All ranks run as many passes, so there always are three.
        """
        parts = {kind: [batch[f"{kind}{name}"] for name in NAMES] for kind in KINDS}
        rows = {
            kind: trees.rows_of(*inputs, labels[:, 1:] != IGNORE_INDEX) for kind, (*inputs, labels) in parts.items()
        }
        columns = {kind: labels.shape[1] for kind, (*_, labels) in parts.items()}
        groups, count = trees.together(names), len(names)
        both = [group + [count + i for i in group] for group in groups]
        made = {kind: trees.make(rows[kind], groups, columns[kind], always=True) for kind in KINDS}
        every = [row for kind in KINDS for row in rows[kind]]
        return made | {"both": trees.make(every, both, max(columns.values()), always=True)}

    def _draw(self, names: list[str], record_id: str, epoch: int) -> int:
        return draw_index(names, record_id, seed=self.seed, epoch=epoch, types=self.types)

    def _draw_mismatched(self, names: list[str], record_id: str, epoch: int) -> int:
        """The draw of a mismatched response; the only one of a single row may be of any type."""
        return 0 if len(names) == 1 else self._draw(names, record_id, epoch)


def write_partners(dataset: Any, folder: Path) -> dict[str, Any]:
    """Write the index of each record's partner."""
    keyed = list(zip(dataset["_prompt_key"], dataset["_record_id"], strict=True))
    texts = (
        {blake2b(text.encode(), digest_size=8).digest() for text in responses_of(record)}
        for record in _records(dataset)
    )
    np.save(folder / PARTNERS, np.asarray(partners(keyed, [*texts]), dtype=np.int32))
    return {}


def _records(dataset: Any) -> Iterator[records.Record]:
    """The records of a data set, each made when it is read."""
    for batch in dataset.select_columns(["_record", "_formatting"]).iter(BATCH):
        yield from map(row_cache.record_of, rows_of(batch))


def write_joined(run: Run, dataset: Any, truncated: bool, folder: Path) -> dict[str, Any]:
    """Write the records of a data set, rows of format feedback joined by prompt.

    Args:
        run: the run, for the files of which a prompt may have lost rows.
        dataset: rows of the cache.
        truncated: whether rows were left out before, so that a prompt may have lost some of its rows.
        folder: where they are written.

    Returns:
        The prompts with a problem, and those of which rows are missing.
    """
    found, whole = [], []
    for row in dataset:
        if row["_formatting"] == "feedback":
            found.append(row_cache.sourced_of(row))
        else:
            whole.append(row)
    joined = join_feedback(found, singles=True)
    parted = _parted(run, joined) if truncated else set()
    kept = (each for each in joined.records if each.record.prompt not in parted)
    row_cache.write_rows(folder / row_cache.ROWS_FILE, chain(whole, map(row_cache.cached_row, kept)))
    wrong = (
        (records.content_id(prompt), problems, len(joined.groups[prompt])) for prompt, problems in joined.wrong.items()
    )
    groups = [(records.content_id(prompt), joined.groups[prompt]) for prompt in parted]
    return {
        "wrong": [{"id": name, "problems": [*map(asdict, found)], "rows": count} for name, found, count in wrong],
        "parted": [
            {
                "record_id": name,
                "place": group[0].place,
                "reason": INCOMPLETE,
                "rows": sum(each.rows for each in group),
            }
            for name, group in groups
        ],
    }


def _parted(run: Run, joined: JoinedFeedback) -> set[records.Prompt]:
    """Prompts with single rows, of which the files of the run have a whole record."""
    single = {each.record.prompt for each in joined.records if isinstance(each.record, records.Feedback)}
    if not single:
        return set()
    there = (Sourced(*each) for each in run.source_records() if each[2].prompt in single)
    whole = join_feedback((each for each in there if isinstance(each.record, records.Feedback)), singles=True)
    return {each.record.prompt for each in whole.records if isinstance(each.record, records.Negatives)}
