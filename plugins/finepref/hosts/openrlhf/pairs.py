"""What the stages on pairs share: rows with token weights, the host's batches of them, the host's DPO trainer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from openrlhf.datasets import RewardDataset
from openrlhf.trainer.dpo_trainer import DPOTrainer
from torch import Tensor

from finepref.formats.problems import BadData, Problem
from finepref.hosts import located
from finepref.hosts.openrlhf import data, forward
from finepref.hosts.openrlhf.training import Accounted, Rows
from finepref.hosts.pair_tokens import SIDES
from finepref.losses import ops


class Response(NamedTuple):
    """Prompt and response: ids int32 [L], weight [L] of each token, how many tokens the response has."""

    ids: Tensor
    weight: Tensor
    length: int


class PairRow(NamedTuple):
    """One record; side as in `finepref.losses.tdpo`."""

    chosen: Response
    rejected: Response
    side: int


def tokenise(
    found: list[data.Sourced], encoder: data.Encoder, name: str, *, weigh: Callable[..., tuple], **options: Any
) -> tuple[Rows, list[Problem]]:
    """Records as rows with the weights of `weigh`, and everything that is wrong with them."""
    rows, problems = Rows(), []
    watched = data.watched(found, name)
    for source, (row, wrong) in zip(found, data.pair_rows(watched, encoder), strict=True):
        problems += wrong
        if wrong:
            continue
        try:
            *weights, side = weigh(row, **options)
        except BadData as error:
            problems += located.pinpoint(error.problems, [source[:3]])
            continue
        rows.append(PairRow(*(_response(row, *pair) for pair in zip(SIDES, weights, strict=True)), side))
    return rows, problems


def _response(row: dict[str, Any], side: str, weight: list[float]) -> Response:
    ids = torch.tensor(row[f"{side}_input_ids"], dtype=torch.int32)
    return Response(ids, torch.tensor(weight), sum(label >= 0 for label in row[f"{side}_labels"]))


class PairDataset(RewardDataset):
    """Rows for the host's loader; its fifth place, which the host hands on unread, holds the row itself."""

    def __init__(self, rows: Rows, tokenizer: Any, *arguments: Any, is_dpo: bool = False, **options: Any) -> None:
        self.rows, self.tokenizer, self.is_dpo = rows, tokenizer, is_dpo
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # seen by the loader's processes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        row = self.rows[index]
        return *masked(row.chosen.ids), *masked(row.rejected.ids), row


def masked(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Ids [1, L] and their attention mask, as the host's collator takes them."""
    ids = ids.long().unsqueeze(0)
    return ids, torch.ones_like(ids)


class Batch(NamedTuple):
    """weight [2B, T] in label space, the chosen half first; side [B]; tokens of the 2B responses, those selected."""

    weight: Tensor
    side: Tensor
    tokens: dict[str, int]


def batch_of(rows: list[PairRow], length: int, device: Any) -> Batch:
    """The weights of a micro-batch whose responses are padded to `length` on the right."""
    weight = torch.zeros(2 * len(rows), length)
    tokens = {}
    for half, side in enumerate(SIDES):
        responses = [getattr(row, side) for row in rows]
        for place, response in enumerate(responses, start=half * len(rows)):
            weight[place, : len(response.weight)] = response.weight
        tokens[f"{side}_selected"] = sum(int((response.weight[1:] > 0).sum()) for response in responses)
        tokens[f"{side}_responses"] = sum(response.length for response in responses)
    return Batch(weight[:, 1:].to(device), torch.tensor([row.side for row in rows], device=device), tokens)


class NoReference:
    """Stands where the host has its reference model, for a loss that has none."""

    model = None

    def __bool__(self) -> bool:
        return False

    def eval(self) -> None:
        """Nothing to do."""


class PairTrainer(Accounted, DPOTrainer):
    """The host's DPO trainer, whose loop hands what the forward pass returns to the loss without reading it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.full_logits = self.run.options.finepref_full_logits
        self.loss_fn = self.pair_loss

    @abstractmethod
    def losses(self, policy: Any, reference: Any, batch: Batch) -> tuple[ops.LossOut, dict[str, Tensor]]:
        """The stage's loss of each pair and metrics [B]; `reference` is None for a loss that has none."""

    def concatenated_forward(
        self, model: Any, chosen_ids: Tensor, c_mask: Tensor, reject_ids: Tensor, r_mask: Tensor, rows: list[PairRow]
    ) -> tuple[Any, Any, Any, int]:
        """(logits, batch, balancing loss, 0) for `pair_loss`."""
        if isinstance(model, NoReference):
            return None, None, 0, 0
        ids, mask, _ = self.concatenated_inputs(chosen_ids, c_mask, reject_ids, r_mask, [])
        batch = batch_of(rows, ids.shape[1], ids.device)
        ring = self.strategy.ring_attn_group
        logits, output = forward.run(model, ids, mask, batch.weight > 0, ring=ring, full=self.full_logits)
        return logits, batch, output.get("aux_loss", 0), 0

    def pair_loss(self, policy: Any, batch: Batch, reference: Any, _: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss over all processes, and the rewards [B]."""
        out, metrics = self.losses(policy, reference, batch)
        for logits in filter(None, (policy, reference)):
            logits.logits = None  # the host keeps what it was given until after its next forward pass
        if torch.is_grad_enabled():  # evaluation has none
            self.count(**batch.tokens)
            self.add(metrics, out.valid)
        return ops.reduce(out), out.chosen_reward, out.rejected_reward
