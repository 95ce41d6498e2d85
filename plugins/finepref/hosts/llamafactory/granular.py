"""Stage `sft` with `granular: true`: supervised fine-tuning on the spans of the better response, nothing else.

The span masks are those of the granular fork of TDPO, so one file feeds this warm-up and `stage: tdpo` after it. The
loss is the host's own, over the labels that are left; a response without spans counts as a whole.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from llamafactory.data import SFTDataCollatorWith4DAttentionMask
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.train.sft.metric import ComputeAccuracy, eval_logit_processor
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

from finepref.formats import records
from finepref.formats.check import BadData, Problem
from finepref.hosts.llamafactory import data, pairs
from finepref.hosts.llamafactory.adapter import Adapter
from finepref.hosts.pair_tokens import problem_of, problem_of_record

MODEL_INPUTS = ("input_ids", "attention_mask", "labels")


@dataclass
class GranularProcessor(pairs.PairProcessor):
    """One row per record: prompt and chosen response, with labels on the tokens that its spans overlap."""

    schema: str = "granular-1"
    sides: ClassVar[tuple[str, ...]] = ("chosen",)

    def __post_init__(self) -> None:
        if self.data_args.train_on_prompt:
            raise ValueError("`train_on_prompt` contradicts `granular`, which trains on spans of the response")

    def _row(self, record: records.Pair | records.SpanPair | records.ScoredPair) -> dict[str, Any]:
        row = super()._row(record)
        weight = row["chosen_weight"]
        if set(weight) - {0.0, 1.0} and not row["problem"]:
            text = "granular SFT takes a token or leaves it: leave the weights out"
            row["problem"] = data.note_problems([problem_of_record(record, "chosen_spans", "FP216", text)])
        kept = [label if weight else IGNORE_INDEX for label, weight in zip(row["chosen_labels"], weight, strict=True)]
        return {
            "input_ids": row["chosen_input_ids"],
            "attention_mask": row["chosen_attention_mask"],
            "labels": kept,
            "example_id": record.id,
            "rows": 1,
            "problem": row["problem"],
        }

    def print_data_example(self, example: dict[str, Any]) -> None:
        """What the host prints for the first row."""
        print(f"inputs:\n{self.tokenizer.decode(example['input_ids'], skip_special_tokens=False)}")
        labels = [label for label in example["labels"] if label != IGNORE_INDEX]
        print(f"labels:\n{self.tokenizer.decode(labels, skip_special_tokens=False)}")


class GranularCollator(SFTDataCollatorWith4DAttentionMask):
    """The host's, which would make tensors of our own columns too."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        return super().__call__([{name: row[name] for name in MODEL_INPUTS} for row in features])


class GranularTrainer(CustomSeq2SeqTrainer):
    """The host's SFT trainer, with the books that the receipt asks for."""

    def __init__(self, *, record: Any, **kwargs: Any) -> None:
        self.record = record
        self.selected = 0
        super().__init__(**kwargs)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """One micro-batch: the host's loss."""
        if model.training:
            self.record.loss_calls += 1
            self.selected += int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum())
        return super().compute_loss(model, inputs, *args, **kwargs)

    def rank_report(self) -> dict[str, Any]:
        """This rank's part of the receipt: tokens trained on, repeated ones counted again."""
        return {"tokens": {"selected": self.selected}}

    def run_report(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """The run's part of the receipt."""
        return {"tokens": {"selected": sum(rank["tokens"]["selected"] for rank in ranks)}}


class GranularSFT(Adapter):
    """The stage's row names this class."""

    schema = GranularProcessor.schema

    def arrange(self, dataset: Any, *, truncated: bool, streaming: bool) -> Any:
        if not streaming and not any(json.loads(text).get("chosen_spans") for text in dataset["_record"]):
            text = "no record has any, so nothing would be masked; run stage sft without granular on such data"
            raise BadData([Problem("the training data", 0, "chosen_spans", "FP210", text)])
        return dataset

    def processor(self) -> type:
        return GranularProcessor

    def check_tokenized(self, dataset: Any, arguments: Any) -> None:
        problems = [
            problem_of(row, "chosen_spans", "FP214", "cutoff_len cuts off every span")
            for row in dataset.select_columns(["example_id", "labels"])
            if all(label == IGNORE_INDEX for label in row["labels"])
        ]
        if problems:
            raise BadData(data.pinpoint(problems))

    def build_trainer(self, parts: Any, **common: Any) -> GranularTrainer:
        collator = GranularCollator(
            template=parts.template,
            model=parts.model,
            pad_to_multiple_of=8,
            label_pad_token_id=IGNORE_INDEX,
            attn_implementation=getattr(parts.model.config, "_attn_implementation", None),
            **parts.tokenizer_module,
        )
        if parts.finetuning_args.compute_accuracy:
            common["compute_metrics"] = ComputeAccuracy()
            common["preprocess_logits_for_metrics"] = eval_logit_processor
        return GranularTrainer(
            ref_model=parts.ref_model,
            data_collator=collator,
            **common,
            **parts.trainer_arguments(),
        )

    def plot_keys(self, arguments: Any) -> list[str]:
        return ["eval_accuracy"] if arguments.compute_accuracy else []

    def needs_reference(self, arguments: Any) -> bool:
        return arguments.use_asft_loss

    def settings(self, arguments: Any) -> dict[str, Any]:
        return {"granular": True, "finetuning_type": arguments.finetuning_type}
