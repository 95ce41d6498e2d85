"""What the stages on pairs share: token weights from records, their way into the batch, the forward pass, metrics.

Tokenised rows hold what the data says about each token; the stage's options are applied to them in the collator, so
one tokenised data set serves every ratio, selection and mask.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from llamafactory.data import PairwiseDataCollatorWithPadding
from llamafactory.data.processor.processor_utils import infer_seqlen
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.train.dpo.trainer import CustomDPOTrainer
from torch import Tensor
from transformers import Trainer

from finepref.formats import records
from finepref.formats.check import BadData, Problem
from finepref.hosts.llamafactory import data
from finepref.hosts.llamafactory.adapter import Adapter
from finepref.hosts.llamafactory.record_processor import RecordProcessor
from finepref.hosts.pair_tokens import SIDES, facts, offsets_in, problem_of_record, selects, weights_and_scores
from finepref.losses import chunked, ops

CONTENT = "{{content}}"  # stands for the message in the host's templates


@dataclass
class PairProcessor(RecordProcessor):
    """One row per record. For side in chosen, rejected, aligned with the labels and cut as they are:

    {side}_weight and {side}_score: see `finepref.hosts.pair_tokens`.
    """

    schema: str = "pairs-1"
    sides: ClassVar[tuple[str, ...]] = SIDES

    def _row(self, record: records.Pair | records.SpanPair | records.ScoredPair) -> dict[str, Any]:
        texts = {side: record.chosen if side == "chosen" else record.rejected for side in self.sides}
        responses = {}
        for side, text in texts.items():
            prompt_ids, responses[side] = data.encode(self, record.prompt, text)
        cutoff = self.data_args.cutoff_len
        source, target = infer_seqlen(len(prompt_ids), max(map(len, responses.values())), cutoff)

        problems = []
        if len(prompt_ids) >= cutoff:
            text = f"the prompt has {len(prompt_ids)} tokens, cutoff_len is {cutoff}"
            problems.append(problem_of_record(record, "prompt", "FP203", text))
        row: dict[str, Any] = {**facts(record, self.tokenizer), "rows": 1}
        for side, ids in responses.items():
            start, offsets = self._offsets(texts[side], ids) if selects(record, side) else (0, [])
            weight, score = weights_and_scores(
                record, side, len(ids), start, offsets, tokenizer=self.tokenizer, problems=problems
            )
            row[f"{side}_input_ids"] = prompt_ids[:source] + ids[:target]
            row[f"{side}_attention_mask"] = [1] * len(row[f"{side}_input_ids"])
            row[f"{side}_labels"] = [IGNORE_INDEX] * source + ids[:target]
            row[f"{side}_weight"] = [0.0] * source + weight[:target]
            row[f"{side}_score"] = [math.nan] * source + score[:target]
        row["problem"] = data.note_problems(problems)
        return row

    def _offsets(self, text: str, ids: list[int]) -> tuple[int, list[tuple[int, int]]]:
        """Where in the response's tokens those of its text begin (-1: nowhere), and the characters of each."""
        (slot,) = (slot for slot in self.template.format_assistant.slots if isinstance(slot, str) and CONTENT in slot)
        if not self.tokenizer.is_fast:
            raise ValueError("spans and scores need a fast tokenizer, which knows the characters of its tokens")
        before = slot.index(CONTENT)
        encoded = self.tokenizer(slot.replace(CONTENT, text, 1), add_special_tokens=False, return_offsets_mapping=True)
        piece = encoded["input_ids"]
        starts = (i for i in range(len(ids) - len(piece) + 1) if ids[i : i + len(piece)] == piece)
        start = next(starts, -1)  # above 0 where the template writes thought words first
        return start, offsets_in(text, encoded["offset_mapping"], before=before)

    def print_data_example(self, example: dict[str, Any]) -> None:
        """What the host prints for the first row."""
        for side in SIDES:
            marked = [i for i, w in zip(example[f"{side}_input_ids"], example[f"{side}_weight"], strict=True) if w > 0]
            print(f"{side}:\n{self.tokenizer.decode(example[f'{side}_input_ids'], skip_special_tokens=False)}")
            print(f"{side}_tokens:\n{self.tokenizer.decode(marked, skip_special_tokens=False)}")


@dataclass
class PairCollator(PairwiseDataCollatorWithPadding):
    """Pads as the host does, and adds what the host's collator would drop without a word.

    Attributes:
        weigh: a tokenised row -> (chosen weights, rejected weights, side), by the stage's options.
    """

    weigh: Callable[[dict[str, Any]], tuple[list[float], list[float], int]] | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """One batch: the host's keys, `weight` [2B, L] aligned with the labels, `side` [B]."""
        batch = super().__call__([{**row, "images": None, "videos": None, "audios": None} for row in features])
        try:
            chosen, rejected, sides = zip(*map(self.weigh, features), strict=True)
        except BadData as error:  # of a stream; a data-loader worker can hand on nothing but a text
            raise ValueError(str(BadData(data.pinpoint([*error.problems])))) from None
        length = batch["labels"].shape[1]
        padded = []
        for weight in (*chosen, *rejected):
            gap = [0.0] * (length - len(weight))
            padded.append(gap + weight if self.tokenizer.padding_side == "left" else weight + gap)
        batch["weight"] = torch.tensor(padded)
        batch["side"] = torch.tensor(sides)
        return batch


class PairTrainer(CustomDPOTrainer):
    """The host's DPO trainer with a forward pass that needs few logits, our losses, and metrics over all ranks.

    Attributes:
        names: the metrics that `losses` returns beside the rewards.
    """

    names: tuple[str, ...] = ("logps/chosen", "logps/rejected")

    def __init__(self, *, record: Any, **kwargs: Any) -> None:
        self.record = record
        self.full_logits = kwargs["finetuning_args"].finepref_full_logits
        self.tokens: Counter[str] = Counter()
        self.sums: dict[str, Tensor] = {}
        super().__init__(**kwargs)

    @abstractmethod
    def losses(self, model: Any, batch: dict[str, Tensor]) -> tuple[ops.LossOut, dict[str, Tensor]]:
        """The stage's loss of each pair, and `names` as [B] each."""

    def get_batch_loss_metrics(
        self, model: Any, batch: dict[str, Tensor], train_eval: str = "train"
    ) -> tuple[Tensor, dict[str, float]]:
        """One micro-batch. Metrics go to `self.sums`, on every rank."""
        if "weight" not in batch:
            raise ValueError("the batch has no token weights: it was not made by finepref's PairCollator")
        out, metrics = self.losses(model, batch)
        if train_eval == "train":
            self.record.loss_calls += 1
            for side, weight, labels in zip(SIDES, batch["weight"].chunk(2), batch["labels"].chunk(2), strict=True):
                self.tokens[f"{side}_selected"] += int((weight[:, 1:] > 0).sum())
                self.tokens[f"{side}_responses"] += int((labels[:, 1:] != IGNORE_INDEX).sum())
        self._add(train_eval, out, metrics)
        return ops.reduce(out), {}

    def logits(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """[N, V], those that predict the tokens of positive weight; [2B, L, V] with `finepref_full_logits`."""
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "weight", "side")}
        if self.full_logits:
            return model(**inputs, return_dict=True, use_cache=False).logits
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        with chunked.head_at(head, chunked.needed_positions(batch["weight"][:, 1:] > 0)):
            return model(**inputs, return_dict=True, use_cache=False).logits[0]

    def logps(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """log pi of the tokens of positive weight, 0 elsewhere: [2B, L-1] in label space."""
        needed = batch["weight"][:, 1:] > 0
        if self.full_logits:
            masked = torch.where(needed, batch["labels"][:, 1:], IGNORE_INDEX)
            return ops.token_logps(logits, torch.cat((batch["labels"][:, :1], masked), 1))
        targets = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1)).flatten()
        at = targets[chunked.needed_positions(needed)].clamp(min=0)
        return chunked.place(chunked.logps_at(logits, at), needed)

    def kl(self, policy: Tensor, reference: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """KL(pi_ref || pi_theta) at the tokens of positive weight, 0 elsewhere: [2B, L-1] in label space."""
        needed = batch["weight"][:, 1:] > 0
        if self.full_logits:
            return torch.where(needed, ops.position_kl(policy[:, :-1], reference[:, :-1]), 0.0)
        return chunked.place(chunked.kl_at(policy, reference), needed)

    @contextmanager
    def reference(self, model: Any) -> Iterator[Any]:
        """The reference model without gradients: the host's second model, or the base below the adapters."""
        if self.ref_model is None:
            chosen, base = model, self.accelerator.unwrap_model(model).disable_adapter()
        else:
            chosen, base = self.ref_model, nullcontext()
        with torch.no_grad(), base:
            yield chosen

    def _add(self, split: str, out: ops.LossOut, metrics: dict[str, Tensor]) -> None:
        chosen, rejected = out.chosen_reward, out.rejected_reward
        values = [chosen, rejected, (chosen > rejected).float(), chosen - rejected]
        values += [metrics[name] for name in self.names] + [torch.ones_like(chosen)]
        sums = torch.stack([torch.where(out.valid, value.detach(), 0.0).sum() for value in values]).double()
        self.sums[split] = self.sums.get(split, 0) + sums

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add means over the valid pairs of all ranks to a training or evaluation log entry."""
        split = "train" if "loss" in logs else "eval"
        names = [f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")] + [*self.names]
        zeros = torch.zeros(len(names) + 1, dtype=torch.float64, device=self.accelerator.device)
        *sums, count = self.accelerator.reduce(self.sums.pop(split, zeros), "sum").tolist()
        if count > 0:
            losses = [key for key in logs if key.startswith("eval_") and key.endswith("_loss")]
            prefix = "" if split == "train" else losses[0].removesuffix("loss")
            logs.update({f"{prefix}{name}": value / count for name, value in zip(names, sums, strict=True)})
        Trainer.log(self, logs, *args, **kwargs)

    def rank_report(self) -> dict[str, Any]:
        """This rank's part of the receipt: tokens trained on, repeated ones counted again."""
        return {"tokens": dict(sorted(self.tokens.items()))}

    def run_report(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """The run's part of the receipt."""
        tokens: Counter[str] = Counter()
        for rank in ranks:
            tokens.update(rank["tokens"])
        return {"tokens": dict(sorted(tokens.items()))}


class PairAdapter(Adapter):
    """The data and training half that pair stages share.

    Attributes:
        trainer: the stage's PairTrainer.
        weigh: (row, arguments, seed) -> (chosen weights, rejected weights, side); raises BadData for an unfit row.
    """

    schema = PairProcessor.schema
    trainer: type[PairTrainer]
    weigh: Callable[..., tuple[list[float], list[float], int]]

    def processor(self) -> type:
        return PairProcessor

    def check_tokenized(self, dataset: Any, arguments: Any) -> None:
        """Weigh every row once, so that all problems are known before a model loads."""
        problems: list[Problem] = []
        for row in dataset:
            try:
                self.weigh(row, arguments, 0)
            except BadData as error:
                problems += error.problems
        if problems:
            raise BadData(data.pinpoint(problems))

    def build_trainer(self, parts: Any, **common: Any) -> PairTrainer:
        collator = PairCollator(
            template=parts.template,
            model=parts.model,
            pad_to_multiple_of=8,
            label_pad_token_id=IGNORE_INDEX,
            weigh=partial(self.weigh, arguments=parts.finetuning_args, seed=parts.training_args.seed),
            **parts.tokenizer_module,
        )
        return self.trainer(
            ref_model=parts.ref_model,
            data_collator=collator,
            **common,
            **parts.trainer_arguments(),
        )

    def plot_keys(self, arguments: Any) -> list[str]:
        rewards = [f"rewards/{name}" for name in ("accuracies", "margins", "chosen", "rejected")]
        return [*rewards, *self.trainer.names]
