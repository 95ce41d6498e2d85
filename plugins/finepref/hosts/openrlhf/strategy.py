"""The host's DeepSpeed strategy with whole batches: the rows of an epoch are a multiple of the batch size.

OpenRLHF 0.11 resumes wrongly if the rows are not a multiple of the batch size (#1350): it counts only whole batches as
steps, but also trains on the rows that are left over. After a resume, rows are skipped and the learning rate schedule
ends early. Here the rows that do not fill a batch are left out, different ones in every epoch, because the host
shuffles first. The receipt says how many they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from openrlhf.utils.deepspeed import DeepspeedStrategy
from openrlhf.utils.distributed_sampler import DistributedSampler
from torch import distributed as dist

from finepref.hosts.batching import grouped
from finepref.hosts.openrlhf import compat


class WholeBatches(DistributedSampler):
    """The host's sampler, limited to whole batches. It also sets the epoch of the data set.

    Args:
        dataset: one of our data sets.
        batch_size: rows of an optimizer step on all processes.
        micro_batch_size: rows of a micro-batch on one process; with it, those of all processes have similar lengths.
            As each process takes every n-th row, its own have too. A step stays a slice of the order of the epoch, so
            that the host's count of consumed rows holds.
        kwargs: as for the host's.
    """

    def __init__(self, dataset: Any, *, batch_size: int, micro_batch_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(dataset, drop_last=True, **kwargs)
        self.total_size = len(dataset) // batch_size * batch_size
        self.num_samples = self.total_size // self.num_replicas
        self.slice = micro_batch_size and micro_batch_size * self.num_replicas
        self.lengths = dataset.lengths() if self.slice else None
        self._order: tuple[int, np.ndarray] | None = None  # an epoch and its order of the rows

    def __iter__(self) -> Any:
        if self.slice is None:
            return super().__iter__()
        mine = self.order()[self.rank : self.total_size : self.num_replicas]
        return iter(mine[self.consumed_indicies :].tolist())

    def set_epoch(self, epoch: int, consumed_samples: int = 0) -> None:
        super().set_epoch(epoch, consumed_samples)
        self.dataset.epoch.fill_(epoch)

    def step_rows(self, step: int, batch_size: int) -> list[int]:
        """Indices of the rows that all processes train on in optimizer step `step` (from 0) of this epoch."""
        return self.order()[step * batch_size : (step + 1) * batch_size].tolist()

    def order(self) -> np.ndarray:
        """The rows of this epoch in their order; those behind `total_size` are left out."""
        if self._order is None or self._order[0] != self.epoch:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            rows = torch.randperm(len(self.dataset), generator=generator).numpy()
            if self.slice is not None:
                rows = grouped(rows[: self.total_size], self.lengths, self.slice, self.seed, self.epoch)
            self._order = self.epoch, rows
        return self._order[1]


class WholeBatchStrategy(DeepspeedStrategy):
    """The strategy that our command lines use instead of the host's."""

    @classmethod
    def of(cls, args: Any) -> WholeBatchStrategy:
        """Make the strategy from the host's arguments, as the host's `get_strategy` does."""
        return cls(
            seed=args.train.seed,
            full_determinism=args.train.full_determinism_enable,
            max_norm=args.max_norm,
            micro_train_batch_size=args.train.micro_batch_size,
            train_batch_size=args.train.batch_size,
            zero_stage=args.ds.zero_stage,
            args=args,
        )

    def setup_dataloader(
        self,
        replay_buffer: Any,
        batch_size: int,
        pin_memory: bool = False,
        shuffle: bool = True,
        collate_fn: Any = None,
        drop_last: bool = True,
        sampler: Any = None,
        consumed_samples: int = 0,
        num_workers: int = 0,
    ) -> Any:
        """The host's data loader. Training data, recognised by `shuffle`, comes in whole batches."""
        if shuffle and sampler is None:
            group = self.ds_device_mesh["dp"].get_group()
            sampler = WholeBatches(
                replay_buffer,
                batch_size=self.train_batch_size,
                micro_batch_size=batch_size if replay_buffer.grouped else None,
                num_replicas=dist.get_world_size(group),
                rank=dist.get_rank(group),
                seed=self.seed,
                consumed_samples=consumed_samples,
            )
        return super().setup_dataloader(
            replay_buffer,
            batch_size,
            pin_memory and not compat.is_cpu(),
            shuffle,
            collate_fn,
            drop_last,
            sampler,
            consumed_samples,
            num_workers,
        )

    def save_model(self, model: Any, tokenizer: Any, output_dir: str, **kwargs: Any) -> None:
        """Save as the host does, but tied weights once: it gives transformers copies, which do not look tied."""
        inner = self._unwrap_model(model)
        save = inner.save_pretrained

        def save_pretrained(*arguments: Any, state_dict: Any = None, **options: Any) -> None:
            if state_dict is not None:
                tied = getattr(inner, "all_tied_weights_keys", None) or {}
                state_dict = {name: tensor for name, tensor in state_dict.items() if name not in tied}
                options["state_dict"] = state_dict
            save(*arguments, **options)

        inner.save_pretrained = save_pretrained
        try:
            super().save_model(model, tokenizer, output_dir, **kwargs)
        finally:
            del inner.save_pretrained
