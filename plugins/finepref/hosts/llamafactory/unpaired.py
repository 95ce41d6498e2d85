"""Shape "unpaired" on LLaMA-Factory: a good response and ONE of its bad alternatives per epoch, each a row of its own.

A row of format feedback that has no such counterpart is trained on by its label, as by the host's `kto`.
All alternatives of a prompt are tokenised once. The collator draws one by a hash of (seed, epoch, record id), so a
draw does not depend on row order, data-loader workers, ranks, resuming or the dataset cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from llamafactory.data import KTODataCollatorWithPadding
from llamafactory.extras import logging
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.train.kto.trainer import CustomKTOTrainer
from torch import Tensor
from transformers import Trainer

from finepref import stages
from finepref.formats import negatives, records
from finepref.formats.check import BadData, Problem
from finepref.formats.layouts import native_format
from finepref.hosts import packed, row_cache, trees
from finepref.hosts.batching import RowTokens, Units, padded
from finepref.hosts.llamafactory import cached_reference, forward
from finepref.hosts.llamafactory.adapter import Adapter, keeps_batches, sharing_of
from finepref.hosts.llamafactory.batches import Batched, list_lengths, list_maxima
from finepref.hosts.llamafactory.record_processor import RecordProcessor
from finepref.hosts.llamafactory.tokenized import TokenizedCheck, encoded
from finepref.hosts.llamafactory.verdicts import column, distinct, rejected_record, rows_of, total, verdict
from finepref.hosts.meter import Meter, Tally
from finepref.hosts.reading import JoinedFeedback, Sourced, join_feedback
from finepref.hosts.rows import INCOMPLETE
from finepref.hosts.run import Run, current
from finepref.hosts.sharing import Sharing
from finepref.losses.ranks import sum_over_ranks
from finepref.methods import overlong
from finepref.methods.batches import Unpaired
from finepref.methods.draws import (
    EVALUATION_EPOCH,
    digest_text,
    draw_digest,
    draw_index,
    error_types_of,
    good_and_bad,
    partners,
    responses_of,
    sum_digests,
)
from finepref.methods.options import UnpairedOptions

JOINED, PARTNERS = "joined-1", "partners-1.npy"  # to be changed whenever what is written changes its meaning
BATCH = 1000
NO_PARTNER = "no_other_prompt_in_the_stream"

logger = logging.get_logger("llamafactory.finepref")  # the host shows what is below its own name


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


def rows_of_batch(batch: dict[str, Any], kind: str = "") -> forward.Rows:
    """The rows of a batch; "kl_" for their mismatched responses. All response tokens are needed."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: batch[f"{kind}{name}"] for name in names if f"{kind}{name}" in batch}
    labels = batch[f"{kind}labels"]
    return forward.Rows(inputs, labels, labels[:, 1:] != IGNORE_INDEX, batch.get(f"{kind}needed"))


SIDES = ("chosen", "rejected")
SINGLE_SIDES = ("single/chosen", "single/rejected")  # of rows of which nothing is drawn
LABELS = ("undesirable", "desirable")  # by label, in the receipt


class UnpairedTrainer(Batched, CustomKTOTrainer):
    """The host's KTO trainer with the stage's loss, and metrics per error type over all ranks.

    Metrics over all rows are as on the host, those of an error type over its draws, `SINGLE_SIDES` over single rows.

    Attributes:
        frozen: the weights of the reference, if it is the policy with other weights (`reference.Frozen`).
        sharing: whether the rows of a record that are in one batch are read as one tree; None: they are not.
    """

    frozen: Any = None
    row_key = "kto_tags"
    step_desirable: Tensor | None = None  # as `step_rows`
    sharing: Sharing | None = None

    def __init__(
        self,
        *,
        run: Run,
        type_names: tuple[str, ...],
        evaluation_collator: UnpairedCollator,
        singles: bool = False,
        sharing: Sharing | None = None,
        **kwargs: Any,
    ) -> None:
        self.sharing = sharing
        self.run, self.type_names, self.evaluation_collator = run, type_names, evaluation_collator
        self.drawn, self.single, self.digest = Tally(), Tally(), Tally()
        self.singles = singles
        parts = [*SIDES, *(f"rejected/{name}" for name in type_names), *(SINGLE_SIDES if singles else ())]
        names = [f"{metric}/{part}" for part in parts for metric in ("rewards", "logps")]
        self.meter = Meter([*run.stage.metrics, *names])
        super().__init__(**kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The evaluation uses its own collator, which always draws as in the first epoch."""
        training, self.data_collator = self.data_collator, self.evaluation_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training

    def get_batch_loss_metrics(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
        """The loss of a micro-batch. Its metrics are added to the meter."""
        desirable, kinds, single = (batch[name] for name in ("kto_tags", "negative_type", "single"))
        logps, log_ratio, kl_log_ratio = self.log_ratios(model, batch)
        unpaired = Unpaired(log_ratio, kl_log_ratio, desirable)
        out, metrics = self.run.stage.losses(unpaired, self.run.options)
        loss = self.row_mean(out, training=model.training)
        ftx = self.run.options.ftx
        if ftx > 1e-6:  # NLL of the desirable rows, over all rows, as on the host
            average = logps / (batch["labels"][:, 1:] != IGNORE_INDEX).sum(-1)
            loss = loss - ftx * self.mean_of_desirable(desirable, average, training=model.training)

        if model.training:
            self.run.count(len(desirable))
            self.digest.add(sum=batch["draw"].sum())
            self.drawn.add(**{name: (kinds == index).sum() for index, name in enumerate(self.type_names)})
            if self.singles:
                self.single.add(**{label: (single & (desirable == index)).sum() for index, label in enumerate(LABELS)})
        split = "train" if model.training else "eval"
        values = {"rewards": self.run.options.beta * log_ratio.detach(), "logps": logps.detach()}
        one = torch.ones((), device=logps.device)
        totals = {name: (value, one) for name, value in metrics.items()}
        for part, members in self._parts(desirable, kinds, single):
            for metric, value in values.items():
                totals[f"{metric}/{part}"] = torch.where(members, value, 0.0).sum(), members.sum()
        self.meter.add(split, totals)
        return loss, {}

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """The micro-batches of an optimizer step. With a budget, desirable rows are counted on all processes."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.step_rows is not None:
            counts = [batch["kto_tags"].sum() for batch in batches]
            self.step_desirable = sum_over_ranks(torch.stack(counts).sum().to(device))
        return batches, items

    def mean_of_desirable(self, desirable: Tensor, values: Tensor, *, training: bool) -> Tensor:
        """The mean of values [B] over the desirable rows, times all rows per desirable one, as on the host.

        It is over the micro-batch of this process; with a budget of tokens its part of that of the optimizer step.
        """
        total = torch.where(desirable, values, 0.0).sum()
        if self.step_rows is None or not training:
            return total / desirable.sum().clamp(min=1) ** 2 * len(desirable)
        parts = self.args.world_size * self.current_gradient_accumulation_steps  # whose mean the host takes
        return total / self.step_desirable.clamp(min=1) ** 2 * self.step_rows * parts

    def log_ratios(self, model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """log pi [B] of the responses, their log-ratios to the reference [B], and those of their mismatched responses
        [B], without a gradient.

        As trees, the reference reads both kinds of responses in one pass.
        """
        known, kl_known = (cached_reference.of_batch(batch, kind) for kind in ("", "kl_"))
        if forward.shares(self, model) and "trees" in batch:
            read = {kind: forward.trees_of(self, made) for kind, made in batch["trees"].items()}
            if known is None:
                known, kl_known = forward.reference_logps(self, model, read["both"]).chunk(2)
            with torch.no_grad():
                kl_logps = forward.values(self, model, read["kl_"]).logps
            logps = forward.values(self, model, read[""]).logps.sum(-1)
            return logps, logps - known.sum(-1), kl_logps.sum(-1) - kl_known.sum(-1)
        own = forward.values(self, model, rows_of_batch(batch), with_reference=True, known=known)
        with torch.no_grad():
            other = forward.values(self, model, rows_of_batch(batch, "kl_"), with_reference=True, known=kl_known)
        logps = own.logps.sum(-1)
        return logps, logps - own.reference.sum(-1), (other.logps - other.reference).sum(-1)

    def _parts(self, is_desirable: Tensor, kinds: Tensor, single: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, bool members [B]) of each group with metrics of its own: see `parts` in `__init__`."""
        yield "chosen", is_desirable
        yield "rejected", ~is_desirable
        for index, name in enumerate(self.type_names):
            yield f"rejected/{name}", kinds == index
        if self.singles:
            yield SINGLE_SIDES[0], single & is_desirable
            yield SINGLE_SIDES[1], single & ~is_desirable

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add means over all ranks, and margins, to a training or evaluation log entry."""
        split = "train" if "loss" in logs else "eval"
        prefix = "eval_" if split == "eval" else ""
        sums = self.meter.sums(split, self.accelerator.device)
        if sums:
            logs.update({f"{prefix}{key}": value for key, value in means(sums, self.type_names, self.singles).items()})
        Trainer.log(self, logs, *args, **kwargs)

    def rank_report(self) -> dict[str, Any]:
        """This rank's part of the receipt."""
        drawn, single = (
            {name: count for name, count in tally.read().items() if count} for tally in (self.drawn, self.single)
        )
        digest = sum_digests(self.digest.read().values())  # the sum of integers on the device is right modulo 2^64
        return {"drawn": drawn, "drawn_sum": digest, **({"single": single} if self.singles else {})}

    def run_report(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """The run's part of the receipt. Equal digests mean equal draws in every epoch."""
        drawn: Counter[str] = Counter()
        single = dict.fromkeys(sorted(LABELS), 0)
        for rank in ranks:
            drawn.update(rank["drawn"])
            for label, count in rank.get("single", {}).items():
                single[label] += count
        digest = digest_text(sum_digests(rank["drawn_sum"] for rank in ranks))
        draws = {"draws": {"counts": dict(sorted(drawn.items())), "digest": digest}}
        return draws | ({"single_rows": single} if self.singles else {})


def means(
    sums: dict[str, tuple[float, float]], type_names: tuple[str, ...], singles: bool = False
) -> dict[str, float]:
    """Log entries from (sum, count): means, margins, number of rows of each error type and of single rows by label.

    Margins are over all chosen rows; that of single rows is over single rows.
    """
    logs = {name: total / count for name, (total, count) in sums.items()}
    for part in ("rejected", *(f"rejected/{name}" for name in type_names)):
        if {"rewards/chosen", f"rewards/{part}"} <= logs.keys():
            margin = part.replace("rejected", "margins", 1)
            logs[f"rewards/{margin}"] = logs["rewards/chosen"] - logs[f"rewards/{part}"]
    for name in type_names:
        logs[f"count/{name}"] = sums.get(f"rewards/rejected/{name}", (0.0, 0.0))[1]
    for part in SINGLE_SIDES if singles else ():
        logs[f"count/{part}"] = sums.get(f"rewards/{part}", (0.0, 0.0))[1]
    if {f"rewards/{part}" for part in SINGLE_SIDES} <= logs.keys():
        logs["rewards/single/margins"] = logs["rewards/single/chosen"] - logs["rewards/single/rejected"]
    return logs


class UnpairedCheck(TokenizedCheck):
    """The stage's own check of each record, for tokenised rows, which an earlier run may have made."""

    def row(self, row: dict[str, Any]) -> tuple[str, Sequence[Problem]]:
        known: records.Record
        if row["single"]:
            known = records.Feedback(
                row["example_id"], (), "", row["kto_tags"], next(iter(row["negative_types"]), None)
            )
        else:
            known = records.Negatives(row["example_id"], (), "", dict.fromkeys(row["negative_types"], ""))
        problems = stages.find(self.stage).check_record(known, self.options)
        if problems and row["dropped"]:
            return overlong.EQUAL_AFTER_CUT, ()
        return "", problems


class UnpairedAdapter(Adapter):
    """Data and training of the stages on unpaired responses."""

    schema = UnpairedProcessor.schema
    responses = (("alternatives", "lengths"), ("kl_alternatives", "kl_lengths"))

    def arrange(self, dataset: Any, *, truncated: bool, streaming: bool) -> Any:
        """Group rows of format feedback by prompt; rows of format negatives already are one record each.

        Rows of a prompt that cannot be drawn from stay as they are.
        """
        run = current()
        if streaming:
            if any(native_format(entry.formatting) == "feedback" for entry in run.datasets):
                raise ValueError(
                    "feedback rows cannot be grouped by prompt in a stream; turn streaming off, or convert the files "
                    "with `finepref convert --from feedback --to negatives`"
                )
            return dataset
        if "feedback" not in distinct(dataset, "_formatting"):
            return dataset
        wanted = (run.bad_rows.skip, run.bad_rows.max_bad, truncated)
        folder = run.cache / row_cache.name_of([JOINED, dataset._fingerprint, *wanted])
        report = row_cache.made_once(folder, partial(_write_joined, run, dataset, truncated))
        for each in report["wrong"]:
            problems = [Problem(**problem) for problem in each["problems"]]
            run.bad_rows.problems += problems
            run.bad_rows.add(rejected_record(each["id"], problems), problems, rows=each["rows"])
        run.bad_rows.settle()
        for each in report["parted"]:
            run.rows.skip(**each)
        return Dataset.from_file(str(folder / row_cache.ROWS_FILE))

    def prepare(self, dataset: Any, *, streaming: bool) -> Any:
        """Give every record of a split a partner of another prompt for the KL term: its index."""
        if streaming:
            return dataset
        folder = current().cache / row_cache.name_of([PARTNERS, dataset._fingerprint])
        row_cache.made_once(folder, partial(_write_partners, dataset))
        ring = np.load(folder / PARTNERS, mmap_mode="r")
        return dataset.add_column("_partner", ring)

    def processor(self, options: UnpairedOptions) -> Any:
        return partial(UnpairedProcessor, overlong=options.overlong)

    def check(self, options: UnpairedOptions) -> UnpairedCheck | None:
        return UnpairedCheck(self.stage.name, options) if self.stage.check_record else None

    def row_tokens(self, dataset: Any) -> RowTokens:
        """A response and its mismatched response have a forward pass each; of alternatives the longest counts."""
        prompt = list_lengths(dataset, "prompt")
        sequences = [prompt + list_maxima(dataset, name) for name in ("lengths", "kl_lengths")]
        return RowTokens(np.stack([*map(padded, sequences)], axis=1), sum(sequences))

    def units(self, dataset: Any, options: UnpairedOptions) -> Units:
        """Both rows of a record, for `finepref_prefix_sharing`: they have the same prompt.

        A prompt's rows side by side would spoil the KL term of the host's `kto`, which takes the next row's response
        as mismatched. Here it is of another prompt, wherever the rows stand (`draws.partners`).
        """
        if not options.prefix_sharing:
            return super().units(dataset, options)
        good, single = (np.concatenate([*map(np.asarray, column(dataset, name))]) for name in ("kto_tags", "single"))
        ids = pa.chunked_array([*column(dataset, "example_id")])
        same = pc.equal(ids[1:], ids[:-1]).to_numpy()
        second = np.concatenate([[False], same & good[:-1] & ~good[1:] & ~single[1:]])
        return Units.of(~second)

    def check_split(self, dataset: Any, options: UnpairedOptions) -> None:
        found = distinct(dataset, "negative_types")
        if self.stage.check_data and (problems := self.stage.check_data(found, options)):
            raise BadData(problems)

    def check_training(self, dataset: Any, options: UnpairedOptions) -> None:
        """Count the responses of both kinds, on which the weights depend. Nothing is refused."""
        run, count = current(), len(dataset)
        single: Counter[bool] = Counter()
        for labels, alone in zip(column(dataset, "kto_tags"), column(dataset, "single"), strict=True):
            single.update(labels.filter(alone).to_pylist())
        if single:
            told = f"{single[True]} desirable, {single[False]} undesirable"
            logger.info_rank0(f"{single.total()} single rows are trained on by their own label: {told}")
        desirable = total(dataset, "kto_tags")
        options.count_responses(desirable, count - desirable)
        run.settings |= self.stage.settings(options) if self.stage.settings else {}
        if desirable in (0, count):
            kind = LABELS[bool(desirable)]
            logger.warning_rank0(f"all {count} responses are {kind} (FP061); KTO is meant for both kinds")

    def build_trainer(self, parts: Any, **common: Any) -> UnpairedTrainer:
        options, training_args = parts.run.options, parts.args.training
        type_names, singles = self._kinds_of_run(common, parts)
        type_names = options.error_types or type_names
        ignore = (
            IGNORE_INDEX
            if parts.args.data.ignore_pad_token_for_loss
            else parts.tokenizer_module["tokenizer"].pad_token_id
        )
        sharing = sharing_of(parts, "" if ignore == IGNORE_INDEX else "`ignore_pad_token_for_loss` is false")
        shared = dict(
            template=parts.template,
            model=parts.model,
            pad_to_multiple_of=8,
            label_pad_token_id=ignore,
            seed=training_args.seed,
            types=options.error_types,
            type_names=type_names,
            reference=parts.kept,
            counts=keeps_batches(parts.args),
            shares=sharing is not None and sharing.possible,
            **parts.tokenizer_module,
        )
        epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        trainer = UnpairedTrainer(
            epoch=epoch,
            sharing=sharing,
            type_names=type_names,
            singles=singles,
            evaluation_collator=UnpairedCollator(**shared),
            ref_model=parts.ref_model,
            data_collator=UnpairedCollator(**shared, epoch=epoch if options.resampled else None),
            **common,
            **parts.trainer_arguments(),
        )
        if options.advice:
            logger.warning_rank0(options.advice)
        return trainer

    @staticmethod
    def _kinds_of_run(datasets: dict[str, Any], parts: Any) -> tuple[tuple[str, ...], bool]:
        """All error types that may be drawn, sorted, and whether there are single rows.

        For a stream the types are read from its files; it has no single rows.
        """
        found: set[str] = set()
        singles = False
        if parts.args.data.streaming:
            for _, _, record in parts.run.source_records():
                found |= set(record.negatives)
        else:
            evaluated = datasets.get("eval_dataset")
            splits = list(evaluated.values()) if isinstance(evaluated, dict) else [evaluated]
            for split in (datasets.get("train_dataset"), *splits):
                if split is not None:
                    for names, single in zip(column(split, "negative_types"), column(split, "single"), strict=True):
                        found.update(names.filter(pc.invert(single)).flatten().unique().to_pylist())
                    singles = singles or total(split, "single") > 0
        if not (found or singles or parts.run.options.error_types):
            raise ValueError("the error types of a streamed remote dataset are not known: name them")
        return tuple(sorted(found)), singles

    def plot_keys(self, options: UnpairedOptions) -> list[str]:
        names = options.error_types or negatives.ERROR_TYPES
        return ["rewards/chosen", "rewards/rejected", "rewards/margins", *(f"rewards/margins/{n}" for n in names)]


def _write_partners(dataset: Any, folder: Path) -> dict[str, Any]:
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


def _write_joined(run: Run, dataset: Any, truncated: bool, folder: Path) -> dict[str, Any]:
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
