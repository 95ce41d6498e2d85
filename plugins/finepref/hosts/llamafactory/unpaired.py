"""Shape "unpaired" on LLaMA-Factory: a good response and ONE of its bad alternatives per epoch, each a row of its own.

A row of format feedback that has no such counterpart is trained on by its label, as by the host's `kto`.
All alternatives of a prompt are tokenised once. The collator draws one by a hash of (seed, epoch, record id), so a
draw does not depend on row order, data-loader workers, ranks, resuming or the dataset cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from llamafactory.data import KTODataCollatorWithPadding
from llamafactory.extras import logging
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.train.kto.trainer import CustomKTOTrainer
from torch import Tensor
from transformers import Trainer, TrainerCallback

from finepref import stages
from finepref.formats import negatives, records
from finepref.formats.check import BadData, Problem
from finepref.formats.layouts import native_format
from finepref.formats.record_places import place_of
from finepref.hosts.llamafactory import row_cache
from finepref.hosts.llamafactory.adapter import Adapter
from finepref.hosts.llamafactory.record_processor import RecordProcessor
from finepref.hosts.llamafactory.tokenized import TokenizedCheck, encode
from finepref.hosts.llamafactory.verdicts import rejected_record, rows_of, verdict
from finepref.hosts.meter import Meter
from finepref.hosts.reading import JoinedFeedback, Sourced, join_feedback
from finepref.hosts.rows import INCOMPLETE
from finepref.hosts.run import Run, current
from finepref.losses import ops
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

NO_PARTNER = "no_other_prompt_in_the_stream"

logger = logging.get_logger("llamafactory.finepref")  # the host shows what is below its own name


@dataclass
class UnpairedProcessor(RecordProcessor):
    """Two rows per record: one with its chosen response, one with all its negatives as alternatives.

    A single row of format feedback gives one row. Its mismatched response may have either label, as on the host.

    All of them, and the mismatched responses of the KL term, keep the same tokens of the prompt. So where the host
    cuts the prompt of one row and not of another, these rows differ from the host's on purpose.
    """

    schema: str = "seapo-3"
    last: records.Record | None = None  # of the batch before, in a stream

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"last": None}

    def rows(self, cached: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """See `_rows_of` for the columns."""
        found = [row_cache.record_of(row) for row in cached]
        if "_partner" in cached[0]:
            named = [{"_record": row["_partner"], "_formatting": row["_partner_formatting"]} for row in cached]
            others = [row_cache.record_of(row) for row in named]
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
        prompt_ids, responses = self._encoded(record, record)
        _, mismatched = self._encoded(record, other)
        kept, problems = self.fit(record, prompt_ids, responses)
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
            alternatives = [responses[name][: kept.response] for name in mine]
            kl_alternatives = [mismatched[name][:room] for name in theirs]
            rows.append(
                {
                    "example_id": record.id,
                    "prompt_key": cached["_prompt_key"],
                    "kto_tags": desirable,
                    "types": mine,
                    "single": single,
                    "negative_types": sorted(error_types_of(record)) if single else left,
                    "alternatives": [prompt + ids for ids in alternatives],
                    "alternative_labels": [[IGNORE_INDEX] * len(prompt) + ids for ids in alternatives],
                    "kl_types": theirs,
                    "kl_alternatives": [prompt + ids for ids in kl_alternatives],
                    "kl_alternative_labels": [[IGNORE_INDEX] * len(prompt) + ids for ids in kl_alternatives],
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

    def _encoded(self, record: records.Record, other: records.Record) -> tuple[list[int], dict[str, list[int]]]:
        """Token ids of the record's prompt, and of each response of `other` after it, by name."""
        good, bad = good_and_bad(other)
        both = {name: encode(self, record.prompt, text) for name, text in (good | bad).items()}
        return next(iter(both.values()))[0], {name: ids for name, (_, ids) in both.items()}

    def print_data_example(self, example: dict[str, Any]) -> None:
        """Print the first row, as the host does for its own data."""
        for name, ids in zip(example["types"], example["alternatives"], strict=True):
            print(f"{name}:\n{self.tokenizer.decode(ids, skip_special_tokens=False)}")


@dataclass
class UnpairedCollator(KTODataCollatorWithPadding):
    """Draws an alternative of each row, then pads as the host does. A single row has one, which is not drawn.

    Attributes:
        seed: seed of the draws.
        epoch: int64 [1] in shared memory, so that persistent data-loader workers see changes; None: always epoch 0.
        types: error types to draw from, None for all.
        type_names: all error types that are drawn from; `negative_type` is an index into them.
    """

    seed: int = 42
    epoch: torch.Tensor | None = None
    types: tuple[str, ...] | None = None
    type_names: tuple[str, ...] = ()

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch: the host's keys, `negative_type` [B] (index into type_names, -1 = none), `single` and `draw` [B].

        `draw` is the digest of what is trained on, drawn or not; `single` says of which rows nothing was drawn.
        """
        epoch = int(self.epoch) if self.epoch is not None else EVALUATION_EPOCH
        drawn, kinds, draws = [], [], []
        for feature in features:
            single = feature["single"]
            index = 0 if single else self._draw(feature["types"], feature["example_id"], epoch)
            kl_index = self._draw_mismatched(feature["kl_types"], feature["example_id"], epoch)
            drawn.append(
                {
                    "input_ids": feature["alternatives"][index],
                    "attention_mask": [1] * len(feature["alternatives"][index]),
                    "labels": feature["alternative_labels"][index],
                    "kl_input_ids": feature["kl_alternatives"][kl_index],
                    "kl_attention_mask": [1] * len(feature["kl_alternatives"][kl_index]),
                    "kl_labels": feature["kl_alternative_labels"][kl_index],
                    "kto_tags": feature["kto_tags"],
                    "images": None,
                    "videos": None,
                    "audios": None,
                }
            )
            name = feature["types"][index]
            kinds.append(-1 if feature["kto_tags"] or single else self.type_names.index(name))
            draws.append(draw_digest(epoch, feature["example_id"], name))
        batch = super().__call__(drawn)
        batch["negative_type"] = torch.tensor(kinds)
        batch["single"] = torch.tensor([feature["single"] for feature in features])
        batch["draw"] = torch.tensor(draws)
        return batch

    def _draw(self, names: list[str], record_id: str, epoch: int) -> int:
        return draw_index(names, record_id, seed=self.seed, epoch=epoch, types=self.types)

    def _draw_mismatched(self, names: list[str], record_id: str, epoch: int) -> int:
        """The draw of a mismatched response; the only one of a single row may be of any type."""
        return 0 if len(names) == 1 else self._draw(names, record_id, epoch)


class EpochCallback(TrainerCallback):
    """Sets the epoch for which the collator draws: 0, 1, ..., also in a stream, where the host's is a part of 1."""

    def __init__(self, epoch: torch.Tensor) -> None:
        self.epoch, self.passes = epoch, -1

    def on_train_begin(self, args, state, control, **kwargs):
        self.passes = int(state.epoch or 0) - 1

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.passes += 1
        self.epoch.fill_(self.passes)


SIDES = ("chosen", "rejected")
SINGLE_SIDES = ("single/chosen", "single/rejected")  # of rows of which nothing is drawn
LABELS = ("undesirable", "desirable")  # by label, in the receipt


class UnpairedTrainer(CustomKTOTrainer):
    """The host's KTO trainer with the stage's loss, and metrics per error type over all ranks.

    Metrics over all rows are as on the host, those of an error type over its draws, `SINGLE_SIDES` over single rows.

    Attributes:
        frozen: the weights of the reference, if it is the policy with other weights (`reference.Frozen`).
    """

    frozen: Any = None

    def __init__(
        self,
        *,
        run: Run,
        type_names: tuple[str, ...],
        evaluation_collator: UnpairedCollator,
        singles: bool = False,
        **kwargs: Any,
    ) -> None:
        self.run, self.type_names, self.evaluation_collator = run, type_names, evaluation_collator
        self.drawn_sum, self.drawn, self.single = 0, Counter(), Counter()
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
        kinds, draws = batch["negative_type"], batch["draw"]
        desirable = batch["kto_tags"]
        chosen, rejected, _, _, kl_logps, chosen_average = self.concatenated_forward(model, batch)
        reference_chosen, reference_rejected, reference_kl = self.compute_reference_log_probs(model, batch)

        log_ratio = torch.cat((chosen - reference_chosen, rejected - reference_rejected))
        is_desirable = torch.cat((desirable[desirable], desirable[~desirable]))
        unpaired = Unpaired(log_ratio, kl_logps - reference_kl, is_desirable)
        out, metrics = self.run.stage.losses(unpaired, self.run.options)
        loss = ops.reduce(out)
        ftx = self.run.options.ftx
        if ftx > 1e-6 and len(chosen) > 0:  # NLL of the desirable rows, over all rows, as on the host
            loss = loss - ftx * chosen_average.sum() / len(chosen) ** 2 * len(desirable)

        if model.training:
            self.run.count(len(desirable))
            self.drawn_sum = sum_digests([self.drawn_sum, *draws.tolist()])
            self.drawn.update(self.type_names[kind] for kind in kinds.tolist() if kind >= 0)
            self.single.update(LABELS[label] for label in desirable[batch["single"]].tolist())
        split = "train" if model.training else "eval"
        logps = torch.cat((chosen, rejected)).detach()
        values = {"rewards": self.run.options.beta * log_ratio.detach(), "logps": logps}
        ordered, single = (torch.cat((v[desirable], v[~desirable])) for v in (kinds, batch["single"]))
        one = torch.ones((), device=logps.device)
        totals = {name: (value, one) for name, value in metrics.items()}
        for part, members in self._parts(is_desirable, ordered, single):
            for metric, value in values.items():
                totals[f"{metric}/{part}"] = torch.where(members, value, 0.0).sum(), members.sum()
        self.meter.add(split, totals)
        return loss, {}

    def compute_reference_log_probs(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of the reference: the host's, or those of the adapter as it was loaded."""
        if self.frozen is None:
            return super().compute_reference_log_probs(model, batch)
        with self.frozen.in_place():
            chosen, rejected, _, _, kl_logps, _ = self.concatenated_forward(model, batch)
        return chosen, rejected, kl_logps

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
        single = {"single": dict(sorted(self.single.items()))} if self.singles else {}
        return {"drawn": dict(sorted(self.drawn.items())), "drawn_sum": self.drawn_sum, **single}

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
        if "feedback" not in set(dataset["_formatting"]):
            return dataset
        whole = [row for row in dataset if row["_formatting"] != "feedback"]
        rows = (row for row in dataset if row["_formatting"] == "feedback")
        found = (Sourced(*place_of(row["_place"]), row_cache.record_of(row), row["_rows"]) for row in rows)
        return Dataset.from_list(whole + [row_cache.cached_row(each) for each in _joined(run, found, truncated)])

    def prepare(self, dataset: Any, *, streaming: bool) -> Any:
        """Give every record of a split a partner of another prompt for the KL term."""
        if streaming:
            return dataset
        keyed = list(zip(dataset["_prompt_key"], dataset["_record_id"], strict=True))
        rows = dataset.select_columns(["_record", "_formatting"])[:]
        texts = [responses_of(row_cache.record_of(row)) for row in rows_of(rows)]
        ring = partners(keyed, texts)
        for name, column in (("_partner", "_record"), ("_partner_formatting", "_formatting")):
            dataset = dataset.add_column(name, [rows[column][index] for index in ring])
        return dataset

    def processor(self, options: UnpairedOptions) -> Any:
        return partial(UnpairedProcessor, overlong=options.overlong)

    def check(self, options: UnpairedOptions) -> UnpairedCheck | None:
        return UnpairedCheck(self.stage.name, options) if self.stage.check_record else None

    def check_split(self, dataset: Any, options: UnpairedOptions) -> None:
        found = {name for names in dataset["negative_types"] for name in names}
        if self.stage.check_data and (problems := self.stage.check_data(found, options)):
            raise BadData(problems)

    def check_training(self, dataset: Any, options: UnpairedOptions) -> None:
        """Count the responses of both kinds, on which the weights depend. Nothing is refused."""
        run, labels = current(), dataset["kto_tags"]
        single = Counter(label for label, alone in zip(labels, dataset["single"], strict=True) if alone)
        if single:
            told = f"{single[True]} desirable, {single[False]} undesirable"
            logger.info_rank0(f"{single.total()} single rows are trained on by their own label: {told}")
        desirable = sum(labels)
        options.count_responses(desirable, len(labels) - desirable)
        run.settings |= self.stage.settings(options) if self.stage.settings else {}
        if desirable in (0, len(labels)):
            kind = LABELS[bool(desirable)]
            logger.warning_rank0(f"all {len(labels)} responses are {kind} (FP061); KTO is meant for both kinds")

    def build_trainer(self, parts: Any, **common: Any) -> UnpairedTrainer:
        options, training_args = parts.run.options, parts.args.training
        type_names, singles = self._kinds_of_run(common, parts)
        type_names = options.error_types or type_names
        ignore = (
            IGNORE_INDEX
            if parts.args.data.ignore_pad_token_for_loss
            else parts.tokenizer_module["tokenizer"].pad_token_id
        )
        shared = dict(
            template=parts.template,
            model=parts.model,
            pad_to_multiple_of=8,
            label_pad_token_id=ignore,
            seed=training_args.seed,
            types=options.error_types,
            type_names=type_names,
            **parts.tokenizer_module,
        )
        epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        trainer = UnpairedTrainer(
            type_names=type_names,
            singles=singles,
            evaluation_collator=UnpairedCollator(**shared),
            ref_model=parts.ref_model,
            data_collator=UnpairedCollator(**shared, epoch=epoch if options.resampled else None),
            **common,
            **parts.trainer_arguments(),
        )
        trainer.add_callback(EpochCallback(epoch))
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
                    rows = zip(split["negative_types"], split["single"], strict=True)
                    found |= {name for names, single in rows for name in names if not single}
                    singles = singles or any(split["single"])
        if not (found or singles or parts.run.options.error_types):
            raise ValueError("the error types of a streamed remote dataset are not known: name them")
        return tuple(sorted(found)), singles

    def plot_keys(self, options: UnpairedOptions) -> list[str]:
        names = options.error_types or negatives.ERROR_TYPES
        return ["rewards/chosen", "rewards/rejected", "rewards/margins", *(f"rewards/margins/{n}" for n in names)]


def _joined(run: Run, found: Iterable[Sourced], truncated: bool) -> list[Sourced]:
    """Feedback rows joined by prompt. Prompts with a problem are counted.

    Args:
        run: the run that counts.
        found: the rows.
        truncated: whether rows were left out before, so that a prompt may have lost some of its rows.
    """
    joined = join_feedback(found, singles=True)
    for prompt, problems in joined.wrong.items():
        group = joined.groups[prompt]
        run.bad_rows.problems += problems
        run.bad_rows.add(rejected_record(records.content_id(prompt), problems), problems, rows=len(group))
    run.bad_rows.settle()
    parted = _parted(run, joined) if truncated else set()
    for prompt in parted:
        first, *_ = group = joined.groups[prompt]
        run.rows.skip(records.content_id(prompt), first.place, INCOMPLETE, sum(source.rows for source in group))
    return [each for each in joined.records if each.record.prompt not in parted]


def _parted(run: Run, joined: JoinedFeedback) -> set[records.Prompt]:
    """Prompts with single rows, of which the files of the run have a whole record."""
    single = {each.record.prompt for each in joined.records if isinstance(each.record, records.Feedback)}
    if not single:
        return set()
    there = (Sourced(*each) for each in run.source_records() if each[2].prompt in single)
    whole = join_feedback((each for each in there if isinstance(each.record, records.Feedback)), singles=True)
    return {each.record.prompt for each in whole.records if isinstance(each.record, records.Negatives)}
