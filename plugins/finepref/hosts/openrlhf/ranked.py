"""Shape "ranked" on OpenRLHF: a reward model on lists of scored responses, with the host's reward-model trainer.

The host's training loop expects pairs. So a record's best response is "chosen", and the others, best first, are
"rejected": one row each, with a mask [B, R - 1, L] that tells where they belong. In place of the margin, the batch
has is_apo and the rank of each response.
B records, R responses of the longest list, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from openrlhf.models import get_llm_for_sequence_regression
from openrlhf.trainer.rm_trainer import RewardModelTrainer
from peft import LoraConfig
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoConfig

from finepref.formats.problems import BadData
from finepref.hosts import packed, reward_metrics
from finepref.hosts.openrlhf import data, pairs, training
from finepref.hosts.openrlhf.command_line import Request
from finepref.hosts.openrlhf.notes import Notes
from finepref.hosts.openrlhf.stored_rows import IDS, TokenisedRows, Values
from finepref.hosts.reading import Sourced
from finepref.losses.ops import reduce
from finepref.losses.pooling import tokens_read
from finepref.losses.positions import marked_positions, place_at
from finepref.methods.batches import Ranked
from finepref.methods.options import RankedOptions
from finepref.methods.overlong import same
from finepref.methods.ranked_rows import response_field, scored, without_end
from finepref.synth.apo.reward_model import head_of


class RankedRow(NamedTuple):
    """A tokenised record, its responses sorted from best to worst.

    Attributes:
        sequences: prompt and response, int32 [L], of each response.
        ranks: rank of each response's score, 0 for the lowest; equal scores have equal ranks.
        is_apo: whether the record is of kind "apo".
    """

    sequences: list[Tensor]
    ranks: list[int]
    is_apo: bool


SCHEMA = pa.schema({"prompt": IDS, "ids": IDS, "lengths": IDS, "ranks": IDS, "is_apo": pa.bool_()})
"""Columns of stored records, see `RankedRow`; `ids` and `lengths` as in `packed.joined`."""


def record_of(values: Values, rows: TokenisedRows) -> RankedRow:
    """The record of these columns."""
    prompt = values["prompt"]
    ends = np.cumsum(values["lengths"])[:-1]
    sequences = [torch.from_numpy(np.concatenate([prompt, ids])) for ids in np.split(values["ids"], ends)]
    return RankedRow(sequences, values["ranks"].tolist(), values["is_apo"])


def tokenise(
    found: Iterable[Sourced],
    encoder: data.Encoder,
    name: str,
    notes: Notes,
    path: Path | None = None,
    *,
    options: RankedOptions,
) -> TokenisedRows:
    """Tokenise records.

    The host reads the reward at a sequence's last token, so a sequence ends at the token where the reward is to be
    read. All responses of a record have the same tokens of the prompt. A response that is cut keeps its end token.

    Args:
        found: the records.
        encoder: tokenises prompts and responses.
        name: name of the data, for the progress bar.
        notes: where it is noted what becomes of each record.
        path: file of the rows; None for memory.
        options: the stage's options, for where the reward is read.
    """
    return TokenisedRows.of(_columns(found, encoder, name, notes, options), SCHEMA, record_of, path)


def _columns(
    found: Iterable[Sourced], encoder: data.Encoder, name: str, notes: Notes, options: RankedOptions
) -> Iterator[dict[str, Any]]:
    end, how = encoder.tokenizer.eos_token_id, options.pooling[1]
    for source in data.watched(found, name):
        record, problems = source.record, []
        responses, scores, kind = scored(record)
        texts = {response_field(record, index): text for index, text in enumerate(responses)}
        prompt, encoded = encoder.encode(record, texts, problems)
        whole = [response.ids for response in encoded]
        if not problems and any(tokens_read(ids, end, how) is None for ids in whole):
            problems.append(without_end(record.id, options))
        if problems:
            notes.reject(source, problems)
            continue
        fit = encoder.fit(source, prompt, whole, notes)
        if fit is None:
            continue
        kept = [encoder.cut(ids, fit.response) for ids in whole]
        if reason := same(scores, whole, kept):
            notes.skip(source, reason)
            continue
        notes.keep(source, fit.cut)
        start = prompt[fit.start : fit.stop]
        best_first = sorted(range(len(scores)), key=lambda i: -scores[i])
        order = sorted(set(scores))
        ids, lengths = packed.joined(kept[i][: tokens_read(kept[i], end, how)] for i in best_first)
        yield {
            "prompt": packed.ids(start),
            "ids": ids,
            "lengths": lengths,
            "ranks": packed.ids(order.index(scores[i]) for i in best_first),
            "is_apo": kind == "apo",
        }


class RankedDataset(pairs.PairDataset):
    """Data set of `RankedRow` for the host's loader."""

    def lengths(self) -> np.ndarray:
        """Tokens of the longest sequence of each record, [N]."""
        return self.rows.list_lengths("prompt") + self.rows.list_maxima("lengths")

    def __getitem__(self, index: int) -> RankedRow:
        return self.rows[index]

    def collate_fn(self, rows: list[RankedRow]) -> tuple[Any, ...]:
        """chosen [B, 1, L] and rejected [N, 1, L], padded on the left, with masks; [B][1 + R] for the loss.

        N responses are there; their mask is [B, R - 1, L], 0 for a missing response. The last part has is_apo and the
        rank of each response, 0 for a missing one.
        """
        width = max(len(row.sequences) for row in rows)
        length = max(len(ids) for row in rows for ids in row.sequences)
        ids = torch.full((len(rows), width, length), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for b, row in enumerate(rows):
            for r, sequence in enumerate(row.sequences):
                ids[b, r, length - len(sequence) :] = sequence
                mask[b, r, length - len(sequence) :] = 1
        extra = [[int(row.is_apo), *row.ranks, *[0] * (width - len(row.ranks))] for row in rows]
        there = torch.tensor([[r < len(row.sequences) for r in range(1, width)] for row in rows])
        return ids[:, :1], mask[:, :1], ids[:, 1:][there].unsqueeze(1), mask[:, 1:], extra


class RankedTrainer(training.Accounted, RewardModelTrainer):
    """The host's reward-model trainer on score lists. Its metric `acc` compares a record's best and worst response."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.loss_fn = self.ranked_loss
        self.is_apo: np.ndarray | None = None  # of all rows of the training set
        self.margin_loss = True  # so that the loop passes the fifth item of the batch to the loss

    def concatenated_forward(
        self, model: Any, chosen_ids: Tensor, c_mask: Tensor, reject_ids: Tensor, r_mask: Tensor
    ) -> tuple[Tensor, Tensor, Any]:
        """Rewards [B] of the best and of the worst response; the loss reads all rewards from `self.rewards`."""
        if r_mask.dim() == 2:  # the loop has squeezed a dimension of size 1
            r_mask = r_mask.unsqueeze(1)
        there = r_mask.any(-1)  # [B, R - 1]
        places = marked_positions(there, len(reject_ids))  # [N]
        best, others, balance = super().concatenated_forward(
            model, chosen_ids, c_mask, reject_ids, r_mask.flatten(0, 1)[places]
        )
        rest = place_at(others, places, there)
        self.rewards = torch.cat((best.unsqueeze(1), rest), 1).float()  # [B, R]
        self.present = pad(there, (1, 0), value=True)
        worst = rest.gather(1, there.sum(1, keepdim=True) - 1).squeeze(1)
        return best, worst, balance

    def ranked_loss(self, best: Tensor, worst: Tensor, extra: Tensor) -> Tensor:
        """The loss of a micro-batch, scaled so that the mean over a step's micro-batches is the loss of the step."""
        is_apo, ranks = extra[:, 0].bool(), extra[:, 1:]
        training_step = torch.is_grad_enabled()  # evaluation has none
        counts = self.step_counts() if training_step and self.run.options.over_step else None
        scores = ranks.double()
        batch = Ranked(self.rewards, scores, self.present, is_apo, counts)
        out, metrics = self.run.stage.losses(batch, self.run.options)
        if training_step:
            self.count(human=(~is_apo).sum(), apo=is_apo.sum())
            self.meter.add("train", reward_metrics.totals(self.rewards.detach(), scores, self.present, is_apo))
            if metrics:
                self.meter.add_values("train", metrics, out.valid)
        if counts is None:
            return reduce(out)
        return reduce(out, count=sum(counts)) * self.strategy.accumulated_gradient

    def step_counts(self) -> tuple[int, int]:
        """Number of human and of adversarial records in the current optimizer step, over all processes."""
        sampler = self.train_dataloader.sampler
        rows = sampler.step_rows(self.last_step % self.num_update_steps_per_epoch, self.args.train.batch_size)
        if self.is_apo is None:
            self.is_apo = sampler.dataset.rows.column("is_apo")
        apo = int(self.is_apo[rows].sum())
        return len(rows) - apo, apo


def prepare(request: Request) -> Callable[[], None]:
    """Check data and options. Returns the function that trains.

    Raises:
        BadData, ValueError: as in `training.prepare`, or the stage refuses the data as a whole.
        FileNotFoundError: the value head is to be kept, but the checkpoint has none.
    """
    stage, options = request.stage, request.options
    run, splits = training.prepare(
        request,
        padding_side="left",
        rule=data.reward_rule,
        tokenise=partial(tokenise, options=options),
        make=record_of,
    )
    kinds = {reward_metrics.KINDS[int(is_apo)] for is_apo in np.unique(splits[0].column("is_apo"))}
    if stage.check_data and (problems := stage.check_data(kinds, options)):
        raise BadData([replace(problem, file=request.host.data.dataset) for problem in problems])
    trainer = partial(RankedTrainer, **training.trainer_options(run, request, (*reward_metrics.NAMES, *stage.metrics)))
    names: dict[str, Any] = {"RewardModelTrainer": trainer, "get_llm_for_sequence_regression": _model}
    if options.keeps_value_head:
        head_of(Path(request.host.model.model_name_or_path))
        names["get_llm_for_sequence_regression"] = partial(_model, keep_head=True)
    dataset = partial(RankedDataset, grouped=options.finepref_group_by_length)
    train = training.host_train(stage.of_shape.openrlhf_module, splits, dataset, **names)
    return partial(train, request.host)


def _model(*arguments: Any, keep_head: bool = False, **options: Any) -> Any:
    """The host's reward model, whose value head is trained as a whole and saved also with LoRA.

    The host itself puts a LoRA on the random value head, or leaves it as it is, and saves the LoRA only.

    Args:
        arguments, options: as the host gives them.
        keep_head: whether the value head is the one of the checkpoint.
    """
    if keep_head:
        options["init_value_head"] = False
    config = AutoConfig.from_pretrained(arguments[0], trust_remote_code=True)
    head = getattr(config, "value_head_prefix", options.get("value_head_prefix", "score"))  # as the host chooses it

    lora = partial(LoraConfig, modules_to_save=[head])
    return training.rebind(get_llm_for_sequence_regression, LoraConfig=lora)(*arguments, **options)
