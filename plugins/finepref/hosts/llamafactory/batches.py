"""Which rows a micro-batch of our trainers has: by the host's number of rows, or by a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from llamafactory.extras import logging
from torch import Tensor
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from finepref.hosts import list_columns
from finepref.hosts.batching import TokenBatches, Units, random_padding, shuffled, side_by_side
from finepref.hosts.llamafactory.streams import of_one
from finepref.hosts.llamafactory.verdicts import column
from finepref.losses import ops
from finepref.losses.ranks import sum_over_ranks
from finepref.methods.options import Options

logger = logging.get_logger("llamafactory.finepref")  # the host shows what is below its own name


def refuse(training_args: Any, data_args: Any, options: Options) -> None:
    """Raise ValueError for settings of the host that contradict a budget of tokens."""
    if options.finepref_batch_tokens is None:
        return
    config, name = training_args.accelerator_config, options.key("finepref_batch_tokens")
    for key, given, why in (
        ("streaming", data_args.streaming, "the lengths of a stream's rows are not known"),
        ("auto_find_batch_size", training_args.auto_find_batch_size, "it changes a number of rows"),
        ("accelerator_config.split_batches", config.split_batches, "its batches have several numbers of rows"),
        ("accelerator_config.dispatch_batches", config.dispatch_batches, "its batches have several numbers of rows"),
    ):
        if given:
            raise ValueError(f"{name} does not go with `{key}`: {why}")


def list_lengths(dataset: Any, name: str) -> np.ndarray:
    """The length of each list of a column, int64 [N]."""
    return list_columns.lengths(column(dataset, name))


def list_maxima(dataset: Any, name: str) -> np.ndarray:
    """The largest number in each list of a column, int64 [N]; 0 for an empty list."""
    return list_columns.maxima(column(dataset, name))


def list_sums(dataset: Any, name: str) -> np.ndarray:
    """The sum of each list of a column, int64 [N]."""
    return list_columns.sums(column(dataset, name))


class EpochCallback(TrainerCallback):
    """Sets the epoch for which rows are drawn: 0, 1, ..., also in a stream, where the host's is a part of 1.

    After a resume on several processes, accelerate passes the epoch on to its own samplers only.

    Args:
        epoch: int64 [1].
    """

    def __init__(self, epoch: Tensor) -> None:
        self.epoch, self.passes = epoch, -1

    def on_train_begin(self, args, state, control, **kwargs):
        self.passes = int(state.epoch or 0) - 1

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.passes += 1
        self.epoch.fill_(self.passes)


class RowOrder(Sampler):
    """Rows in random order, or grouped by length as transformers does; the rows of a unit are neighbours.

    Args:
        units: see `batching.Units`.
        size: rows of a micro-batch.
        seed: of the order.
        epoch: int64 [1], the epoch to draw for.
        lengths: of the units, to group them; None to shuffle them.
        window: rows of an optimizer step, for the grouping.
    """

    def __init__(
        self,
        units: Units,
        *,
        size: int,
        seed: int,
        epoch: Tensor,
        lengths: Sequence[int] | None = None,
        window: int = 1,
    ) -> None:
        self.units, self.size, self.seed, self.epoch = units, size, seed, epoch
        self.lengths, self.window = lengths, window

    def __len__(self) -> int:
        return int(self.units.size.sum())

    def __iter__(self) -> Iterator[int]:
        return side_by_side(self._order(int(self.epoch)), self.units, self.size)

    def _order(self, epoch: int) -> np.ndarray:
        if self.lengths is None:
            return shuffled(len(self.units.first), self.seed, epoch)
        generator = torch.Generator().manual_seed(self.seed + epoch)
        size = max(1, self.window // int(self.units.size.max()))
        return np.asarray(get_length_grouped_indices(self.lengths, size, generator=generator))


class BatchOrder(Sampler):
    """The rows of each micro-batch, as items of `RowLists`.

    Args:
        batches: what the rows of each epoch are.
        epoch: int64 [1], the epoch to draw for.
    """

    def __init__(self, batches: TokenBatches, epoch: Tensor) -> None:
        self.batches, self.epoch = batches, epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches.of_epoch(int(self.epoch)))


class RowLists(Dataset):
    """Lists of rows as items. So accelerate shares micro-batches of several sizes as it shares rows.

    Args:
        rows: a data set of `datasets`.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: list[int]) -> list[dict[str, Any]]:
        return self.rows.__getitems__(places)


class Batched:
    """Mix-in of our trainers, a base class before the host's: micro-batches, and the mean over an optimizer step.

    With `finepref_batch_tokens`, micro-batches have several numbers of rows. The loss is then the mean over the rows
    of the optimizer step on all processes, so that a row counts the same wherever it stands.

    Args:
        epoch: `epoch_drawn`, if the collator reads it too.

    Attributes:
        adapter: of the stage, which knows how long its rows are; None leaves all to the host.
        row_key: the entry of a batch that has as many values as the batch has rows.
        epoch_drawn: int64 [1], the epoch for which rows and batches are drawn.
        step_rows: rows of the current optimizer step on all processes; None without a budget.
    """

    adapter: Any = None
    row_key: str = ""
    step_rows: Tensor | None = None

    def __init__(self, *, epoch: Tensor | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epoch_drawn = torch.zeros(1, dtype=torch.int64) if epoch is None else epoch
        self.add_callback(EpochCallback(self.epoch_drawn))

    @property
    def batch_tokens(self) -> int | None:
        """The budget of a micro-batch."""
        return self.run.options.finepref_batch_tokens if self.adapter is not None else None

    def get_train_dataloader(self) -> Any:
        """The host's data loader; with a budget, one of `RowLists`."""
        if self.batch_tokens is None:
            return super().get_train_dataloader()
        batches = self.token_batches()
        self._tell(batches)
        sampler, collator = BatchOrder(batches, self.epoch_drawn), self.data_collator
        self.data_collator = partial(of_one, collator)
        try:
            return self._get_dataloader(
                RowLists(self.train_dataset), "Training", 1, sampler_fn=lambda rows: sampler, is_training=True
            )
        finally:
            self.data_collator = collator

    def token_batches(self) -> TokenBatches:
        """The micro-batches of the budget."""
        return TokenBatches(
            self.adapter.row_tokens(self.train_dataset),
            self.adapter.units(self.train_dataset, self.run.options),
            self.batch_tokens,
            processes=self.args.world_size,
            seed=self._order_seed,
            in_order=self._keeps_order,
        )

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """The host's sampler, except that ours knows how long rows are, and which stay together."""
        if self.adapter is None or self._keeps_order:
            return super()._get_train_sampler(*args, **kwargs)
        units = self.adapter.units(self.train_dataset, self.run.options)
        grouped = self.args.train_sampling_strategy == "group_by_length"
        if not grouped and units.size.max() == 1:
            return super()._get_train_sampler(*args, **kwargs)
        lengths = None
        if grouped:
            total = self.adapter.row_tokens(self.train_dataset).total
            lengths = np.maximum.reduceat(total, units.first).tolist()
        size = self.args.train_batch_size
        return RowOrder(
            units,
            size=size,
            seed=self._order_seed,
            epoch=self.epoch_drawn,
            lengths=lengths,
            window=size * self.args.gradient_accumulation_steps,
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """The order of the data, also with `group_by_length`: scores are written row by row."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_eval_sampler(eval_dataset)
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    @property
    def _order_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    @property
    def _keeps_order(self) -> bool:
        """Whether rows are trained on in the order of the data."""
        return self.finetuning_args.disable_shuffling or self.args.train_sampling_strategy == "sequential"

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """The micro-batches of an optimizer step. With a budget, its rows are counted on all processes."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.batch_tokens is not None and self.row_key:
            rows = sum(len(batch[self.row_key]) for batch in batches)
            self.step_rows = sum_over_ranks(torch.full((), rows, dtype=torch.int64, device=device))
        return batches, items

    def row_mean(self, out: ops.LossOut, *, training: bool = True) -> Tensor:
        """The mean over the rows of a micro-batch on all processes; with a budget, its part of the mean over the step,
        scaled so that the mean over the micro-batches is that of the step.

        Args:
            out: the losses.
            training: whether the batch is one of an optimizer step.
        """
        if self.step_rows is None or not training:
            return ops.reduce(out)
        return ops.reduce(out, count=self.step_rows) * self.current_gradient_accumulation_steps

    def _tell(self, batches: TokenBatches) -> None:
        """Log how many batches there are and how much of them is padding, and how it would be without the budget."""
        sizes, processes, rows = batches.sizes, batches.processes, self.args.train_batch_size
        where = f" on each of {processes} processes" if processes > 1 else ""
        before = random_padding(batches.tokens, rows, batches.seed)
        logger.info_rank0(
            f"`finepref_batch_tokens: {batches.budget}`: {len(batches) // processes} micro-batches in an epoch{where} "
            f"with {sizes.min()} to {sizes.max()} rows, {sizes.mean():.1f} in the mean, and {batches.padding():.1%} "
            f"padding. `per_device_train_batch_size: {rows}` would give {-(-sizes.sum() // (rows * processes))} with "
            f"{before:.1%} padding."
        )
        if large := int((batches.tokens.total > batches.budget).sum()):
            logger.info_rank0(f"{large} rows have more tokens than the budget; each is a micro-batch of its own.")
        if batches.repeated:
            logger.info_rank0(
                f"{batches.repeated} micro-batches are trained on twice in an epoch: {sizes.size} cannot be shared "
                f"evenly by {processes} processes."
            )
