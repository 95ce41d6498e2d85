"""Shape "pair" on LLaMA-Factory: rows and batches with token weights, the forward pass, and metrics.

Tokenised rows have the weight and score that the data gives to each token. The collator applies the stage's options,
so that one tokenised data set serves every ratio, selection and mask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from llamafactory.data import PairwiseDataCollatorWithPadding
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.train.dpo.trainer import CustomDPOTrainer
from torch import Tensor
from transformers import Trainer

from finepref import stages
from finepref.formats import records
from finepref.formats.check import BadData, Problem
from finepref.hosts import packed, trees
from finepref.hosts.batching import RowTokens, padded
from finepref.hosts.exact import bits, floats
from finepref.hosts.llamafactory import cached_reference, forward
from finepref.hosts.llamafactory.adapter import Adapter, keeps_batches, sharing_of
from finepref.hosts.llamafactory.batches import Batched, list_lengths
from finepref.hosts.llamafactory.record_processor import RowPerRecordProcessor
from finepref.hosts.llamafactory.tokenized import TokenizedCheck, encoded, located
from finepref.hosts.llamafactory.verdicts import verdict
from finepref.hosts.meter import Meter, Tally
from finepref.hosts.run import Run, pinpoint
from finepref.hosts.sharing import Sharing
from finepref.hosts.token_values import TokenValues
from finepref.methods import overlong
from finepref.methods.batches import Pairs, Response, Weights
from finepref.methods.options import Options
from finepref.methods.pair_rows import (
    SIDES,
    PairRow,
    facts,
    selects,
    weigh_all,
    weights_and_scores,
)


@dataclass
class PairProcessor(RowPerRecordProcessor):
    """One row per record, with the columns of `packed.pair` and `pair_rows.facts`.

    All lists of a response are cut to the same length, and both responses keep the same tokens of the prompt.
    """

    schema: str = "pairs-5"
    sides: ClassVar[tuple[str, ...]] = SIDES

    def row(
        self, record: records.Pair | records.SpanPair | records.ScoredPair, place: str, count: int
    ) -> dict[str, Any]:
        texts = {side: record.chosen if side == "chosen" else record.rejected for side in self.sides}
        refused: list[Problem] = []
        prompt_ids, responses = encoded(self, record, texts, refused)
        kept, problems = self.fit(record, prompt_ids, responses)
        skipped = kept.skipped
        if len(responses) > 1 and not (skipped or problems):
            skipped = overlong.equal([*responses.values()], kept.response)
        prompt = prompt_ids[kept.start : kept.stop]
        about = facts(record, self.tokenizer, prompt_ids, self.data_args.template)
        row: dict[str, Any] = {**about, "rows": count, "place": place, "cut": kept.cut}
        sides = {}
        for side, whole in responses.items():
            start, offsets = (0, [])
            if selects(record, side) and not refused:
                start, offsets = located(self, texts[side], whole)
            weight, score = weights_and_scores(
                record, side, len(whole), start, offsets, tokenizer=self.tokenizer, problems=problems
            )
            sides[side] = tuple(values[: kept.response] for values in (whole, weight, score))
        row |= packed.pair(prompt, sides)
        return row | verdict(record.id, place, count, cut=kept.cut, skipped=skipped, problems=refused or problems)

    def print_data_example(self, example: dict[str, Any]) -> None:
        """Print the first row, as the host does for its own data."""
        row = packed.whole_pair(example)
        for side in SIDES:
            ids = row[f"{side}_input_ids"]
            marked = [i for i, w in zip(ids, row[f"{side}_weight"], strict=True) if w != 0]
            print(f"{side}:\n{self.tokenizer.decode(ids, skip_special_tokens=False)}")
            print(f"{side}_tokens:\n{self.tokenizer.decode(marked, skip_special_tokens=False)}")


@dataclass
class PairCollator(PairwiseDataCollatorWithPadding):
    """Pads as the host does, and adds the token weights, which the host's collator would silently drop.

    Attributes:
        weigh: tokenised pair -> its weights, by the stage's options.
        reference: the kept log-probabilities of the rows, empty if there are none.
        counts: whether to add `needed` and `rejected_from`; not where the host joins and splits batches, which must
            be tensors for that.
        shares: whether to add `trees` where responses have enough in common, see `trees.make`.
    """

    weigh: Callable[[PairRow], Weights] | None = None
    reference: cached_reference.Rows = field(default_factory=cached_reference.Rows)
    counts: bool = True
    shares: bool = False

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch: the host's keys, `weight` [2B, T] in label space, the chosen half first, `side` and `margin` [B].

        `weight` and `margin` are int32, see `finepref.hosts.exact`. `needed` is the number of tokens with a weight,
        `rejected_from` that of the chosen responses. They are ints: a tensor would be moved to the accelerator, and
        reading it there would make the CPU wait.
        """
        features = [packed.whole_pair(row) for row in features]
        batch = super().__call__([self._of_host(row) for row in features])
        try:
            chosen, rejected, sides, margins = zip(*(self.weigh(PairRow.of(row)) for row in features), strict=True)
        except BadData as error:  # only in a stream; a data-loader worker can pass on only a text
            raise ValueError(str(BadData(pinpoint(error.problems)))) from None
        length = batch["labels"].shape[1]
        padded = []
        for weight in (*chosen, *rejected):
            gap = [0.0] * (length - len(weight))
            padded.append(gap + weight if self.tokenizer.padding_side == "left" else weight + gap)
        weight = torch.tensor(padded)[:, 1:]
        batch["weight"] = bits(weight)
        batch["side"] = torch.tensor(sides)
        batch["margin"] = bits(torch.tensor(margins))
        if self.reference:
            batch["reference"] = self._reference(features, length)
        if self.counts:
            batch["needed"] = int((weight != 0).sum())
            batch["rejected_from"] = int((weight[: len(features)] != 0).sum())
        if self.shares:
            count = len(features)
            rows = trees.rows_of(batch["input_ids"], batch["attention_mask"], weight != 0)
            found = trees.make(rows, [[i, count + i] for i in range(count)], length, chosen=count)
            batch |= {"trees": found} if found else {}
        return batch

    def _reference(self, features: list[dict[str, Any]], width: int) -> Tensor:
        """The kept log-probabilities of a batch, see `cached_reference.placed`."""
        kept = [self.reference[row[cached_reference.ROW]] for row in features]
        values = [row[half] for half in range(len(SIDES)) for row in kept]
        lengths = [len(row[f"{side}_input_ids"]) for side in SIDES for row in features]
        return cached_reference.placed(values, lengths, width, self.tokenizer.padding_side)

    @staticmethod
    def _of_host(row: dict[str, Any]) -> dict[str, Any]:
        """A row with all columns that the host's collator reads."""
        masks = {f"{side}_attention_mask": [1] * len(row[f"{side}_input_ids"]) for side in SIDES}
        return {**row, **masks, "images": None, "videos": None, "audios": None}


OURS = ("labels", "weight", "side", "margin", "needed", "rejected_from", "trees", "reference")
"""What the collator adds to the inputs of a model."""
REWARDS = tuple(f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins"))


class PairTrainer(Batched, CustomDPOTrainer):
    """The host's DPO trainer with our loss, logits only where it reads them, and metrics over all ranks.

    Attributes:
        frozen: the weights of the reference, if it is the policy with other weights (`reference.Frozen`).
        sharing: whether a pair is read as one tree; None: it is not.
        counted: the receipt's entry of what is trained on.
    """

    frozen: Any = None
    row_key = "side"
    counted = "tokens"
    sharing: Sharing | None = None

    def __init__(self, *, run: Run, sharing: Sharing | None = None, **kwargs: Any) -> None:
        self.run, self.sharing = run, sharing
        self.kl_use = run.stage.kl_use(run.options)
        self.tokens = Tally()
        self.meter = Meter((*REWARDS, *run.stage.metrics))
        super().__init__(**kwargs)

    def get_batch_loss_metrics(
        self, model: Any, batch: dict[str, Tensor], train_eval: str = "train"
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a micro-batch. Its metrics are added to the meter.

        Raises:
            ValueError: the batch has no token weights.
        """
        if "weight" not in batch:
            raise ValueError("the batch has no token weights: it was not made by finepref's PairCollator")
        batch = {**batch, **{name: floats(batch[name]) for name in ("weight", "margin")}}
        loss = self.mean_loss(self.pairs(model, batch), train_eval)
        if train_eval == "train":
            self.run.count(len(batch["side"]))
            for side, weight, labels in zip(SIDES, batch["weight"].chunk(2), batch["labels"].chunk(2), strict=True):
                selected, responses = (weight != 0).sum(), (labels[:, 1:] != IGNORE_INDEX).sum()
                self.tokens.add(**{f"{side}_selected": selected, f"{side}_responses": responses})
        return loss, {}

    def mean_loss(self, inputs: Any, train_eval: str) -> Tensor:
        """The loss of a micro-batch; rewards and the stage's metrics are added to the meter.

        Args:
            inputs: of the stage's `losses`.
            train_eval: "train" or "eval".
        """
        out, metrics = self.run.stage.losses(inputs, self.run.options)
        chosen, rejected = out.chosen_reward, out.rejected_reward
        rewards = (chosen, rejected, (chosen > rejected).float(), chosen - rejected)
        self.meter.add_values(train_eval, dict(zip(REWARDS, rewards, strict=True)) | metrics, out.valid)
        return self.row_mean(out, training=train_eval == "train")

    def pairs(self, model: Any, batch: dict[str, Any]) -> Pairs:
        """The input of the stage's loss: log-probabilities of policy and reference, and their KL if it is read.

        Args:
            model: the policy.
            batch: a batch of the collator, with weights that are floats again.
        """
        values = self.values(model, batch)
        parts = (values.logps, batch["weight"], values.reference, values.kl)
        halves = zip(*((None, None) if part is None else part.chunk(2) for part in parts), strict=True)
        return Pairs(*(Response(*half) for half in halves), batch["side"], batch["margin"])

    def values(self, model: Any, batch: dict[str, Any]) -> TokenValues:
        """Values at the tokens that have a weight."""
        inputs = {name: value for name, value in batch.items() if name not in OURS}
        counts = (batch.get("needed"), batch.get("rejected_from", 0))
        rows = forward.Rows(inputs, batch["labels"], batch["weight"] != 0, *counts)
        return self.read(model, rows, batch.get("trees"), cached_reference.of_batch(batch))

    def read(self, model: Any, rows: forward.Rows, made: Any, known: Tensor | None) -> TokenValues:
        """Values at the needed tokens of rows.

        Args:
            model: the policy.
            rows: what is read.
            made: the same as `trees.make` has made them, None if the batch has no trees.
            known: log pi_ref of a file, at least where it is needed; None if it is not kept.
        """
        shared = forward.shares(self, model) and made is not None
        wanted = forward.trees_of(self, made) if shared else rows
        if known is not None:
            known = torch.where(rows.needed, known, 0.0)
        with_reference = self.run.stage.needs_reference(self.run.options)
        return forward.values(self, model, wanted, with_reference=with_reference, kl=self.kl_use, known=known)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add means over the valid pairs of all ranks to a training or evaluation log entry."""
        split = "train" if "loss" in logs else "eval"
        losses = [key for key in logs if key.startswith("eval_") and key.endswith("_loss")]
        prefix = "" if split == "train" or not losses else losses[0].removesuffix("loss")
        means = self.meter.means(split, self.accelerator.device)
        logs.update({f"{prefix}{name}": value for name, value in means.items()})
        Trainer.log(self, logs, *args, **kwargs)

    def rank_report(self) -> dict[str, Any]:
        """This rank's part of the receipt: what it has trained on, over all epochs."""
        return {self.counted: self.tokens.read()}

    def run_report(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """The run's part of the receipt."""
        tokens: Counter[str] = Counter()
        for rank in ranks:
            tokens.update(rank[self.counted])
        return {self.counted: dict(sorted(tokens.items()))}


class PairCheck(TokenizedCheck):
    """Weighs every row once, so that all problems are known before a model loads."""

    def row(self, row: dict[str, Any]) -> tuple[str, Sequence[Problem]]:
        stage = stages.find(self.stage)
        try:
            (stage.weigh or weigh_all)(PairRow.of(packed.whole_pair(row)), self.options, 0)
        except BadData as error:
            return self.of_cut(row, error.problems, "FP214", overlong.NOTHING_SELECTED)
        return "", ()


class PairAdapter(Adapter):
    """Data and training of the stages on pairs."""

    schema = PairProcessor.schema
    responses = (("chosen_ids", ""), ("rejected_ids", ""))

    def processor(self, options: Options) -> Any:
        return partial(PairProcessor, overlong=options.overlong)

    def weigh(self, row: PairRow, options: Options, seed: int) -> Weights:
        """The weights of a tokenised pair. Raises BadData for an unfit one."""
        return (self.stage.weigh or weigh_all)(row, options, seed)

    def check(self, options: Options) -> PairCheck:
        return PairCheck(self.stage.name, options)

    def row_tokens(self, dataset: Any) -> RowTokens:
        """Both responses are sequences of one batch, as long as its longest."""
        prompt = list_lengths(dataset, "prompt")
        chosen, rejected = (prompt + list_lengths(dataset, f"{side}_ids") for side in SIDES)
        return RowTokens(2 * padded(np.maximum(chosen, rejected))[:, None], chosen + rejected)

    def build_trainer(self, parts: Any, **common: Any) -> PairTrainer:
        sharing = sharing_of(parts)
        collator = PairCollator(
            template=parts.template,
            model=parts.model,
            pad_to_multiple_of=8,
            label_pad_token_id=IGNORE_INDEX,
            weigh=partial(self.weigh, options=parts.run.options, seed=parts.args.training.seed),
            reference=parts.kept,
            counts=keeps_batches(parts.args),
            shares=sharing is not None and sharing.possible,
            **parts.tokenizer_module,
        )
        return PairTrainer(
            sharing=sharing,
            ref_model=parts.ref_model,
            data_collator=collator,
            **common,
            **parts.trainer_arguments(),
        )

    def plot_keys(self, options: Options) -> list[str]:
        rewards = [f"rewards/{name}" for name in ("accuracies", "margins", "chosen", "rejected")]
        return [*rewards, *self.stage.metrics]
