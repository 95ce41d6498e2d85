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
from functools import lru_cache, partial
from typing import Any

import torch
from llamafactory.data import PairwiseDataCollatorWithPadding
from llamafactory.data.processor.processor_utils import DatasetProcessor, infer_seqlen
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.train.dpo.trainer import CustomDPOTrainer
from torch import Tensor
from transformers import Trainer

from finepref.formats import records, scores, spans
from finepref.formats.check import BadData, Problem
from finepref.hosts.llamafactory import data
from finepref.hosts.llamafactory.adapter import Adapter
from finepref.losses import chunked, ops

SIDES = ("chosen", "rejected")
CONTENT = "{{content}}"  # stands for the message in the host's templates

fingerprint = lru_cache(maxsize=4)(lambda tokenizer: scores.fingerprint(tokenizer.backend_tokenizer.to_str()))


@dataclass
class PairProcessor(DatasetProcessor):
    """One row per record. For side in chosen, rejected, aligned with the labels and cut as they are:

    {side}_weight: weights of the spans' tokens (0 elsewhere); 1 on every response token where there is no span.
    {side}_score: token scores, NaN where there is none.

    The end token, and what a template puts around the response, has no characters, so no span selects it.
    """

    schema: str = "pairs-1"

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenise a batch of aligned rows."""
        data.raise_problems(examples["_problem"])
        rows = [
            self._row(data.record_of({"_record": text, "_formatting": formatting}))
            for text, formatting in zip(examples["_record"], examples["_formatting"], strict=True)
        ]
        if self.data_args.streaming:  # nobody sees the whole column later
            data.raise_problems(row["problem"] for row in rows)
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _row(self, record: records.Pair | records.SpanPair | records.ScoredPair) -> dict[str, Any]:
        system = record.prompt[0].content if record.prompt[0].role == "system" else None
        turns = [message._asdict() for message in record.prompt if message.role != "system"]
        texts = {"chosen": record.chosen, "rejected": record.rejected}
        responses = {}
        for side, text in texts.items():
            asked = [*turns, {"role": "assistant", "content": text}]
            prompt_ids, responses[side] = self.template.encode_oneturn(self.tokenizer, asked, system, None)
            if self.template.efficient_eos:
                responses[side] = [*responses[side], self.tokenizer.eos_token_id]
        cutoff = self.data_args.cutoff_len
        source, target = infer_seqlen(len(prompt_ids), max(map(len, responses.values())), cutoff)

        problems = []
        if len(prompt_ids) >= cutoff:
            text = f"the prompt has {len(prompt_ids)} tokens, cutoff_len is {cutoff}"
            problems.append(self._problem(record, "prompt", "FP203", text))
        row: dict[str, Any] = {
            "example_id": record.id,
            "side": record.side if isinstance(record, records.SpanPair) else 0,
            "mapped": isinstance(record, records.ScoredPair) and record.tokenizer != fingerprint(self.tokenizer),
            "rows": 1,
        }
        for side, ids in responses.items():
            weight, score = self._weights(record, side, texts[side], ids, problems)
            row[f"{side}_input_ids"] = prompt_ids[:source] + ids[:target]
            row[f"{side}_attention_mask"] = [1] * len(row[f"{side}_input_ids"])
            row[f"{side}_labels"] = [IGNORE_INDEX] * source + ids[:target]
            row[f"{side}_weight"] = [0.0] * source + weight[:target]
            row[f"{side}_score"] = [math.nan] * source + score[:target]
            row[f"{side}_annotated"] = isinstance(record, records.SpanPair) and bool(spans_of(record, side))
            row[f"{side}_scored"] = isinstance(record, records.ScoredPair)
        row["problem"] = data.note_problems(problems)
        return row

    def _weights(
        self, record: records.Record, side: str, text: str, ids: list[int], problems: list[Problem]
    ) -> tuple[list[float], list[float]]:
        """Weight and score of each of the response's tokens; what is wrong goes to `problems`."""
        weight, score = [1.0] * len(ids), [math.nan] * len(ids)
        annotated = isinstance(record, records.SpanPair) and spans_of(record, side)
        if not annotated and not isinstance(record, records.ScoredPair):
            return weight, score
        start, offsets = self._offsets(text, ids)
        if start < 0:
            text = f"the tokens of template {self.data_args.template} do not hold those of the response in one piece"
            problems.append(self._problem(record, side, "FP211", text))
        elif annotated:
            end = start + len(offsets)
            weight = [0.0] * start + spans.token_weights(annotated, offsets) + [0.0] * (len(ids) - end)
        else:
            known = self._scores(record, side, offsets, problems)[: len(ids) - start]
            score[start : start + len(known)] = known
        return weight, score

    def _scores(
        self, record: records.ScoredPair, side: str, offsets: list[tuple[int, int]], problems: list[Problem]
    ) -> list[float]:
        """The scores of the tokens with these offsets; one more where the end token has a score."""
        given, places = scores_of(record, side)
        own = fingerprint(self.tokenizer)
        if record.tokenizer == own:
            if len(given) - len(offsets) in (0, 1):
                return list(given)
            text = f"{len(given)} scores, {len(offsets)} tokens, at most one of them beyond the text"
            problems.append(self._problem(record, f"{side}_scores", "FP213", text))
        elif not places:
            text = f"{record.tokenizer[:80]!a}, the model's is {own!r}; mapping needs {side}_offsets, which it lacks"
            problems.append(self._problem(record, "tokenizer", "FP212", text))
        else:
            mapped = scores.map_scores(given, places, offsets)
            return [*mapped, given[-1]] if places[-1][0] == places[-1][1] else mapped
        return []

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
        offsets = [
            tuple(min(max(place - before, 0), len(text)) for place in offset) for offset in encoded["offset_mapping"]
        ]
        while offsets and offsets[-1][0] == offsets[-1][1]:  # the slot's own end, e.g. <|im_end|>
            offsets.pop()
        return start, offsets

    @staticmethod
    def _problem(record: records.Record, field: str, code: str, text: str) -> Problem:
        return Problem(data.record_mark(record.id), 0, field, code, text)

    def print_data_example(self, example: dict[str, Any]) -> None:
        """What the host prints for the first row."""
        for side in SIDES:
            marked = [i for i, w in zip(example[f"{side}_input_ids"], example[f"{side}_weight"], strict=True) if w > 0]
            print(f"{side}:\n{self.tokenizer.decode(example[f'{side}_input_ids'], skip_special_tokens=False)}")
            print(f"{side}_tokens:\n{self.tokenizer.decode(marked, skip_special_tokens=False)}")


def spans_of(record: records.SpanPair, side: str) -> tuple[records.Span, ...]:
    """The spans of one response."""
    return record.chosen_spans if side == "chosen" else record.rejected_spans


def scores_of(record: records.ScoredPair, side: str) -> tuple[tuple[float, ...], tuple[tuple[int, int], ...]]:
    """The token scores of one response, and the characters of each token where the record has them."""
    if side == "chosen":
        return record.chosen_scores, record.chosen_offsets
    return record.rejected_scores, record.rejected_offsets


def counted(row: dict[str, Any], side: str) -> list[float]:
    """Weight 1 on every response token of a tokenised row."""
    return [float(label != IGNORE_INDEX) for label in row[f"{side}_labels"]]


def problem_of(row: dict[str, Any], field: str, code: str, text: str) -> Problem:
    """A problem of a tokenised row."""
    return Problem(data.record_mark(row["example_id"]), 0, field, code, text)


def nothing_left(row: dict[str, Any], side: str) -> Problem:
    """The problem of a response that has no token to train on."""
    text = "cutoff_len cuts off every selected token, or all weights are 0"
    return problem_of(row, f"{side}_spans" if row[f"{side}_annotated"] else side, "FP214", text)


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
            record=parts.record,
            model=parts.model,
            ref_model=parts.ref_model,
            args=parts.training_args,
            finetuning_args=parts.finetuning_args,
            data_collator=collator,
            **common,
            **parts.tokenizer_module,
        )

    def plot_keys(self, arguments: Any) -> list[str]:
        rewards = [f"rewards/{name}" for name in ("accuracies", "margins", "chosen", "rejected")]
        return [*rewards, *self.trainer.names]
