"""One run on OpenRLHF: everything is checked, then the host's own `train` runs with four of its names rebound."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from openrlhf.utils import get_tokenizer
from torch import Tensor
from torch import distributed as dist

from finepref import stages
from finepref.formats.problems import BadData, Problem
from finepref.hosts import patching, receipt
from finepref.hosts.openrlhf import data
from finepref.hosts.openrlhf.command_line import Asked
from finepref.hosts.openrlhf.strategy import WholeBatchStrategy
from finepref.losses.ops import sum_over_ranks


class Rows(list):
    """Tokenised rows, as the host's `train` handles data: it selects a range of them."""

    def select(self, indices: Sequence[int]) -> Rows:
        """The rows at some places."""
        return Rows(self[i] for i in indices)


@dataclass
class Run:
    """What a trainer needs to know beside the host's arguments."""

    stage: stages.Stage
    options: Any
    record: receipt.Receipt
    folder: Path


def prepare(
    asked: Asked,
    *,
    padding_side: str,
    arrange: Callable[[list[data.Sourced]], list[data.Sourced]] = list,
    tokenise: Callable[[list[data.Sourced], data.Encoder, str], tuple[Rows, list[Problem]]],
) -> tuple[Run, list[Rows]]:
    """Read, check and tokenise the data; nothing has been loaded then but the tokenizer.

    Args:
        arrange: what happens to the records first.
        tokenise: (records, encoder, name of the data) -> (rows, problems).

    Returns:
        The run, and the rows of `--data.dataset` and, where it is given, `--eval.dataset`.

    Raises:
        BadData: the data cannot be trained on.
        ValueError: there is no whole batch of it, or the tokenizer does not fit.
    """
    args = asked.host
    fast = not args.data.disable_fast_tokenizer
    tokenizer = get_tokenizer(args.model.model_name_or_path, None, padding_side, None, use_fast=fast)
    encoder = data.Encoder(tokenizer, args.data)
    record = receipt.Receipt(stage=asked.stage.name, settings=asdict(asked.options))
    splits: list[Rows] = []
    problems: list[Problem] = []
    used: list[int] = []
    for names, limit in ((args.data.dataset, args.data.max_samples), (args.eval.dataset, None)):
        if names:
            found, entries = data.read(data.sources(names, args.data, asked.stage.formats))
            found = arrange(found)[:limit]
            rows, wrong = tokenise(found, encoder, names)
            splits.append(rows)
            record.datasets += entries
            used.append(sum(source.rows for source in found))
            problems += wrong
    if problems:
        raise BadData(problems)
    if len(splits[0]) < args.train.batch_size:
        raise ValueError(f"{len(splits[0])} records make no batch of --train.batch_size {args.train.batch_size}")
    read = sum(entry.read or 0 for entry in record.datasets)
    record.rows = {
        "read": read,
        "trained": used[0],
        "evaluated": sum(used[1:]),
        "skipped_by_max_samples": read - sum(used),
        "rejected": 0,
    }
    record.extra["records_left_out_per_epoch"] = len(splits[0]) % args.train.batch_size
    return Run(asked.stage, asked.options, record, Path(args.ckpt.output_dir)), splits


def rebind(function: FunctionType, **names: Any) -> FunctionType:
    """The same function over other objects of these names; its module stays as it is.

    Raises:
        HostDrift: the function does not use one of the names.
    """
    unknown = set(names) - set(function.__code__.co_names)
    if unknown:
        raise patching.HostDrift(
            f"{function.__module__}.{function.__name__} does not use {', '.join(sorted(unknown))}"
        )
    return FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__)


def host_train(module: str, splits: list[Rows], dataset: Any, **names: Any) -> Callable[[Any], None]:
    """The host's `train` of one of its command lines, on our rows, in whole batches."""
    order = iter(splits)  # the host asks for its training data first
    return rebind(
        importlib.import_module(module).train,
        blending_datasets=lambda *arguments, **options: next(order),
        RewardDataset=dataset,
        get_strategy=WholeBatchStrategy.of,
        **names,
    )


class Accounted:
    """Mix-in of our trainers, before the host's: metrics over all processes, and the receipt.

    Every micro-batch must call `count`; `add` takes what is to be logged beside the host's own.
    """

    def __init__(self, *arguments: Any, run: Run, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.run = run
        self.last_step = 0
        self.counts: Counter[str] = Counter()  # whole numbers of this process, for the receipt
        self.sums: dict[str, Tensor] = {}

    def count(self, **numbers: int) -> None:
        """Note a training micro-batch."""
        self.run.record.loss_calls += 1
        self.counts.update(numbers)

    def add(self, metrics: dict[str, Tensor], valid: Tensor) -> None:
        """Sum metrics [B] over the valid records until the next optimizer step."""
        for name, value in {**metrics, "": torch.ones_like(valid, dtype=torch.float32)}.items():
            total = torch.where(valid, value.detach().float(), 0.0).sum()
            self.sums[name] = self.sums.get(name, 0.0) + total

    def means(self) -> dict[str, float]:
        """The means of what was added, over all processes. Every process must call this."""
        totals = {name: sum_over_ranks(total).item() for name, total in self.sums.items()}
        self.sums = {}
        count = totals.pop("", 0.0)
        return {name: total / count for name, total in totals.items()} if count else {}

    def fit(self, args: Any, consumed_samples: int = 0, num_update_steps_per_epoch: int | None = None) -> None:
        """The host's; the run fails if our loss was not called for every micro-batch."""
        self.run.record.first_step = self.last_step = consumed_samples // args.train.batch_size
        super().fit(args, consumed_samples, num_update_steps_per_epoch)
        content = self.write_receipt(self.run.folder)
        calls = [rank["loss_calls"] for rank in content["ranks"]]
        if set(calls) != {content["expected_loss_calls"]}:
            expected = content["expected_loss_calls"]
            raise receipt.UnprovenRun(f"{self.run.stage.name}: expected {expected} loss calls a rank, found {calls}")

    def save_logs_and_checkpoints(
        self, args: Any, global_step: int, step_bar: Any, logs_dict: Any = None, client_states: Any = None
    ) -> None:
        """The host's, with our metrics, and a receipt in every checkpoint."""
        self.last_step = global_step
        logs = {**(logs_dict or {}), **self.means()}
        super().save_logs_and_checkpoints(args, global_step, step_bar, logs, client_states)
        if global_step % args.ckpt.save_steps == 0:
            tag = Path(args.ckpt.path, f"global_step{global_step}")
            written = [] if self.disable_ds_ckpt else [tag]
            self.write_receipt(*written, *([tag.with_name(f"{tag.name}_hf")] if self.save_hf_ckpt else []))

    def rank_report(self) -> dict[str, Any]:
        """This process's part of the receipt."""
        return {}

    def run_report(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """The run's part of the receipt."""
        return {}

    def write_receipt(self, *folders: Path) -> dict[str, Any]:
        """Gather all processes (every one must call this) and write on the first one."""
        record, row, accumulation = self.run.record, self.run.stage, self.strategy.accumulated_gradient
        mine = {
            "rank": dist.get_rank(),
            "loss_calls": record.loss_calls,
            "cards": patching.report(row.openrlhf_cards),
            "counts": dict(sorted(self.counts.items())),
            **self.rank_report(),
        }
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, mine)
        content = {
            "stage": row.name,
            "host": "openrlhf",
            "paper": row.paper,
            "settings": record.settings,
            "seed": self.args.train.seed,
            "versions": receipt.versions(),
            "datasets": [asdict(entry) for entry in record.datasets],
            "rows": record.rows,
            **record.extra,
            "optimizer_steps": self.last_step - record.first_step,
            "first_step": record.first_step,
            "gradient_accumulation_steps": accumulation,
            "expected_loss_calls": (self.last_step - record.first_step) * accumulation,
            "ranks": ranks,
            **self.run_report(ranks),
        }
        for folder in folders if dist.get_rank() == 0 else ():
            receipt.write(folder, content)
        return content
