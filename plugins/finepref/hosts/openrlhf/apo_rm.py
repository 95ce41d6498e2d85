"""APO's reward model (arXiv 2311.08045) with the host's reward-model trainer, on lists of scored responses.

The host's loop knows pairs. It gets a record's best response as "chosen" and the others, [B, R - 1, L], as "rejected",
best first; what its margin carries says whether the record is adversarial and which responses are scored alike.
B records, R responses of the longest list, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from openrlhf.models import get_llm_for_sequence_regression
from openrlhf.trainer.rm_trainer import RewardModelTrainer
from torch import Tensor
from torch.nn.functional import pad

from finepref.formats import records
from finepref.formats.problems import BadData, Problem
from finepref.hosts import located, reward_metrics
from finepref.hosts.apo import scored
from finepref.hosts.openrlhf import data, pairs, training
from finepref.hosts.openrlhf.command_line import Asked
from finepref.losses.apo_rm import apo_rm_loss
from finepref.losses.ops import reduce, sum_over_ranks
from finepref.synth.apo.reward_model import head_of


class RankedRow(NamedTuple):
    """A record: prompt and response int32 [L] each, best first; rank of each score (equal scores, equal rank)."""

    sequences: list[Tensor]
    ranks: list[int]
    is_apo: bool


def tokenise(
    found: list[data.Sourced], encoder: data.Encoder, name: str, *, pooling: str
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
        if isinstance(record, records.Pair) and not scores[0] > 0:
            text = f"is {scores[0]:g}, so chosen is not above rejected"
            wrong.append(Problem(located.record_mark(record.id), 0, "margin", "FP220", text))
        before, prompt = encoder.prompt(record, wrong, whole=False)
        sequences = []
        for index, response in enumerate(responses):
            field = f"responses[{index}]" if isinstance(record, records.Ranked) else ("chosen", "rejected")[index]
            whole, *_ = encoder.response(record, field, response, before, wrong)
            ids = _until_read(whole, encoder.tokenizer.eos_token_id, pooling)
            if ids is None:
                text = "the chat template ends no response with the tokenizer's end token; use --apo.pooling last"
                wrong.append(Problem(located.record_mark(record.id), 0, "apo_pooling", "FP222", text))
                continue
            if len(whole) >= encoder.longest:
                text = (
                    f"has {len(whole)} tokens, cutoff_len is {encoder.longest}, so nothing of the prompt would be left"
                )
                wrong.append(Problem(located.record_mark(record.id), 0, field, "FP221", text))
            beyond = max(0, len(prompt) + len(whole) - encoder.longest)
            sequences.append(torch.tensor((prompt + ids)[beyond:], dtype=torch.int32))
        problems += located.pinpoint(wrong, [source[:3]])
        if not wrong:
            best_first = sorted(range(len(scores)), key=lambda i: -scores[i])
            order = sorted(set(scores))
            ranks = [order.index(scores[i]) for i in best_first]
            rows.append(RankedRow([sequences[i] for i in best_first], ranks, kind == "apo"))
    return rows, problems


def _until_read(ids: list[int], end: int, pooling: str) -> list[int] | None:
    """A response's tokens up to the one where the reward is read, None where there is no such token."""
    if end in ids:
        closing = len(ids) - 1 - ids[::-1].index(end)
        return ids[: closing + 1] if pooling == "eos" else ids[:closing]
    return None if pooling == "eos" else ids


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


class ApoTrainer(training.Accounted, RewardModelTrainer):
    """The host's reward-model trainer with score lists; its `acc` compares a record's best and worst response."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.loss_fn = self.apo_loss
        self.margin_loss = True  # the loop hands on the fifth place of the batch
        self.table: Tensor | None = None
        asked = self.run.options
        self.loss_options = {
            "kl_coeff": asked.apo_kl_coeff,
            "apo_coeff": asked.apo_coeff,
            "samples": asked.apo_sample_num,
            "kind": asked.apo_loss,
            "normalization": asked.apo_normalization,
        }

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

    def apo_loss(self, best: Tensor, worst: Tensor, extra: Tensor) -> Tensor:
        """L of a micro-batch, such that the mean over the micro-batches of a step is the step's L."""
        is_apo, ranks = extra[:, 0].bool(), extra[:, 1:]
        training_step = torch.is_grad_enabled()  # evaluation has none
        counts = self.step_counts() if training_step and self.run.options.apo_normalization == "per_type" else None
        scores = ranks.double()
        out = apo_rm_loss(self.rewards, scores, is_apo, mask=self.present, counts=counts, **self.loss_options)
        if training_step:
            self.count(human=int((~is_apo).sum()), apo=int(is_apo.sum()))
            mine = reward_metrics.sums(self.rewards.detach(), scores, self.present, is_apo)
            self.table = mine if self.table is None else self.table + mine
        if counts is None:
            return reduce(out)
        return reduce(out, count=sum(counts)) * self.strategy.accumulated_gradient

    def step_counts(self) -> tuple[int, int]:
        """Human and adversarial records of the current optimizer step, on all processes."""
        sampler = self.train_dataloader.sampler
        rows = sampler.step_rows(self.last_step % self.num_update_steps_per_epoch, self.args.train.batch_size)
        apo = sum(sampler.dataset.rows[i].is_apo for i in rows)
        return len(rows) - apo, apo

    def means(self) -> dict[str, float]:
        """Accuracies, rewards and margins over all pairs of scored responses, also by kind."""
        table, self.table = self.table, None
        return {} if table is None else reward_metrics.means(sum_over_ranks(table))


def prepare(asked: Asked) -> Callable[[], None]:
    """Check data and options; the result trains.

    Raises:
        BadData, ValueError: as `training.prepare`, or no row has a loss.
        FileNotFoundError: a value head is to be kept, and there is none.
    """
    options = asked.options
    run, splits = training.prepare(asked, padding_side="left", tokenise=partial(tokenise, pooling=options.apo_pooling))
    kinds = {row.is_apo for row in splits[0]}
    if not any(options.apo_coeff if is_apo else options.apo_kl_coeff for is_apo in kinds):
        text = f"all training records are {' and '.join(reward_metrics.KINDS[k] for k in kinds)}, of coefficient 0"
        raise BadData([Problem(asked.host.data.dataset, 0, "kind", "FP223", text)])
    if options.apo_loss == "wgan" and True not in kinds:
        raise BadData(
            [Problem(asked.host.data.dataset, 0, "kind", "FP224", "apo_loss: wgan needs records of kind apo")]
        )
    names: dict[str, Any] = {"RewardModelTrainer": partial(ApoTrainer, run=run)}
    if options.apo_keep_value_head:
        head_of(Path(asked.host.model.model_name_or_path))
        names["get_llm_for_sequence_regression"] = _with_its_head
    train = training.host_train("openrlhf.cli.train_rm", splits, RankedDataset, **names)
    return partial(train, asked.host)


def _with_its_head(*arguments: Any, **options: Any) -> Any:
    """The host's reward model with the value head of the checkpoint."""
    return get_llm_for_sequence_regression(*arguments, **options | {"init_value_head": False})
