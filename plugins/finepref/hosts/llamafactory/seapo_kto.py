"""Stage `seapo_kto` (SeaPO, arXiv 2509.24781): each prompt's answer and ONE of its injected errors per epoch, KTO.

All negatives of a prompt are tokenised once. The collator draws one by a hash of (seed, epoch, record id), so the draw
does not depend on row order, data-loader workers, ranks, resume, or the dataset cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from llamafactory.data import KTODataCollatorWithPadding
from llamafactory.data.processor.processor_utils import DatasetProcessor, infer_seqlen
from llamafactory.extras import logging
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.train.kto.trainer import CustomKTOTrainer
from transformers import Trainer, TrainerCallback

from finepref.formats import jsonl, negatives, records
from finepref.formats.check import BadData, Problem
from finepref.hosts.llamafactory import data
from finepref.hosts.llamafactory.adapter import Adapter
from finepref.hosts.located import record_mark
from finepref.hosts.options import SeapoOptions
from finepref.hosts.seapo import EVALUATION_EPOCH, draw_digest, draw_index, partners, prompt_key
from finepref.losses import kto

INCOMPLETE_GROUP = ("FP062", "FP063")  # what max_samples does to a prompt whose rows it separates

logger = logging.get_logger(__name__)


@dataclass
class SeapoProcessor(DatasetProcessor):
    """Two rows per record: its chosen response, and all its negatives as alternatives."""

    schema: str = "seapo-1"

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenise a batch of aligned rows. See `_rows` for the columns."""
        data.raise_problems(examples["_problem"])
        parsed = [
            data.record_of({"_record": text, "_formatting": formatting})
            for text, formatting in zip(examples["_record"], examples["_formatting"], strict=True)
        ]
        if "_partner" in examples:
            others = [data.record_of({"_record": text, "_formatting": "negatives"}) for text in examples["_partner"]]
        else:  # streaming: partners come from the same batch
            others = [parsed[i] for i in partners([(prompt_key(record), record.id) for record in parsed])]
        source_rows = examples.get("_rows", [1] * len(parsed))
        rows = [
            row
            for record, other, count in zip(parsed, others, source_rows, strict=True)
            for row in self._rows(record, other, count)
        ]
        if self.data_args.streaming:  # nobody sees the whole column later
            data.raise_problems(row["problem"] for row in rows)
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _rows(self, record: records.Negatives, other: records.Negatives, count: int) -> list[dict[str, Any]]:
        rows = []
        for desirable in (True, False):
            mine = {"chosen": record.chosen} if desirable else record.negatives
            theirs = {"chosen": other.chosen} if desirable else other.negatives
            encoded = [self._encode(record, mine[name]) for name in sorted(mine)]
            mismatched = [self._encode(record, theirs[name]) for name in sorted(theirs)]
            prompt_length = encoded[0][2]
            problem = ""
            if desirable and prompt_length >= self.data_args.cutoff_len:
                text = f"the prompt has {prompt_length} tokens, cutoff_len is {self.data_args.cutoff_len}"
                problem = data.note_problems([Problem(record_mark(record.id), 0, "prompt", "FP203", text)])
            rows.append(
                {
                    "example_id": record.id,
                    "prompt_key": prompt_key(record),
                    "kto_tags": desirable,
                    "types": sorted(mine),
                    "alternatives": [ids for ids, _, _ in encoded],
                    "alternative_labels": [labels for _, labels, _ in encoded],
                    "kl_types": sorted(theirs),
                    "kl_alternatives": [ids for ids, _, _ in mismatched],
                    "kl_alternative_labels": [labels for _, labels, _ in mismatched],
                    "rows": count if desirable else 0,
                    "problem": problem,
                }
            )
        return rows

    def _encode(self, record: records.Negatives, response: str) -> tuple[list[int], list[int], int]:
        """(input ids, labels, untruncated prompt length), cut to cutoff_len as the host cuts."""
        prompt_ids, response_ids = data.encode(self, record.prompt, response)
        source, target = infer_seqlen(len(prompt_ids), len(response_ids), self.data_args.cutoff_len)
        ids = prompt_ids[:source] + response_ids[:target]
        return ids, [IGNORE_INDEX] * source + response_ids[:target], len(prompt_ids)

    def print_data_example(self, example: dict[str, Any]) -> None:
        """What the host prints for the first row."""
        for name, ids in zip(example["types"], example["alternatives"], strict=True):
            print(f"{name}:\n{self.tokenizer.decode(ids, skip_special_tokens=False)}")


@dataclass
class SeapoCollator(KTODataCollatorWithPadding):
    """Draws each row's alternative, then pads as the host does.

    Attributes:
        epoch: one int64 in shared memory, so that persistent data-loader workers see it change.
        types: error types to draw from, None for all.
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
    """Tells the collator which epoch it is drawing for."""

    def __init__(self, epoch: torch.Tensor) -> None:
        self.epoch = epoch

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.epoch.fill_(int(state.epoch or 0))


class SeapoTrainer(CustomKTOTrainer):
    """The host's KTO trainer with our loss, and metrics per error type summed over all ranks."""

    def __init__(self, *, type_names: tuple[str, ...], evaluation_collator: SeapoCollator, record: Any, **kwargs: Any):
        self.type_names, self.evaluation_collator, self.record = type_names, evaluation_collator, record
        self.drawn_sum, self.drawn = 0, Counter()
        self.sums: dict[str, dict[str, float]] = {}
        super().__init__(**kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Evaluation draws with its own, fixed epoch."""
        training, self.data_collator = self.data_collator, self.evaluation_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training

    def get_batch_loss_metrics(self, model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict]:
        """KTO on one micro-batch, by `finepref.losses.kto`. Metrics go to `self.sums`, on every rank."""
        kinds, draws = batch["negative_type"], batch["draw"]
        desirable = batch["kto_tags"]
        chosen, rejected, _, _, kl_logps, chosen_average = self.concatenated_forward(model, batch)
        reference_chosen, reference_rejected, reference_kl = self.compute_reference_log_probs(model, batch)

        log_ratio = torch.cat((chosen - reference_chosen, rejected - reference_rejected))
        is_desirable = torch.cat((desirable[desirable], desirable[~desirable]))
        reference_point = kto.kto_reference_point(kl_logps, reference_kl)
        out = kto.kto_loss(
            log_ratio,
            is_desirable,
            reference_point,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        loss = out.loss.mean()
        if self.ftx_gamma > 1e-6 and len(chosen) > 0:  # NLL of the desirable rows, over all rows, as the host has it
            loss = loss - self.ftx_gamma * chosen_average.sum() / len(chosen) ** 2 * len(desirable)

        if model.training:
            self.record.loss_calls += 1
            self.drawn_sum = (self.drawn_sum + sum(draws.tolist())) % (1 << 62)
            self.drawn.update(self.type_names[kind] for kind in kinds.tolist() if kind >= 0)
        rewards = self.beta * log_ratio.detach()
        self._add("train" if model.training else "eval", rewards, is_desirable, kinds[~desirable], chosen, rejected)
        self._sums("train" if model.training else "eval")["kl"] += reference_point.item()
        self._sums("train" if model.training else "eval")["batches"] += 1
        return loss, {}

    def _sums(self, split: str) -> dict[str, float]:
        """Sums since the last log, with the same keys in the same order on every rank."""
        names = ["kl", "batches"]
        for part in ("chosen", "rejected", *self.type_names):
            names += [f"rewards/{part}", f"logps/{part}", f"count/{part}"]
        return self.sums.setdefault(split, dict.fromkeys(names, 0.0))

    def _add(self, split, rewards, is_desirable, kinds, chosen_logps, rejected_logps) -> None:
        sums = self._sums(split)
        parts = [("chosen", rewards[is_desirable], chosen_logps), ("rejected", rewards[~is_desirable], rejected_logps)]
        for index, name in enumerate(self.type_names):
            parts.append((name, rewards[~is_desirable][kinds == index], rejected_logps[kinds == index]))
        for name, part, logps in parts:
            sums[f"rewards/{name}"] += part.sum().item()
            sums[f"logps/{name}"] += logps.detach().sum().item()
            sums[f"count/{name}"] += len(part)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what `_sums` holds, as means over all ranks, to a training or evaluation log entry."""
        split = "train" if "loss" in logs else "eval"
        prefix = "eval_" if split == "eval" else ""
        sums = self._sums(split)
        total = torch.tensor(list(sums.values()), dtype=torch.float64, device=self.accelerator.device)
        sums = dict(zip(sums, self.accelerator.reduce(total, "sum").tolist(), strict=True))
        del self.sums[split]
        if sums["batches"] > 0:
            logs.update({f"{prefix}{key}": value for key, value in means(sums, self.type_names).items()})
        Trainer.log(self, logs, *args, **kwargs)

    def rank_report(self) -> dict[str, Any]:
        """This rank's part of the receipt."""
        return {"drawn": dict(sorted(self.drawn.items())), "drawn_sum": self.drawn_sum}

    def run_report(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """The run's part of the receipt; an equal `digest` means equal draws of equal records in equal epochs."""
        drawn: Counter[str] = Counter()
        for rank in ranks:
            drawn.update(rank["drawn"])
        digest = sum(rank["drawn_sum"] for rank in ranks) % (1 << 62)
        return {"draws": {"counts": dict(sorted(drawn.items())), "digest": f"{digest:016x}"}}


def means(sums: dict[str, float], type_names: Sequence[str]) -> dict[str, float]:
    """Log entries from sums: rewards and log-probs per side and error type, margins, counts, the reference point."""
    logs = {"kl": sums["kl"] / sums["batches"]}
    for name, label in [("chosen", "chosen"), ("rejected", "rejected"), *((t, f"rejected/{t}") for t in type_names)]:
        if sums[f"count/{name}"]:
            for metric in ("rewards", "logps"):
                logs[f"{metric}/{label}"] = sums[f"{metric}/{name}"] / sums[f"count/{name}"]
    if "rewards/chosen" in logs:
        for name, label in [("rejected", "rewards/margins"), *((t, f"rewards/margins/{t}") for t in type_names)]:
            below = "rewards/rejected" if name == "rejected" else f"rewards/rejected/{name}"
            if below in logs:
                logs[label] = logs["rewards/chosen"] - logs[below]
    for name in type_names:
        logs[f"count/{name}"] = sums[f"count/{name}"]
    return logs


class SeapoKTO(Adapter):
    """The stage's row names this class."""

    schema = SeapoProcessor.schema

    def arrange(self, dataset: Any, *, truncated: bool, streaming: bool) -> Any:
        """Group feedback rows by prompt; negatives rows are one record each already."""
        if streaming:
            if any(entry.formatting == "feedback" for entry in data.CURRENT.datasets):
                raise ValueError(
                    "feedback rows cannot be grouped by prompt in a stream; turn streaming off, or convert the files "
                    "with `finepref convert --from feedback --to negatives`"
                )
            return dataset
        if "feedback" not in set(dataset["_formatting"]):
            return dataset
        given = [
            (record_mark(record.id), 0, record)
            for record in (data.record_of(row) for row in dataset)
            if isinstance(record, records.Feedback)
        ]
        grouped, problems = negatives.group_feedback(given)
        if problems and truncated:
            problems = [problem for problem in problems if problem.code not in INCOMPLETE_GROUP]
        if problems:
            raise BadData(data.pinpoint(problems))
        size = Counter(record.prompt for _, _, record in given)
        rows = [row for row in dataset if row["_formatting"] == "negatives"]
        columns = [(row["_record"], 1) for row in rows]
        columns += [(jsonl.dumps(records.to_row(r)), size[r.prompt]) for r in grouped]
        cut = len(given) - sum(size[r.prompt] for r in grouped)
        data.CURRENT.extra["cut_groups"] = data.CURRENT.extra.get("cut_groups", 0) + cut
        return Dataset.from_dict(
            {
                "_record": [text for text, _ in columns],
                "_formatting": ["negatives"] * len(columns),
                "_problem": [""] * len(columns),
                "_rows": [count for _, count in columns],
            }
        )

    def prepare(self, dataset: Any, *, streaming: bool) -> Any:
        """Give every record of a split a partner of another prompt for the KL term."""
        if streaming:
            return dataset
        texts = dataset["_record"]
        keyed = []
        for row in dataset:
            record = data.record_of(row)
            keyed.append((prompt_key(record), record.id))
        return dataset.add_column("_partner", [texts[index] for index in partners(keyed)])

    def processor(self) -> type:
        return SeapoProcessor

    def check_tokenized(self, dataset: Any, arguments: Any) -> None:
        """Every record needs a negative of the asked types."""
        wanted = SeapoOptions.error_types(arguments)
        if wanted is None:
            return
        problems = []
        unknown = set(wanted) - {name for names in dataset["types"] for name in names}
        if unknown:
            text = f"no record has an error of type {', '.join(sorted(unknown))}"
            problems.append(Problem("seapo_error_types", 0, "seapo_error_types", "FP204", text))
        for record_id, names, desirable in zip(
            dataset["example_id"], dataset["types"], dataset["kto_tags"], strict=True
        ):
            if not desirable and not set(names) & set(wanted):
                text = f"has {', '.join(names)}, but seapo_error_types is {', '.join(wanted)}"
                problems.append(Problem(record_mark(record_id), 0, "negatives", "FP204", text))
        if problems:
            raise BadData(data.pinpoint(problems))

    def build_trainer(self, parts: Any, **common: Any) -> SeapoTrainer:
        arguments, training_args = parts.finetuning_args, parts.training_args
        streamed = parts.data_args.streaming
        named = SeapoOptions.error_types(arguments)
        type_names = named or self._types_of_run(common, streamed)
        ignore = (
            IGNORE_INDEX
            if parts.data_args.ignore_pad_token_for_loss
            else parts.tokenizer_module["tokenizer"].pad_token_id
        )
        shared = dict(
            template=parts.template,
            model=parts.model,
            pad_to_multiple_of=8,
            label_pad_token_id=ignore,
            seed=training_args.seed,
            types=named,
            type_names=type_names,
            **parts.tokenizer_module,
        )
        epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        resampling = arguments.seapo_resample == "epoch"
        trainer = SeapoTrainer(
            type_names=type_names,
            evaluation_collator=SeapoCollator(**shared),
            ref_model=parts.ref_model,
            data_collator=SeapoCollator(**shared, epoch=epoch if resampling else None),
            **common,
            **parts.trainer_arguments(),
        )
        trainer.add_callback(EpochCallback(epoch))
        trainer.desirable_weight = self._chosen_weight(arguments)
        return trainer

    @staticmethod
    def _types_of_run(datasets: dict[str, Any], streamed: bool) -> tuple[str, ...]:
        """All error types in the data, sorted; a stream's come from its files."""
        found: set[str] = set()
        if streamed:
            for _, _, record in data.source_records():
                found |= set(record.negatives)
        else:
            evaluated = datasets.get("eval_dataset")
            parts = list(evaluated.values()) if isinstance(evaluated, dict) else [evaluated]
            for part in (datasets.get("train_dataset"), *parts):
                if part is not None:
                    found |= {name for names in part["types"] for name in names if name != "chosen"}
        if not found:
            raise ValueError("set `seapo_error_types`: the error types of a streamed remote dataset are not known")
        return tuple(sorted(found))

    @staticmethod
    def _chosen_weight(arguments: Any) -> float:
        """kto_chosen_weight, by the rule of the KTO paper when asked; both kinds of rows are equally many."""
        given = arguments.kto_chosen_weight
        ruled, _ = kto.automatic_weights(
            1, 1, desirable_weight=given, undesirable_weight=arguments.kto_rejected_weight
        )
        if ruled != given and not arguments.seapo_auto_weights:
            logger.warning_rank0(
                f"kto_chosen_weight / kto_rejected_weight is outside [1, 4/3]; the KTO paper advises {ruled:.4g} "
                "for the first (seapo_auto_weights: true sets it)"
            )
        return ruled if arguments.seapo_auto_weights else given

    def plot_keys(self, arguments: Any) -> list[str]:
        names = SeapoOptions.error_types(arguments) or negatives.ERROR_TYPES
        return ["rewards/chosen", "rewards/rejected", "rewards/margins", *(f"rewards/margins/{n}" for n in names)]

    def settings(self, arguments: Any) -> dict[str, Any]:
        """The options that define the run."""
        keys = ("seapo_error_types", "seapo_resample", "pref_beta", "pref_ftx", "finetuning_type")
        weights = {key: getattr(arguments, key) for key in ("kto_chosen_weight", "kto_rejected_weight")}
        return {key: getattr(arguments, key) for key in keys} | weights
