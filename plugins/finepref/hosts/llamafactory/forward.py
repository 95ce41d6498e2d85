"""Forward passes of the trainers on LLaMA-Factory: the values at the tokens that a loss reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.loss.loss_utils import LOSS_MAPPING

from finepref.hosts import token_values
from finepref.hosts.llamafactory.reference import reference_model
from finepref.hosts.sharing import Model
from finepref.hosts.token_values import AllLogits, Pass, TokenValues, Wanted
from finepref.hosts.trees import Trees
from finepref.losses.positions import needed_positions, place_at


class Rows(NamedTuple):
    """The rows of a forward pass.

    Attributes:
        inputs: of the model, all of the same layout as `input_ids` [M, L].
        labels: [M, L], token ids where a token may be needed.
        needed: bool [M, T], in label space: the tokens that the loss reads.
        count: how many there are, so that nobody waits for an accelerator to know it; None if unknown.
        rejected_from: see `Wanted`; 0 if unknown.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    needed: Tensor
    count: int | None = None
    rejected_from: int = 0

    @property
    def wanted(self) -> Wanted:
        """The needed tokens as positions."""
        positions = needed_positions(self.needed, self.count)
        targets = torch.nn.functional.pad(self.labels[:, 1:], (0, 1)).flatten()[positions].clamp(min=0)
        marked = torch.nn.functional.pad(self.needed, (0, 1))
        return Wanted(
            positions, targets, lambda values: place_at(values, positions, marked)[:, :-1], self.rejected_from
        )


def shares(trainer: Any, model: Any) -> bool:
    """Whether records are read as trees. Every rank must call this in its first step, where it is tried.

    Args:
        trainer: a trainer of the host with `sharing`, a `Sharing` or None.
        model: the policy, as the host has wrapped it.
    """

    def models() -> Iterator[Model]:
        for each in (model, trainer.ref_model):
            if each is not None:
                yield Model(trainer.accelerator.unwrap_model(each), partial(logits, each))

    return trainer.sharing is not None and trainer.sharing.try_once(models)


def trees_of(trainer: Any, made: Mapping[str, Any]) -> Trees:
    """Trees of a batch, see `trees.make`."""
    return Trees.of(made, trainer.sharing.mask)


class Alone:
    """In place of a trainer in `values`, for a model that none has wrapped."""

    def __init__(self, run: Any) -> None:
        self.run, self.accelerator = run, self

    def unwrap_model(self, model: Any) -> Any:
        """The model itself."""
        return model


def values(
    trainer: Any,
    model: Any,
    rows: Rows | Trees,
    *,
    with_reference: bool = False,
    kl: str = "",
    known: Tensor | None = None,
) -> TokenValues:
    """Values of the policy, and of the reference if it is read.

    Args:
        trainer: a trainer of the host with a `run`.
        model: the policy, as the host has wrapped it.
        rows: what is read. With `full_logits` they are no trees.
        with_reference: whether the reference is read.
        kl: as `Stage.kl`.
        known: log pi_ref [M, T] of a file (`reference_cache`), 0 where not needed, in place of the reference's pass.
    """
    if known is not None:
        own = values(trainer, model, rows)
        return own._replace(reference=known)
    if trainer.run.options.full_logits:
        return _of_all_logits(trainer, model, rows, with_reference=with_reference, kl=kl)
    wanted, reference = rows.wanted, None
    policy = _pass(trainer, model, rows)
    if with_reference:
        with reference_model(trainer, model) as frozen:
            theirs = _pass(trainer, frozen, rows)
            reference = token_values.read_reference(theirs, wanted, policy.network, kl=kl)
    return token_values.read(policy, wanted, reference, kl=kl)


def reference_logps(trainer: Any, model: Any, rows: Rows | Trees) -> Tensor:
    """log pi_ref [M, T] alone."""
    with reference_model(trainer, model) as frozen:
        return values(trainer, frozen, rows).logps


@contextmanager
def mean_nll(trainer: Any, model: Any, rows: Rows) -> Iterator[None]:
    """In the context, the model's own loss is computed from log-probabilities of the needed tokens alone.

    It is the mean of -log pi over them, or over `num_items_in_batch`, as the host asks for. Another loss than the
    usual one of language models stays as it is.
    """
    passed = _pass(trainer, model, rows)
    network = passed.network.get_base_model() if hasattr(passed.network, "get_base_model") else passed.network
    usual = getattr(network, "loss_function", None)
    if usual is not LOSS_MAPPING["ForCausalLM"]:
        yield
        return
    wanted = rows.wanted

    def loss(logits: Tensor, *_: Any, num_items_in_batch: Any = None, **options: Any) -> Tensor:
        total = -wanted.place(logits[0, :, 0]).sum()
        return total / (rows.needed.sum() if num_items_in_batch is None else num_items_in_batch)

    with token_values.in_place_of_logits(passed, wanted) as done:
        if done:
            network.loss_function = loss
        try:
            yield
        finally:
            network.loss_function = usual


def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """One forward pass by the host's arguments."""
    return model(**inputs, return_dict=True, use_cache=False).logits


def _pass(trainer: Any, model: Any, rows: Rows | Trees) -> Pass:
    def one(ids: Tensor) -> Tensor:
        return logits(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    return Pass(trainer.accelerator.unwrap_model(model), lambda: logits(model, rows.inputs), one)


def _of_all_logits(trainer: Any, model: Any, rows: Rows, *, with_reference: bool, kl: str) -> TokenValues:
    reference = None
    if with_reference:
        with reference_model(trainer, model) as frozen:
            reference = AllLogits(logits(frozen, rows.inputs), rows.labels, rows.needed)
    return AllLogits(logits(model, rows.inputs), rows.labels, rows.needed).values(reference, kl=kl)
