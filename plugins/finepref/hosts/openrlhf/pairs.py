"""Shape "pair" on OpenRLHF: rows with token weights, batches of them, and the host's DPO trainer with our loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from openrlhf.datasets import RewardDataset
from openrlhf.models import Actor
from openrlhf.trainer.dpo_trainer import DPOTrainer
from torch import Tensor

from finepref.formats.problems import BadData
from finepref.hosts import packed, reference_cache, trees
from finepref.hosts.openrlhf import cached_reference, data, forward, training
from finepref.hosts.openrlhf.command_line import Request
from finepref.hosts.openrlhf.notes import Notes
from finepref.hosts.openrlhf.stored_rows import IDS, WEIGHTS, TokenisedRows, Values
from finepref.hosts.openrlhf.training import Accounted, Sharer
from finepref.hosts.reading import Sourced
from finepref.hosts.run import Run
from finepref.hosts.token_values import Reference, TokenValues
from finepref.losses import ops
from finepref.methods.batches import Pairs, Response, Weights
from finepref.methods.overlong import NOTHING_SELECTED
from finepref.methods.pair_rows import SIDES, PairRow, weigh_all


class WeightedResponse(NamedTuple):
    """Prompt and response: ids int32 [L], weight [L] of each token, and the number of response tokens."""

    ids: Tensor
    weight: Tensor
    length: int


class PairSequences(NamedTuple):
    """One tokenised pair; `side`, `margin` as in `finepref.methods.batches.Weights`; log pi_ref, if it is kept."""

    chosen: WeightedResponse
    rejected: WeightedResponse
    side: int
    margin: float = 0.0
    reference: Sequence[np.ndarray] | None = None


SCHEMA = pa.schema(
    {"prompt": IDS, "side": pa.int8(), "margin": pa.float32()}
    | {
        f"{side}_{name}": kind
        for side in SIDES
        for name, kind in ({"ids": IDS, "length": pa.int32()} | WEIGHTS).items()
    }
)
"""Columns of stored pairs; the weights are those of prompt and response."""


def tokenise(
    found: Iterable[Sourced],
    encoder: data.Encoder,
    name: str,
    notes: Notes,
    path: Path | None = None,
    *,
    weigh: Callable[[PairRow], Weights],
) -> TokenisedRows:
    """Tokenise pairs and weigh their tokens.

    Args:
        found: the records.
        encoder: tokenises prompts and responses.
        name: name of the data, for the progress bar.
        notes: where it is noted what becomes of each record.
        path: file of the rows; None for memory.
        weigh: `Stage.weigh` with options and seed.
    """
    return TokenisedRows.of(_columns(found, encoder, name, notes, weigh), SCHEMA, pair_of, path)


def _columns(
    found: Iterable[Sourced], encoder: data.Encoder, name: str, notes: Notes, weigh: Callable[[PairRow], Weights]
) -> Iterator[dict[str, Any]]:
    for source in data.watched(found, name):
        pair = data.tokenised_pair(source, encoder, notes)
        if pair is None:
            continue
        try:
            weights = weigh(PairRow.of(pair.row))
        except BadData as error:
            if pair.cut and _can_be_weighed(pair.whole, weigh):
                notes.skip(source, NOTHING_SELECTED)
            else:
                notes.reject(source, error.problems)
            continue
        notes.keep(source, pair.cut)
        yield _stored(pair.row, weights)


def _stored(row: dict[str, Any], weights: Weights) -> dict[str, Any]:
    """The columns of a tokenised pair with its weights."""
    prompt = next((i for i, label in enumerate(row["chosen_labels"]) if label >= 0), len(row["chosen_labels"]))
    stored: dict[str, Any] = {"prompt": packed.ids(row["chosen_input_ids"][:prompt]), "side": weights.side}
    stored["margin"] = weights.margin
    for side, weight in zip(SIDES, (weights.chosen, weights.rejected), strict=True):
        stored[f"{side}_ids"] = packed.ids(row[f"{side}_input_ids"][prompt:])
        stored[f"{side}_length"] = sum(label >= 0 for label in row[f"{side}_labels"])
        stored |= {f"{side}_{name}": values for name, values in packed.weight(weight).items()}
    return stored


def pair_of(values: Values, rows: TokenisedRows) -> PairSequences:
    """The pair of these columns."""
    return PairSequences(
        *(_response(values, side) for side in SIDES),
        values["side"],
        values["margin"],
        values.get(cached_reference.NAME),
    )


def texts_of(rows: TokenisedRows) -> reference_cache.Texts:
    """The texts of stored pairs."""

    def row(index: int) -> tuple[Any, list[Any]]:
        values = rows.values(index)
        return values["prompt"], [values[f"{side}_ids"] for side in SIDES]

    tables = (pa.Table.from_batches([batch]) for batch in rows.batches)
    return reference_cache.texts_of(tables, [(f"{side}_ids", "") for side in SIDES], row)


def _response(values: Values, side: str) -> WeightedResponse:
    ids = torch.from_numpy(np.concatenate([values["prompt"], values[f"{side}_ids"]]))
    weight = packed.weight_of(values[f"{side}_marks"], values[f"{side}_weight"], len(ids))
    return WeightedResponse(ids, torch.tensor(weight), values[f"{side}_length"])


def _can_be_weighed(row: dict[str, Any], weigh: Callable[[PairRow], Weights]) -> bool:
    try:
        weigh(PairRow.of(row))
    except BadData:
        return False
    return True


class PairDataset(RewardDataset):
    """Data set for the host's loader. The fifth item of a batch is a `Batch`, which the host passes on unread.

    Args:
        rows: the tokenised rows.
        tokenizer: the host's.
        arguments, options: further ones of the host.
        is_dpo: as the host passes it.
        grouped: whether a micro-batch has rows of similar length.

    Attributes:
        shares: whether batches have trees; the trainer sets it.
    """

    shares = False

    def __init__(
        self,
        rows: TokenisedRows,
        tokenizer: Any,
        *arguments: Any,
        is_dpo: bool = False,
        grouped: bool = False,
        **options: Any,
    ) -> None:
        self.rows, self.tokenizer, self.is_dpo, self.grouped = rows, tokenizer, is_dpo, grouped
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # seen by the loader's processes

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self) -> np.ndarray:
        """Tokens of the longest sequence of each row, [N]."""
        chosen, rejected = (self.rows.list_lengths(f"{side}_ids") for side in SIDES)
        return self.rows.list_lengths("prompt") + np.maximum(chosen, rejected)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        row = self.rows[index]
        return *masked(row.chosen.ids), *masked(row.rejected.ids), row

    def collate_fn(self, items: list[tuple[Any, ...]]) -> tuple[Any, ...]:
        """The host's batch with the `Batch` of its rows, made here on the CPU and moved once."""
        *inputs, rows = super().collate_fn(items)
        return *inputs, self.batch_of(rows)

    def batch_of(self, rows: list[Any]) -> Any:
        """The fifth item of a batch."""
        return batch_of(rows, shares=self.shares)


def masked(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Ids [1, L] and their attention mask, as the host's collator takes them."""
    ids = ids.long().unsqueeze(0)
    return ids, torch.ones_like(ids)


class Batch(NamedTuple):
    """The weights of a micro-batch.

    Attributes:
        weight: [2B, T] in label space, the chosen half first.
        side, margin: [B], see `finepref.methods.batches.Weights`.
        tokens: for each side, the number of response tokens and of those with a weight.
        reference: [2B, T], log pi_ref of all response tokens, if it is kept.
        trees: see `trees.make`; None if there are none.
    """

    weight: Tensor
    side: Tensor
    margin: Tensor
    tokens: dict[str, int]
    reference: Tensor | None = None
    trees: dict[str, Any] | None = None

    @property
    def needed(self) -> int:
        """How many tokens have a weight."""
        return sum(self.tokens[f"{side}_selected"] for side in SIDES)

    @property
    def rejected_from(self) -> int:
        """How many of them are in chosen responses, which come first."""
        return self.tokens["chosen_selected"]


def batch_of(rows: list[PairSequences], *, shares: bool = False) -> Batch:
    """The weights of a micro-batch whose responses are padded on the right, and its trees if they are wanted."""
    length = max(len(response.weight) for row in rows for response in (row.chosen, row.rejected))
    weight = torch.zeros(2 * len(rows), length)
    tokens = {}
    for half, side in enumerate(SIDES):
        responses = [getattr(row, side) for row in rows]
        for place, response in enumerate(responses, start=half * len(rows)):
            weight[place, : len(response.weight)] = response.weight
        tokens[f"{side}_selected"] = sum(int((response.weight[1:] != 0).sum()) for response in responses)
        tokens[f"{side}_responses"] = sum(response.length for response in responses)
    reference = made = None
    if rows[0].reference is not None:
        kept = [row.reference[half] for half in range(len(SIDES)) for row in rows]
        lengths = [len(getattr(row, side).ids) for side in SIDES for row in rows]
        reference = cached_reference.placed(kept, lengths)
    if shares:
        responses = [getattr(row, side) for side in SIDES for row in rows]
        read = [trees.Row(each.ids.numpy(), (each.weight != 0).numpy()) for each in responses]
        made = trees.make(read, [[i, len(rows) + i] for i in range(len(rows))], length, chosen=len(rows))
    side, margin = (torch.tensor([getattr(row, name) for row in rows]) for name in ("side", "margin"))
    return Batch(weight[:, 1:].contiguous(), side, margin, tokens, reference, made)


class PairTrainer(Sharer, Accounted, DPOTrainer):
    """The host's DPO trainer with our loss. Its loop passes the result of the forward pass to the loss unread."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.kl_use = self.run.stage.kl_use(self.run.options)
        self.loss_fn = self.pair_loss
        self.share()

    def concatenated_forward(
        self,
        model: Any,
        chosen_ids: Tensor,
        c_mask: Tensor,
        reject_ids: Tensor,
        r_mask: Tensor,
        batch: Batch,
    ) -> tuple[Any, Any, Any, int]:
        """(values, batch, balancing loss, 0) for `pair_loss`.

        The host calls this for the policy, then for the reference, whose values the policy's call has read already.
        """
        if model is self.ref_model:
            return None, None, 0, 0
        ids, mask, _ = self.concatenated_inputs(chosen_ids, c_mask, reject_ids, r_mask, [])
        batch = training.moved(batch, ids.device)
        rows: forward.Rows | trees.Trees
        if self.shares() and batch.trees is not None:
            rows = trees.Trees.of(batch.trees, self.sharing.mask)
        else:
            ring, full = self.strategy.ring_attn_group, self.run.options.full_logits
            rows = forward.Rows(ids, mask, batch.weight != 0, batch.needed, ring, full, batch.rejected_from)
        reference = None
        if batch.reference is not None:
            reference = Reference(torch.where(batch.weight != 0, batch.reference, 0.0))
        elif self.run.stage.needs_reference(self.run.options):
            reference = forward.reference_of(self.ref_model, rows, model, kl=self.kl_use)
        values, output = forward.values(model, rows, reference, kl=self.kl_use)
        return values, batch, output.get("aux_loss", 0), 0

    def pair_loss(self, values: TokenValues, batch: Batch, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss over all processes, and the rewards [B]."""
        out, metrics = self.run.stage.losses(self.inputs(values, batch), self.run.options)
        if torch.is_grad_enabled():  # evaluation has none
            self.count(**batch.tokens)
            self.meter.add_values("train", metrics, out.valid)
        return ops.reduce(out), out.chosen_reward, out.rejected_reward

    def inputs(self, values: TokenValues, batch: Batch) -> Any:
        """The input of the stage's loss."""
        parts = (values.logps, batch.weight, values.reference, values.kl)
        halves = zip(*((None, None) if part is None else part.chunk(2) for part in parts), strict=True)
        return Pairs(*(Response(*half) for half in halves), batch.side, batch.margin)


def prepare(request: Request) -> Callable[[], None]:
    """Check data and options. Returns the function that trains. Raises as `training.prepare`."""
    stage, options = request.stage, request.options
    weigh = partial(stage.weigh or weigh_all, options=options, seed=request.host.train.seed)
    tokenising = partial(tokenise, weigh=weigh)
    run, splits = training.prepare(request, padding_side="right", tokenise=tokenising, make=pair_of)
    return host_train(request, run, splits, texts_of, dataset=PairDataset, trainer=PairTrainer)


def host_train(
    request: Request,
    run: Run,
    splits: list[TokenisedRows],
    texts_of: Callable[[TokenisedRows], reference_cache.Texts],
    *,
    dataset: type[PairDataset],
    trainer: type[PairTrainer],
) -> Callable[[], None]:
    """The function that trains by the host's DPO command line, with a reference as the options want it.

    Args:
        request: the parsed command line.
        run: the run.
        splits: rows to train on, and rows to evaluate on.
        texts_of: makes the texts of a split.
        dataset: class of the data sets.
        trainer: class of the trainer.
    """
    stage, options = request.stage, request.options
    shared = stage.needs_reference(options) and not options.caches_reference
    names = training.sharing(request) if shared else {}
    cached = None
    if options.caches_reference:
        cached = cached_reference.CachedReference(run, request, splits, texts_of)
        names = cached.actors()
    elif not stage.needs_reference(options):
        models = iter((Actor, lambda *arguments, **rest: training.NoReference()))  # the host makes the policy first
        names["Actor"] = lambda *arguments, **rest: next(models)(*arguments, **rest)
    made = partial(trainer, cached=cached, **training.trainer_options(run, request, stage.metrics))
    rows = partial(dataset, grouped=options.finepref_group_by_length)
    train = training.host_train(stage.of_shape.openrlhf_module, splits, rows, DPOTrainer=made, **names)
    return partial(train, request.host)
