"""Shape "lists" on LLaMA-Factory: a policy on scored lists of responses, by the trainer of pairs.

Rows are tokenised and padded as for a reward model: B records, R responses of the longest list, T tokens. Only the N
responses that are there go through the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from llamafactory.extras.constants import IGNORE_INDEX
from torch import Tensor

from finepref.hosts import trees
from finepref.hosts.batching import RowTokens
from finepref.hosts.exact import floats
from finepref.hosts.llamafactory import cached_reference, forward, ranked_data
from finepref.hosts.llamafactory.adapter import Adapter, keeps_batches, sharing_of
from finepref.hosts.llamafactory.pairs import REWARDS, PairTrainer
from finepref.hosts.llamafactory.ranked_data import RankedProcessor, padded_lists, sequences_of
from finepref.losses.positions import marked_positions
from finepref.methods.batches import Lists
from finepref.methods.options import Options


@dataclass
class ListCollator:
    """Pads records for a policy, see `ranked_data.padded_lists`.

    Attributes:
        pad_token_id: the tokenizer's.
        reference: the kept log-probabilities of the rows, empty if there are none.
        counts: whether to add numbers; see `PairCollator.counts`.
        shares: whether to add `trees` where responses have enough in common, see `trees.make`.
    """

    pad_token_id: int
    reference: cached_reference.Rows = field(default_factory=cached_reference.Rows)
    counts: bool = True
    shares: bool = False

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """What `padded_lists` returns, labels [B, R, T], and reference int32 [B, R, T - 1], as `exact.bits`.

        `responses` is the number of responses, `needed` that of their tokens.
        """
        sequences = [*map(sequences_of, features)]
        batch: dict[str, Any] = padded_lists(sequences, [row["scores"] for row in features], self.pad_token_id)
        ids, there = batch["input_ids"], batch["present"].bool()
        starts = torch.tensor([len(row["prompt"]) for row in features])[:, None, None]
        of_responses = batch["attention_mask"].bool() & (torch.arange(ids.shape[-1]) >= starts)
        batch["labels"] = torch.where(of_responses, ids, IGNORE_INDEX)
        needed = of_responses[..., 1:]
        if self.reference:
            batch["reference"] = self._reference(features, sequences, batch["labels"])
        if self.counts:
            batch |= {"responses": sum(map(len, sequences)), "needed": int(needed.sum())}
        if self.shares:
            rows = trees.rows_of(ids[there], batch["attention_mask"][there], needed[there])
            groups = trees.together(there.nonzero()[:, 0].tolist())
            found = trees.make(rows, groups, ids.shape[-1])
            batch |= {"trees": found} if found else {}
        return batch

    def _reference(self, features: list[dict[str, Any]], sequences: list[list[list[int]]], labels: Tensor) -> Tensor:
        """The kept log-probabilities of a batch, see `cached_reference.placed`."""
        count, responses, width = labels.shape
        values = [np.zeros(0, np.float32)] * (count * responses)
        ends = [0] * (count * responses)
        for b, (row, record) in enumerate(zip(features, sequences, strict=True)):
            place = slice(b * responses, b * responses + len(record))
            values[place], ends[place] = self.reference[row[cached_reference.ROW]], map(len, record)
        return cached_reference.placed(values, ends, width, "right").unflatten(0, (count, responses))


class ListTrainer(PairTrainer):
    """The host's DPO trainer on scored lists. It logs the rewards of each list's best and worst response."""

    row_key = "scores"
    counted = "lists"

    def get_batch_loss_metrics(
        self, model: Any, batch: dict[str, Any], train_eval: str = "train"
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a micro-batch. Its metrics are added to the meter."""
        loss = self.mean_loss(self.lists(model, batch), train_eval)
        if train_eval == "train":
            self.run.count(len(batch["scores"]))
            tokens = (batch["labels"][..., 1:] != IGNORE_INDEX).sum()
            self.tokens.add(responses=batch["present"].sum(), tokens=tokens)
        return loss, {}

    def lists(self, model: Any, batch: dict[str, Any]) -> Lists:
        """The input of the stage's loss: log-probabilities of policy and reference.

        Args:
            model: the policy.
            batch: a batch of the collator.
        """
        present = batch["present"].bool()
        places = marked_positions(present, batch.get("responses"))  # [N]
        inputs = {name: batch[name].flatten(0, 1)[places] for name in ("input_ids", "attention_mask")}
        labels = batch["labels"].flatten(0, 1)[places]
        rows = forward.Rows(inputs, labels, labels[:, 1:] != IGNORE_INDEX, batch.get("needed"))
        known = cached_reference.of_batch(batch)
        if known is not None:
            known = known.flatten(0, 1)[places]
        values = self.read(model, rows, batch.get("trees"), known)
        return Lists.of_tokens(values.logps, values.reference, places, floats(batch["scores"]), present)


class ListAdapter(Adapter):
    """Data and training of the policies on scored lists."""

    schema = RankedProcessor.schema
    responses = (("responses", "lengths"),)

    def processor(self, options: Options) -> Any:
        return partial(RankedProcessor, overlong=options.overlong)

    def check(self, options: Options) -> None:
        """Nothing in a tokenised row depends on the options."""

    def row_tokens(self, dataset: Any) -> RowTokens:
        return ranked_data.row_tokens(dataset)

    def check_training(self, dataset: Any, options: Options) -> None:
        ranked_data.check_kinds(self.stage, dataset, options)

    def build_trainer(self, parts: Any, **common: Any) -> ListTrainer:
        sharing = sharing_of(parts)
        collator = ListCollator(
            pad_token_id=parts.tokenizer_module["tokenizer"].pad_token_id,
            reference=parts.kept,
            counts=keeps_batches(parts.args),
            shares=sharing is not None and sharing.possible,
        )
        return ListTrainer(
            sharing=sharing,
            ref_model=parts.ref_model,
            data_collator=collator,
            **common,
            **parts.trainer_arguments(),
        )

    def plot_keys(self, options: Options) -> list[str]:
        return [*REWARDS, *self.stage.metrics]
