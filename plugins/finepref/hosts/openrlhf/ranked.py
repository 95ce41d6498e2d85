"""Shape "ranked" on OpenRLHF: a reward model on lists of scored responses, with the host's reward-model trainer.

The host's loop knows pairs. It gets a record's best response as "chosen" and the others, [B, R - 1, L], as "rejected",
best first; what its margin carries says whether the record is adversarial and which responses are scored alike.
B records, R responses of the longest list, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from openrlhf.models import get_llm_for_sequence_regression
from openrlhf.trainer.rm_trainer import RewardModelTrainer
from torch import Tensor
from torch.nn.functional import pad

from finepref.formats.problems import BadData, Problem
from finepref.hosts import reward_metrics
from finepref.hosts.openrlhf import data, pairs, training
from finepref.hosts.openrlhf.command_line import Request
from finepref.losses.ops import reduce
from finepref.losses.pooling import tokens_read
from finepref.methods.batches import Ranked
from finepref.methods.options import RankedOptions
from finepref.methods.ranked_rows import length_problems, response_field, scored, without_end
from finepref.synth.apo.reward_model import head_of


class RankedRow(NamedTuple):
    """A record: prompt and response int32 [L] each, best first; rank of each score (equal scores, equal rank)."""

    sequences: list[Tensor]
    ranks: list[int]
    is_apo: bool


def tokenise(
    found: list[data.Sourced], encoder: data.Encoder, name: str, *, options: RankedOptions
) -> tuple[training.Rows, list[Problem]]:
    """Records as rows, and everything that is wrong with them.

    The host reads the reward at a sequence's last token, so a sequence ends where it is to be read. What is longer
    than --data.max_len, with what the template writes behind that token, loses its beginning, as in the paper: the end
    of the response decides.
    """
    rows, problems = training.Rows(), []
    for source in data.watched(found, name):
        record, wrong = source.record, []
        responses, scores, kind = scored(record)
        before, prompt = encoder.prompt(record, wrong, whole=False)
        sequences = []
        for index, response in enumerate(responses):
            whole, *_ = encoder.response(record, response_field(record, index), response, before, wrong)
            read = tokens_read(whole, encoder.tokenizer.eos_token_id, options.pooling[1])
            if read is None:
                wrong.append(without_end(record.id, options))
                continue
            wrong += length_problems(record, index, len(whole), limit="--data.max_len", longest=encoder.longest)
            beyond = max(0, len(prompt) + len(whole) - encoder.longest)
            sequences.append(torch.tensor((prompt + whole[:read])[beyond:], dtype=torch.int32))
        problems += source.places(wrong)
        if not wrong:
            best_first = sorted(range(len(scores)), key=lambda i: -scores[i])
            order = sorted(set(scores))
            ranks = [order.index(scores[i]) for i in best_first]
            rows.append(RankedRow([sequences[i] for i in best_first], ranks, kind == "apo"))
    return rows, problems


class RankedDataset(pairs.PairDataset):
    """Rows for the host's loader."""

    def __getitem__(self, index: int) -> RankedRow:
        return self.rows[index]

    def collate_fn(self, rows: list[RankedRow]) -> tuple[Any, ...]:
        """chosen [B, 1, L] and rejected [B, R - 1, L] with masks, padded on the left; [B][1 + R] for the loss.

        A response that is not there has no attended token. The last part is is_apo and a rank per response, 0 where
        there is none.
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
        return ids[:, :1], mask[:, :1], ids[:, 1:], mask[:, 1:], extra


class RankedTrainer(training.Accounted, RewardModelTrainer):
    """The host's reward-model trainer with score lists; its `acc` compares a record's best and worst response."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.loss_fn = self.ranked_loss
        self.margin_loss = True  # the loop hands on the fifth place of the batch

    def concatenated_forward(
        self, model: Any, chosen_ids: Tensor, c_mask: Tensor, reject_ids: Tensor, r_mask: Tensor
    ) -> tuple[Tensor, Tensor, Any]:
        """Rewards of the best and of the worst response [B]; all of them are kept for the loss."""
        if reject_ids.dim() == 2:  # the loop has taken away a dimension of one
            reject_ids, r_mask = reject_ids.unsqueeze(1), r_mask.unsqueeze(1)
        there = r_mask.any(-1)  # [B, R - 1]
        best, others, balance = super().concatenated_forward(
            model, chosen_ids, c_mask, reject_ids[there], r_mask[there]
        )
        rest = torch.zeros(there.shape, dtype=others.dtype, device=others.device).masked_scatter(there, others)
        self.rewards = torch.cat((best.unsqueeze(1), rest), 1).float()  # [B, R]
        self.present = pad(there, (1, 0), value=True)
        worst = rest.gather(1, there.sum(1, keepdim=True) - 1).squeeze(1)
        return best, worst, balance

    def ranked_loss(self, best: Tensor, worst: Tensor, extra: Tensor) -> Tensor:
        """The loss of a micro-batch, such that the mean over the micro-batches of a step is the step's loss."""
        is_apo, ranks = extra[:, 0].bool(), extra[:, 1:]
        training_step = torch.is_grad_enabled()  # evaluation has none
        counts = self.step_counts() if training_step and self.run.options.over_step else None
        scores = ranks.double()
        batch = Ranked(self.rewards, scores, self.present, is_apo, counts)
        out, _ = self.run.stage.losses(batch, self.run.options)
        if training_step:
            self.count(human=int((~is_apo).sum()), apo=int(is_apo.sum()))
            self.meter.add("train", reward_metrics.totals(self.rewards.detach(), scores, self.present, is_apo))
        if counts is None:
            return reduce(out)
        return reduce(out, count=sum(counts)) * self.strategy.accumulated_gradient

    def step_counts(self) -> tuple[int, int]:
        """Human and adversarial records of the current optimizer step, on all processes."""
        sampler = self.train_dataloader.sampler
        rows = sampler.step_rows(self.last_step % self.num_update_steps_per_epoch, self.args.train.batch_size)
        apo = sum(sampler.dataset.rows[i].is_apo for i in rows)
        return len(rows) - apo, apo


def prepare(request: Request) -> Callable[[], None]:
    """Check data and options; the result trains.

    Raises:
        BadData, ValueError: as `training.prepare`, or the stage refuses the data as a whole.
        FileNotFoundError: a value head is to be kept, and there is none.
    """
    stage, options = request.stage, request.options
    run, splits = training.prepare(request, padding_side="left", tokenise=partial(tokenise, options=options))
    kinds = {reward_metrics.KINDS[row.is_apo] for row in splits[0]}
    if stage.check_data and (problems := stage.check_data(kinds, options)):
        raise BadData([replace(problem, file=request.host.data.dataset) for problem in problems])
    trainer = partial(RankedTrainer, **training.trainer_options(run, request, reward_metrics.NAMES))
    names: dict[str, Any] = {"RewardModelTrainer": trainer}
    if options.keeps_value_head:
        head_of(Path(request.host.model.model_name_or_path))
        names["get_llm_for_sequence_regression"] = _with_its_head
    train = training.host_train(stage.of_shape.openrlhf_module, splits, RankedDataset, **names)
    return partial(train, request.host)


def _with_its_head(*arguments: Any, **options: Any) -> Any:
    """The host's reward model with the value head of the checkpoint."""
    return get_llm_for_sequence_regression(*arguments, **options | {"init_value_head": False})
