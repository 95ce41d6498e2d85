"""Shape "ranked" on OpenRLHF: a reward model on lists of scored responses, with the host's reward-model trainer.

The host's training loop expects pairs. So a record's best response is "chosen", and the others, best first, are
"rejected": one row each, with a mask [B, R - 1, L] that tells where they belong. In place of the margin, the batch
has is_apo and the rank of each response.
B records, R responses of the longest list, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from openrlhf.models import get_llm_for_sequence_regression
from openrlhf.trainer.rm_trainer import RewardModelTrainer
from peft import LoraConfig
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoConfig

from finepref.hosts import reward_metrics
from finepref.hosts.openrlhf import data, ranked_data, training
from finepref.hosts.openrlhf.command_line import Request
from finepref.hosts.openrlhf.ranked_data import RankedRow, record_of, tokenise
from finepref.losses.ops import reduce
from finepref.losses.positions import marked_positions, place_at
from finepref.methods.batches import Ranked
from finepref.synth.apo.reward_model import head_of


class RankedDataset(ranked_data.Dataset):
    """Data set of records for the host's loader."""

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
    ranked_data.check_kinds(request, splits[0])
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
