"""Shape "unpaired" on LLaMA-Factory: a good response and ONE of its bad alternatives per epoch, each a row of its own.

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
from finepref.formats.record_places import place_of
from finepref.hosts.llamafactory import row_cache
from finepref.hosts.llamafactory.adapter import Adapter
from finepref.hosts.llamafactory.record_processor import RecordProcessor
from finepref.hosts.llamafactory.tokenized import TokenizedCheck, encode
from finepref.hosts.llamafactory.verdicts import rejected_record, rows_of, verdict
from finepref.hosts.meter import Meter
from finepref.hosts.reading import Sourced, join_feedback
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
    partners,
    sum_digests,
)
from finepref.methods.options import UnpairedOptions

NO_PARTNER = "no_other_prompt_in_the_stream"
INCOMPLETE_GROUP = ("FP062", "FP063")  # problems of a prompt whose rows max_samples has separated

logger = logging.get_logger(__name__)


@dataclass
class UnpairedProcessor(RecordProcessor):
    """Two rows per record: one with its chosen response, one with all its negatives as alternatives.

    All of them, and the mismatched responses of the KL term, keep the same tokens of the prompt. So where the host
    cuts the prompt of one row and not of another, these rows differ from the host's on purpose.
    """

    schema: str = "seapo-2"
    last: records.Negatives | None = None  # of the batch before, in a stream

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"last": None}

    def rows(self, cached: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """See `_two_rows` for the columns."""
        found = [row_cache.record_of(row) for row in cached]
        if "_partner" in cached[0]:
            named = [{"_record": row["_partner"], "_formatting": "negatives"} for row in cached]
            others = [row_cache.record_of(row) for row in named]
        else:
            others = self._partners_in_stream(cached, found)
        each = zip(found, others, cached, strict=True)
        return [made for record, other, row in each for made in self._two_rows(record, other, row)]

    def _partners_in_stream(
        self, cached: list[dict[str, Any]], found: list[records.Negatives]
    ) -> list[records.Negatives | None]:
        """Partners from the same batch; for a batch of one prompt, the last record of the batch before.

        None for all if that has the same prompt or if there was none.
        """
        before, self.last = self.last, found[-1]
        keyed = [(row["_prompt_key"], row["_record_id"]) for row in cached]
        if len({key for key, _ in keyed}) > 1:
            return [found[i] for i in partners(keyed, [*map(_texts, found)])]
        return [before if before is not None and before.prompt != found[0].prompt else None] * len(found)

    def _two_rows(
        self, record: records.Negatives, partner: records.Negatives | None, cached: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        other = partner or record
        prompt_ids, responses = self._encoded(record, record)
        _, mismatched = self._encoded(record, other)
        kept, problems = self.fit(record, prompt_ids, responses)
        prompt = prompt_ids[kept.start : kept.stop]
        room = self.data_args.cutoff_len - len(prompt)  # for mismatched responses
        dropped = {}
        if not (kept.skipped or problems):
            for name in record.negatives:
                if reason := overlong.equal([responses["chosen"], responses[name]], kept.response):
                    dropped[name] = reason
        alone = len(dropped) == len(record.negatives)
        skipped = kept.skipped or (max(dropped.values()) if alone else "") or ("" if partner else NO_PARTNER)
        left = sorted(record.negatives.keys() - (set() if alone else dropped.keys()))
        rows = []
        for desirable in (True, False):
            mine = ["chosen"] if desirable else left
            theirs = ["chosen"] if desirable else sorted(other.negatives)
            count = cached["_rows"] if desirable else 0
            alternatives = [responses[name][: kept.response] for name in mine]
            kl_alternatives = [mismatched[name][:room] for name in theirs]
            rows.append(
                {
                    "example_id": record.id,
                    "prompt_key": cached["_prompt_key"],
                    "kto_tags": desirable,
                    "types": mine,
                    "negative_types": left,
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

    def _encoded(self, record: records.Negatives, other: records.Negatives) -> tuple[list[int], dict[str, list[int]]]:
        """Token ids of the record's prompt, and of each response of `other` after it, by name."""
        texts = {"chosen": other.chosen, **other.negatives}
        both = {name: encode(self, record.prompt, text) for name, text in texts.items()}
        return both["chosen"][0], {name: ids for name, (_, ids) in both.items()}

    def print_data_example(self, example: dict[str, Any]) -> None:
        """Print the first row, as the host does for its own data."""
        for name, ids in zip(example["types"], example["alternatives"], strict=True):
            print(f"{name}:\n{self.tokenizer.decode(ids, skip_special_tokens=False)}")


@dataclass
class UnpairedCollator(KTODataCollatorWithPadding):
    """Draws an alternative of each row, then pads as the host does.

    Attributes:
        seed: seed of the draws.
        epoch: int64 [1] in shared memory, so that persistent data-loader workers see changes; None: always epoch 0.
        types: error types to draw from, None for all.
        type_names: all error types; `negative_type` is an index into them.
    """

    seed: int = 42
    epoch: torch.Tensor | None = None
    types: tuple[str, ...] | None = None
    type_names: tuple[str, ...] = ()

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch: the host's keys, `negative_type` [B] (index into type_names, -1 = desirable), `draw` [B]."""
        epoch = int(self.epoch) if self.epoch is not None else EVALUATION_EPOCH
        drawn, kinds, draws = [], [], []
        for feature in features:
            index = self._draw(feature["types"], feature["example_id"], epoch)
            kl_index = self._draw(feature["kl_types"], feature["example_id"], epoch)
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
            kinds.append(-1 if feature["kto_tags"] else self.type_names.index(name))
            draws.append(draw_digest(epoch, feature["example_id"], name))
        batch = super().__call__(drawn)
        batch["negative_type"] = torch.tensor(kinds)
        batch["draw"] = torch.tensor(draws)
        return batch

    def _draw(self, names: list[str], record_id: str, epoch: int) -> int:
        return draw_index(names, record_id, seed=self.seed, epoch=epoch, types=self.types)


class EpochCallback(TrainerCallback):
    """Sets the epoch for which the collator draws."""

    def __init__(self, epoch: torch.Tensor) -> None:
        self.epoch = epoch

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.epoch.fill_(int(state.epoch or 0))


SIDES = ("chosen", "rejected")


class UnpairedTrainer(CustomKTOTrainer):
    """The host's KTO trainer with the stage's loss, and metrics per error type over all ranks.

    Attributes:
        frozen: the weights of the reference, if it is the policy with other weights (`reference.Frozen`).
    """

    frozen: Any = None

    def __init__(
        self, *, run: Run, type_names: tuple[str, ...], evaluation_collator: UnpairedCollator, **kwargs: Any
    ) -> None:
        self.run, self.type_names, self.evaluation_collator = run, type_names, evaluation_collator
        self.drawn_sum, self.drawn = 0, Counter()
        parts = [*SIDES, *(f"rejected/{name}" for name in type_names)]
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
        split = "train" if model.training else "eval"
        logps = torch.cat((chosen, rejected)).detach()
        values = {"rewards": self.run.options.beta * log_ratio.detach(), "logps": logps}
        ordered = torch.cat((kinds[desirable], kinds[~desirable]))
        one = torch.ones((), device=logps.device)
        totals = {name: (value, one) for name, value in metrics.items()}
        for part, members in self._parts(is_desirable, ordered):
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

    def _parts(self, is_desirable: Tensor, kinds: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, bool members [B]) of each group with metrics of its own: chosen, rejected, each error type."""
        yield "chosen", is_desirable
        yield "rejected", ~is_desirable
        for index, name in enumerate(self.type_names):
            yield f"rejected/{name}", kinds == index

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add means over all ranks, and margins, to a training or evaluation log entry."""
        split = "train" if "loss" in logs else "eval"
        prefix = "eval_" if split == "eval" else ""
        sums = self.meter.sums(split, self.accelerator.device)
        if sums:
            logs.update({f"{prefix}{key}": value for key, value in means(sums, self.type_names).items()})
        Trainer.log(self, logs, *args, **kwargs)

    def rank_report(self) -> dict[str, Any]:
        """This rank's part of the receipt."""
        return {"drawn": dict(sorted(self.drawn.items())), "drawn_sum": self.drawn_sum}

    def run_report(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """The run's part of the receipt. Equal digests mean equal draws in every epoch."""
        drawn: Counter[str] = Counter()
        for rank in ranks:
            drawn.update(rank["drawn"])
        digest = digest_text(sum_digests(rank["drawn_sum"] for rank in ranks))
        return {"draws": {"counts": dict(sorted(drawn.items())), "digest": digest}}


def means(sums: dict[str, tuple[float, float]], type_names: tuple[str, ...]) -> dict[str, float]:
    """Log entries from (sum, count): means, margins of chosen over rejected, number of rows of each error type."""
    logs = {name: total / count for name, (total, count) in sums.items()}
    for part in ("rejected", *(f"rejected/{name}" for name in type_names)):
        if {"rewards/chosen", f"rewards/{part}"} <= logs.keys():
            margin = part.replace("rejected", "margins", 1)
            logs[f"rewards/{margin}"] = logs["rewards/chosen"] - logs[f"rewards/{part}"]
    for name in type_names:
        logs[f"count/{name}"] = sums.get(f"rewards/rejected/{name}", (0.0, 0.0))[1]
    return logs


class UnpairedCheck(TokenizedCheck):
    """The stage's own check of each record, for tokenised rows, which an earlier run may have made."""

    def row(self, row: dict[str, Any]) -> tuple[str, Sequence[Problem]]:
        known = records.Negatives(row["example_id"], (), "", dict.fromkeys(row["negative_types"], ""))
        problems = stages.find(self.stage).check_record(known, self.options)
        if problems and row["dropped"]:
            return overlong.EQUAL_AFTER_CUT, ()
        return "", problems


class UnpairedAdapter(Adapter):
    """Data and training of the stages on unpaired responses."""

    schema = UnpairedProcessor.schema

    def arrange(self, dataset: Any, *, truncated: bool, streaming: bool) -> Any:
        """Group rows of format feedback by prompt; rows of format negatives already are one record each."""
        run = current()
        if streaming:
            if any(entry.formatting == "feedback" for entry in run.datasets):
                raise ValueError(
                    "feedback rows cannot be grouped by prompt in a stream; turn streaming off, or convert the files "
                    "with `finepref convert --from feedback --to negatives`"
                )
            return dataset
        if "feedback" not in set(dataset["_formatting"]):
            return dataset
        whole = [row for row in dataset if row["_formatting"] != "feedback"]
        single = (row for row in dataset if row["_formatting"] == "feedback")
        found = (Sourced(*place_of(row["_place"]), row_cache.record_of(row), row["_rows"]) for row in single)
        return Dataset.from_list(whole + [row_cache.cached_row(each) for each in _joined(run, found, truncated)])

    def prepare(self, dataset: Any, *, streaming: bool) -> Any:
        """Give every record of a split a partner of another prompt for the KL term."""
        if streaming:
            return dataset
        keyed = list(zip(dataset["_prompt_key"], dataset["_record_id"], strict=True))
        rows = dataset.select_columns(["_record", "_formatting"])[:]
        texts = [_texts(row_cache.record_of(row)) for row in rows_of(rows)]
        return dataset.add_column("_partner", [rows["_record"][index] for index in partners(keyed, texts)])

    def processor(self, options: UnpairedOptions) -> Any:
        return partial(UnpairedProcessor, overlong=options.overlong)

    def check(self, options: UnpairedOptions) -> UnpairedCheck | None:
        return UnpairedCheck(self.stage.name, options) if self.stage.check_record else None

    def check_split(self, dataset: Any, options: UnpairedOptions) -> None:
        found = {name for names in dataset["types"] for name in names} - {"chosen"}
        if self.stage.check_data and (problems := self.stage.check_data(found, options)):
            raise BadData(problems)

    def build_trainer(self, parts: Any, **common: Any) -> UnpairedTrainer:
        options, training_args = parts.run.options, parts.args.training
        type_names = options.error_types or self._types_of_run(common, parts)
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
    def _types_of_run(datasets: dict[str, Any], parts: Any) -> tuple[str, ...]:
        """All error types in the data, sorted. For a stream they are read from its files."""
        found: set[str] = set()
        if parts.args.data.streaming:
            for _, _, record in parts.run.source_records():
                found |= set(record.negatives)
        else:
            evaluated = datasets.get("eval_dataset")
            splits = list(evaluated.values()) if isinstance(evaluated, dict) else [evaluated]
            for split in (datasets.get("train_dataset"), *splits):
                if split is not None:
                    found |= {name for names in split["types"] for name in names if name != "chosen"}
        if not found:
            raise ValueError("the error types of a streamed remote dataset are not known: name them")
        return tuple(sorted(found))

    def plot_keys(self, options: UnpairedOptions) -> list[str]:
        names = options.error_types or negatives.ERROR_TYPES
        return ["rewards/chosen", "rewards/rejected", "rewards/margins", *(f"rewards/margins/{n}" for n in names)]


def _texts(record: records.Negatives) -> set[str]:
    return {record.chosen, *record.negatives.values()}


def _joined(run: Run, found: Iterable[Sourced], truncated: bool) -> list[Sourced]:
    """Feedback rows joined by prompt. Prompts with a problem are counted.

    Args:
        run: the run that counts.
        found: the rows.
        truncated: whether rows were left out before, so that a prompt may have lost some of its rows.
    """
    joined = join_feedback(found)
    for prompt, problems in joined.wrong.items():
        first, *_ = group = joined.groups[prompt]
        name = records.content_id(prompt)
        if truncated and all(problem.code in INCOMPLETE_GROUP for problem in problems):
            run.rows.skip(name, first.place, INCOMPLETE, len(group))
        else:
            run.bad_rows.problems += problems
            run.bad_rows.add(rejected_record(name, problems), problems, rows=len(group))
    run.bad_rows.settle()
    return joined.records
