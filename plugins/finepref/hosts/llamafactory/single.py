"""Shape "single" on LLaMA-Factory: the host's supervised loss on the response tokens with weight 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from llamafactory.data import SFTDataCollatorWith4DAttentionMask
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.train.sft.metric import ComputeAccuracy, eval_logit_processor
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
from torch import Tensor

from finepref.formats import records
from finepref.formats.check import BadData, Problem
from finepref.formats.record_places import record_mark
from finepref.hosts import packed
from finepref.hosts.batching import RowTokens, padded
from finepref.hosts.llamafactory import forward, pairs
from finepref.hosts.llamafactory.adapter import Adapter, keeps_batches
from finepref.hosts.llamafactory.batches import Batched, list_lengths
from finepref.hosts.llamafactory.tokenized import TokenizedCheck
from finepref.hosts.llamafactory.verdicts import COLUMNS, total, verdict
from finepref.hosts.meter import Tally
from finepref.hosts.run import Run
from finepref.methods import overlong
from finepref.methods.options import Options
from finepref.methods.pair_rows import NO_RESPONSE, PairRow, ResponseRow, weigh_chosen


@dataclass
class SingleProcessor(pairs.PairProcessor):
    """One row per record: the tokens of prompt and chosen response, and which of them are selected (weight 1).

    Attributes:
        weigh: tokenised row -> weight 0 or 1 per token of prompt and response; raises BadData for an unfit row.
        asked: how the user chose the stage, for messages.
    """

    schema: str = "granular-3"
    sides: ClassVar[tuple[str, ...]] = ("chosen",)
    weigh: Callable[[PairRow], list[float]] | None = None
    asked: str = ""

    def __post_init__(self) -> None:
        if self.data_args.train_on_prompt:
            raise ValueError(f"`train_on_prompt` contradicts {self.asked}, which trains on spans of the response")

    def row(
        self, record: records.Pair | records.SpanPair | records.ScoredPair, place: str, count: int
    ) -> dict[str, Any]:
        row = packed.whole_pair(super().row(record, place, count))
        chosen = ResponseRow(*(row[f"chosen_{name}"] for name in ResponseRow._fields))
        try:
            weight = self.weigh(PairRow(record.id, chosen, NO_RESPONSE, row["mapped"]))
        except BadData as error:
            weight = chosen.weight
            row["_problem"] = row["_problem"] or verdict("", place, count, problems=error.problems)["_problem"]
        return {
            "input_ids": packed.ids(row["chosen_input_ids"]),
            "selected": np.array(
                [w != 0 and label >= 0 for label, w in zip(chosen.labels, weight, strict=True)], dtype=bool
            ),
            "annotated": chosen.annotated,
            **{name: row[name] for name in ("example_id", "place", "rows", "cut", *COLUMNS)},
        }

    def print_data_example(self, example: dict[str, Any]) -> None:
        """Print the first row, as the host does for its own data."""
        print(f"inputs:\n{self.tokenizer.decode(example['input_ids'], skip_special_tokens=False)}")
        labels = [label for label in of_host(example)["labels"] if label != IGNORE_INDEX]
        print(f"labels:\n{self.tokenizer.decode(labels, skip_special_tokens=False)}")


def of_host(row: dict[str, Any]) -> dict[str, list[int]]:
    """The model's inputs of a tokenised row, as the host's collator reads them."""
    ids = packed.plain(row["input_ids"])
    labels = [label if chosen else IGNORE_INDEX for label, chosen in zip(ids, row["selected"], strict=True)]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


@dataclass
class SingleCollator(SFTDataCollatorWith4DAttentionMask):
    """The host's collator, which gets only the model's inputs: it would make tensors of our other columns too.

    Attributes:
        counts: as in `pairs.PairCollator`: whether to add `needed`, the number of tokens to train on.
    """

    counts: bool = True

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().__call__([of_host(row) for row in features])
        return {**batch, **({"needed": marked(batch["labels"])} if self.counts else {})}


def marked(labels: Tensor) -> int:
    """The number of tokens to train on."""
    return int((labels[:, 1:] != IGNORE_INDEX).sum())


class SingleTrainer(Batched, CustomSeq2SeqTrainer):
    """The host's SFT trainer, whose loss needs no logits; also counts loss calls and trained tokens for the receipt.

    Its loss is the host's: a mean over the tokens of the optimizer step, whatever rows its micro-batches have. The
    host's other losses (DFT, EAFT, ASFT, label smoothing) and its accuracy read logits.
    """

    def __init__(self, *, run: Run, **kwargs: Any) -> None:
        self.run = run
        self.tokens = Tally()
        super().__init__(**kwargs)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The host's loss of one micro-batch, counted."""
        count = inputs.pop("needed", None)
        if not model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        needed = inputs["labels"][:, 1:] != IGNORE_INDEX
        self.run.count(len(needed))
        self.tokens.add(selected=needed.sum())
        if self.run.options.full_logits or self.compute_loss_func or self.label_smoother:
            return super().compute_loss(model, inputs, *args, **kwargs)
        with forward.mean_nll(self, model, forward.Rows(inputs, inputs["labels"], needed, count)):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The host's, which hands all inputs to the model."""
        inputs.pop("needed", None)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def rank_report(self) -> dict[str, Any]:
        """This rank's part of the receipt: number of tokens trained on, over all epochs."""
        return {"tokens": {"selected": 0} | self.tokens.read()}

    def run_report(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """The run's part of the receipt."""
        return {"tokens": {"selected": sum(rank["tokens"]["selected"] for rank in ranks)}}


class SingleCheck(TokenizedCheck):
    """Finds rows without a token to train on."""

    def row(self, row: dict[str, Any]) -> tuple[str, Sequence[Problem]]:
        if any(row["selected"]):
            return "", ()
        text = "no span has a token with the weight 1"
        found = Problem(record_mark(row["example_id"]), 0, "chosen_spans", "FP214", text)
        return self.of_cut(row, [found], "FP214", overlong.NOTHING_SELECTED)


class SingleAdapter(Adapter):
    """Data and training of the stages on single responses."""

    schema = SingleProcessor.schema

    def processor(self, options: Options) -> Any:
        weigh = partial(self.stage.weigh or weigh_chosen, options=options, seed=0)
        asked = f"`{self.stage.switch}`" if self.stage.switch else f"stage {self.stage.name}"
        return partial(SingleProcessor, overlong=options.overlong, weigh=weigh, asked=asked)

    def check(self, options: Options) -> SingleCheck:
        return SingleCheck(self.stage.name, options)

    def row_tokens(self, dataset: Any) -> RowTokens:
        """Each row is a sequence."""
        lengths = list_lengths(dataset, "input_ids")
        return RowTokens(padded(lengths)[:, None], lengths)

    def check_split(self, dataset: Any, options: Options) -> None:
        if self.stage.check_data and (problems := self.stage.check_data(total(dataset, "annotated"), options)):
            raise BadData(problems)

    def build_trainer(self, parts: Any, **common: Any) -> SingleTrainer:
        collator = SingleCollator(
            template=parts.template,
            model=parts.model,
            pad_to_multiple_of=8,
            label_pad_token_id=IGNORE_INDEX,
            counts=keeps_batches(parts.args),
            attn_implementation=getattr(parts.model.config, "_attn_implementation", None),
            **parts.tokenizer_module,
        )
        if parts.args.finetuning.compute_accuracy:
            common["compute_metrics"] = ComputeAccuracy()
            common["preprocess_logits_for_metrics"] = eval_logit_processor
        return SingleTrainer(
            ref_model=parts.ref_model,
            data_collator=collator,
            **common,
            **parts.trainer_arguments(),
        )

    def plot_keys(self, options: Options) -> list[str]:
        return ["eval_accuracy"]

    def needs_reference(self, options: Options, finetuning_args: Any) -> bool:
        """Only the host's own ASFT loss reads a reference model."""
        return finetuning_args.use_asft_loss
