"""Shape "unpaired" on LLaMA-Factory: a good response and ONE of its bad alternatives per epoch, a row each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from llamafactory.extras import logging
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.train.kto.trainer import CustomKTOTrainer
from torch import Tensor
from transformers import Trainer

from finepref import stages
from finepref.formats import negatives, records
from finepref.formats.check import BadData, Problem
from finepref.formats.layouts import native_format
from finepref.hosts import row_cache
from finepref.hosts.batching import RowTokens, Units, padded
from finepref.hosts.llamafactory import cached_reference, forward
from finepref.hosts.llamafactory.adapter import Adapter, keeps_batches, sharing_of
from finepref.hosts.llamafactory.batches import Batched, list_lengths, list_maxima
from finepref.hosts.llamafactory.tokenized import TokenizedCheck
from finepref.hosts.llamafactory.unpaired_data import (
    JOINED,
    PARTNERS,
    UnpairedCollator,
    UnpairedProcessor,
    write_joined,
    write_partners,
)
from finepref.hosts.llamafactory.verdicts import column, distinct, rejected_record, total
from finepref.hosts.meter import Meter, Tally
from finepref.hosts.run import Run, current
from finepref.hosts.sharing import Sharing
from finepref.losses.ranks import sum_over_ranks
from finepref.methods import overlong
from finepref.methods.batches import Unpaired
from finepref.methods.draws import digest_text, sum_digests
from finepref.methods.options import UnpairedOptions

logger = logging.get_logger("llamafactory.finepref")  # the host shows what is below its own name


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
        report = row_cache.made_once(folder, partial(write_joined, run, dataset, truncated))
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
        row_cache.made_once(folder, partial(write_partners, dataset))
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
