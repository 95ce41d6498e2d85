"""One run on OpenRLHF: everything is checked, then the host's own `train` runs with our data, strategy and trainer."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from inspect import unwrap
from itertools import islice
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import torch
from openrlhf.models import Actor
from openrlhf.utils import get_tokenizer
from torch import distributed as dist

from finepref.formats.check import digest
from finepref.hosts import card, patching, receipt, row_cache
from finepref.hosts.evaluating import evaluating
from finepref.hosts.meter import Meter, Tally
from finepref.hosts.openrlhf import data, forward
from finepref.hosts.openrlhf.command_line import Request
from finepref.hosts.openrlhf.notes import Notes
from finepref.hosts.openrlhf.run_setup import resumed_from, setup_of, shares_reference
from finepref.hosts.openrlhf.stored_rows import TokenisedRows, Values
from finepref.hosts.openrlhf.strategy import WholeBatchStrategy
from finepref.hosts.openrlhf.training_log import TrainingLog
from finepref.hosts.reading import Sourced, notes_of
from finepref.hosts.resume import continue_from
from finepref.hosts.rows import Rows
from finepref.hosts.run import Run, Source
from finepref.hosts.sharing import Sharing, why_not_in
from finepref.methods import overlong
from finepref.methods.checks import record_problems
from finepref.methods.pair_rows import fingerprint

Arrange = Callable[[Sequence[Sourced], Notes], Sequence[Sourced]]
Tokenise = Callable[[Iterable[Sourced], data.Encoder, str, Notes, Path], TokenisedRows]
SCHEMA = "tokens-2"
"""To be changed whenever stored rows change their meaning."""


def as_they_are(found: Sequence[Sourced], notes: Notes) -> Sequence[Sourced]:
    """Records of which each is a row."""
    return found


def prepare(
    request: Request,
    *,
    padding_side: str,
    arrange: Arrange = as_they_are,
    rule: overlong.HostRule = data.dpo_rule,
    tokenise: Tokenise,
    make: Callable[[Values, TokenisedRows], Any],
) -> tuple[Run, list[TokenisedRows]]:
    """Read, check and tokenise the data. Only the tokenizer has been loaded by then.

    One process of a machine does so; the others wait, and all open the file that it has written. A later run with the
    same files, options and tokenizer opens it too. The first process prints what is skipped, rejected or cut, and
    writes rejected.jsonl and skipped.jsonl into `--ckpt.output_dir`.

    Args:
        request: the parsed command line.
        padding_side: the tokenizer's, as the host's command line sets it.
        arrange: changes the records before they are checked, e.g. groups them.
        rule: the host's own way to cut.
        tokenise: (records, encoder, name of the data, notes, file) -> rows.
        make: makes a row of its columns, see `TokenisedRows`.

    Returns:
        The run, and the rows of `--data.dataset` and, if given, of `--eval.dataset`.

    Raises:
        BadData: the data cannot be trained on.
        ValueError: the data does not fill a batch, or the tokenizer does not fit.
        UnprovenRun: a row went missing.
    """
    args, stage, options = request.host, request.stage, request.options
    if args.data.max_samples < 1:
        raise ValueError(f"--data.max_samples must be at least 1, not {args.data.max_samples}")
    fast = not args.data.disable_fast_tokenizer
    tokenizer = get_tokenizer(args.model.model_name_or_path, None, padding_side, None, use_fast=fast)
    encoder = data.Encoder(tokenizer, args.data, policy=options.overlong, rule=rule)
    run = Run(stage, options, stage.openrlhf_cards)
    parts = [
        _Part(names, data.sources(names, args.data, stage.formats))
        for names in filter(None, (args.data.dataset, args.eval.dataset))
    ]
    parts[0] = parts[0]._replace(limit=args.data.max_samples)
    run.sources = [source for part in parts for source in part.sources]
    folder = data.cache_dir() / row_cache.name_of(_depends_on(request, parts, encoder))
    report = row_cache.made_once(folder, lambda partial: _made(partial, request, parts, encoder, arrange, tokenise))
    run.datasets = [receipt.DatasetEntry(**entry) for entry in report["datasets"]]
    run.rows.restore(report["rows"])
    run.rows.training, run.rows.evaluation = report["rows"]["training"], report["rows"]["evaluation"]
    splits = [TokenisedRows.opened(folder / f"{i}.arrow", make) for i in range(len(parts))]
    first = os.environ.get("RANK", "0") == "0"
    if first:
        tell(run)
    if len(splits[0]) < args.train.batch_size:
        raise ValueError(f"{len(splits[0])} records make no batch of --train.batch_size {args.train.batch_size}")
    if not all(splits):
        raise ValueError(f"--eval.dataset {args.eval.dataset}: no record is left to evaluate on")
    if first:
        run.rows.write(Path(args.ckpt.output_dir))
    run.more["records_left_out_per_epoch"] = len(splits[0]) % args.train.batch_size
    return run, splits


class _Part(NamedTuple):
    """The data sets of `--data.dataset` or of `--eval.dataset`, and the most records to use."""

    names: str
    sources: list[Source]
    limit: int | None = None


def _depends_on(request: Request, parts: list[_Part], encoder: data.Encoder) -> list[Any]:
    """All that the tokenised rows of a run depend on."""
    args, stage, tokenizer = request.host, request.stage, encoder.tokenizer
    own = [function for function in (stage.weigh, stage.check_record, stage.check_data) if function]
    code = {unwrap(function).__module__ for function in own}
    sets = [
        [source.name, source.formatting, dict(source.columns or {}), source.error_type, dict(source.tags or {})]
        + [[str(path), row_cache.sha256(path, data.cache_dir())] for path in source.files]
        for part in parts
        for source in part.sources
    ]
    return [
        [SCHEMA, row_cache.SCHEMA, version("finepref"), stage.name, repr(request.options)],
        sorted(digest(sys.modules[name].__file__ or "") for name in code),  # a stage of the user's may change
        [[part.names, part.limit, len(part.sources)] for part in parts],
        sets,
        [fingerprint(tokenizer), tokenizer.eos_token, tokenizer.chat_template],
        [encoder.chat, encoder.template, encoder.longest, args.train.seed],
    ]


def _made(
    folder: Path, request: Request, parts: list[_Part], encoder: data.Encoder, arrange: Arrange, tokenise: Tokenise
) -> dict[str, Any]:
    """Read, check and tokenise the data into a folder. Returns what is to be known of it."""
    rows, bad_rows = Rows(), request.options.bad_rows
    rows.rejected = bad_rows.codes
    notes = Notes(rows, bad_rows)
    found = [data.read(part.sources, bad_rows) for part in parts]
    notes.settle()
    checked = []
    for part, (records, entries) in zip(parts, found, strict=True):
        notes.entries = _of_files(part, entries)
        checked.append(_checked(arrange(records, notes), part.limit, request, notes))
    notes.settle()
    kept = []
    for i, (part, (_, entries), records) in enumerate(zip(parts, found, checked, strict=True)):
        notes.entries, before = _of_files(part, entries), notes.kept
        tokenise(records, encoder, part.names, notes, folder / f"{i}.arrow")
        kept.append(notes.kept - before)
    notes.settle()
    every = [entry for _, entries in found for entry in entries]
    notes.close(read=sum(entry.read or 0 for entry in every), training=kept[0], evaluation=sum(kept[1:]))
    return {"datasets": [asdict(entry) for entry in every], "rows": rows.kept()}


def _of_files(part: _Part, entries: list[receipt.DatasetEntry]) -> dict[str, receipt.DatasetEntry]:
    """File -> the receipt's entry of its data set."""
    return {str(path): entry for source, entry in zip(part.sources, entries, strict=True) for path in source.files}


class _Checked:
    """The records that are to be tokenised: not beyond the limit, and without problems. Each iteration reads them."""

    def __init__(self, found: Sequence[Sourced], limit: int | None, bad: set[int]) -> None:
        self.found, self.limit, self.bad = found, limit, bad

    def __len__(self) -> int:
        return len(range(len(self.found))[: self.limit]) - len(self.bad)

    def __iter__(self) -> Iterator[Sourced]:
        for index, source in enumerate(islice(self.found, self.limit)):
            if index not in self.bad:
                yield source


def _checked(found: Sequence[Sourced], limit: int | None, request: Request, notes: Notes) -> _Checked:
    bad = set()
    for index, source in enumerate(found):
        if limit is not None and index >= limit:
            notes.skip_beyond([source])
        elif problems := record_problems(source.record, request.stage, request.options):
            notes.reject(source, problems)
            bad.add(index)
    return _Checked(found, limit, bad)


def tell(run: Run) -> None:
    """Print what is skipped, rejected or cut, and the notes on good rows."""
    lines = notes_of(run.datasets) + run.rows.summary(longest=data.LONGEST)
    if warning := run.rows.warning(option=run.options.key("finepref_overlong")):
        lines.append(f"warning: {warning}")
    for line in lines:
        print(f"finepref: {line}", file=sys.stderr)


def rebind(function: FunctionType, **names: Any) -> FunctionType:
    """A copy of a function in which these global names have other values; its module stays unchanged.

    Raises:
        HostDrift: the function does not use one of the names.
    """
    unknown = set(names) - set(function.__code__.co_names)
    if unknown:
        raise patching.HostDrift(
            f"{function.__module__}.{function.__name__} does not use {', '.join(sorted(unknown))}"
        )
    copied = FunctionType(
        function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def host_train(module: str, splits: list[TokenisedRows], dataset: Any, **names: Any) -> Callable[[Any], None]:
    """The `train` of one of the host's command lines, on our rows, in whole batches.

    Args:
        module: the host's command line, e.g. "openrlhf.cli.train_dpo".
        splits: rows to train on, and rows to evaluate on.
        dataset: class that is used in place of the host's RewardDataset.
        names: further names of the module and their new values, e.g. the trainer's class.

    Raises:
        HostDrift: the host's `train` does not use one of the names.
    """
    order = iter(splits)  # the host asks for its training data first
    return rebind(
        importlib.import_module(module).train,
        blending_datasets=lambda *arguments, **options: next(order),
        RewardDataset=dataset,
        get_strategy=WholeBatchStrategy.of,
        **names,
    )


def moved(batch: Any, device: torch.device) -> Any:
    """A NamedTuple or dict with its tensors on the device. From pinned memory, as the host's loader makes it, nobody
    waits.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: moved(part, device) for name, part in batch.items()}
    if hasattr(batch, "_fields"):
        return type(batch)(*(moved(part, device) for part in batch))
    return batch


class WithoutAdapter:
    """The policy with its LoRA adapter switched off, in place of the host's reference model.

    It is called as the host's Actor is. No gradient goes through it, and no dropout is in it.

    Args:
        policy: the host's Actor, whose model becomes a DeepSpeed engine later.
    """

    def __init__(self, policy: Actor) -> None:
        self.policy = policy

    def __bool__(self) -> bool:
        return False  # there is nothing that DeepSpeed has to prepare

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        with self.switched_off():
            return self.policy(*arguments, **options)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """In the context, the policy is the reference."""
        peft = getattr(self.model, "module", self.model)
        with evaluating(peft), peft.disable_adapter():
            yield

    @property
    def model(self) -> Any:
        """The policy's PeftModel, or its DeepSpeed engine."""
        return self.policy.model

    @property
    def packing_samples(self) -> bool:
        """As of the policy."""
        return bool(self.policy.packing_samples)

    def eval(self) -> None:
        """Do nothing; the host calls this before the policy's forward passes."""


class NoReference:
    """Takes the place of the host's reference model if the loss needs none."""

    model = None

    def __bool__(self) -> bool:
        return False

    def eval(self) -> None:
        """Do nothing; the host calls this."""


def sharing(request: Request) -> dict[str, Any]:
    """The name `Actor` of the host's `train`, if one model serves as policy and reference; else nothing."""
    if not shares_reference(request.host):
        return {}
    made: list[Actor] = []

    def actor(*arguments: Any, **options: Any) -> Any:
        if made:  # the host makes the policy first
            return WithoutAdapter(made[0])
        made.append(Actor(*arguments, **options))
        return made[0]

    if os.environ.get("RANK", "0") == "0":
        print(
            "finepref: the reference is the model with its adapter switched off; no second model is loaded",
            file=sys.stderr,
        )
    return {"Actor": actor}


# Shape -> the receipt's entry with the sum of what its trainer counts, as on LLaMA-Factory.
COUNTED = {"pair": "tokens", "ranked": "records", "lists": "lists"}
REWARDED = ("pair", "unpaired", "lists")
"""Shapes whose loss returns a reward per response, beside the loss."""
REWARDS = tuple(f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins"))
OF_HOST = ("loss", "loss_mean", "acc", "acc_mean", "chosen_reward", "reject_reward")
"""What the host logs of the last micro-batch, or of one process, and the log of the run has of whole steps."""


class Sharer:
    """Mix-in of trainers whose data sets can make trees of a batch, see `finepref.hosts.trees`.

    Attributes:
        sharing: whether the responses of a record are read as one tree; None: they are not.
    """

    sharing: Sharing | None = None

    def share(self) -> None:
        """Look for what is against it in options and models; else let the data sets make trees."""
        options, args = self.run.options, self.args
        if not options.prefix_sharing:
            return
        actors = self._actors()
        configs = [getattr(actor.model, "module", actor.model).config for actor in actors]
        longest = args.data.max_len
        reasons = (
            options.full_logits and f"{options.key('finepref_full_logits')} is set",
            args.ds.packing_samples and "--ds.packing_samples is set",
            self.strategy.ring_attn_group is not None and "ring attention splits the rows",
            any(getattr(actor, "is_vlm", False) for actor in actors) and "the model is for images too",
            *(why_not_in(config, longest, balanced=self.aux_loss) for config in configs),
        )
        why_not = next(filter(None, reasons), "")
        self.sharing = Sharing(why_not, longest=longest, tell=_tell, balanced=self.aux_loss)
        for loader in filter(None, (self.train_dataloader, self.eval_dataloader)):
            loader.dataset.shares = self.sharing.possible

    def shares(self) -> bool:
        """Whether records are read as trees. Every process must call this in its first step, where it is tried."""
        return self.sharing is not None and self.sharing.try_once(lambda: map(forward.model_of, self._actors()))

    def _actors(self) -> list[Any]:
        """The policy, and the reference if it is a model of its own."""
        reference = self.ref_model
        own = not isinstance(reference, WithoutAdapter) and reference.model is not None
        return [self.model, reference] if own else [self.model]


class Accounted:
    """Mix-in of our trainers, a base class before the host's trainer: metrics over all processes, and the receipt.

    A trainer must call `count` for every micro-batch and add its metrics to `meter`. What it counts is in the receipt
    by rank and, under the name of `COUNTED`, as a sum.

    Args:
        run: the run.
        folder: folder of the receipt of the whole run.
        metrics: names of the metrics that are logged in addition to the host's.
        cached: `cached_reference.CachedReference`, if the reference is read from files.
    """

    def __init__(
        self,
        *arguments: Any,
        run: Run,
        folder: Path,
        metrics: Sequence[str],
        cached: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.cached = cached
        self.run, self.folder = run, folder
        self.last_step = 0
        self.counts = Tally()  # of this process, for the receipt
        self.meter = Meter(metrics)
        self.reward_meter = Meter(REWARDS)  # of pairs, between two lines of the log
        self.step_losses: list[float] = []  # likewise, of each step
        self.training_log: TrainingLog | None = None

    def count(self, /, **numbers: int | torch.Tensor) -> None:
        """Count a training micro-batch, and add numbers to the counts in the receipt."""
        responses = 2 if self.run.stage.shape == "unpaired" else 1  # of a record, each counted by itself
        self.run.count(self.args.train.micro_batch_size * responses)
        self.counts.add(**numbers)

    def fit(self, args: Any, consumed_samples: int = 0, num_update_steps_per_epoch: int | None = None) -> None:
        """Train as the host does. Raises UnprovenRun if our loss was not called for every micro-batch."""
        self.run.first_step = self.last_step = consumed_samples // args.train.batch_size
        per_epoch = num_update_steps_per_epoch or len(self.train_dataloader)
        if num_update_steps_per_epoch:
            self.run.planned = math.ceil(self.epochs * num_update_steps_per_epoch)
        if dist.get_rank() == 0:
            total = self.run.planned or math.ceil(self.epochs * per_epoch)
            first = self.run.first_step
            self.training_log = TrainingLog(
                self.folder, first_step=first, total_steps=total, steps_per_epoch=per_epoch
            )
        if self.cached is not None:
            self.cached.before_first_step(self)
        if self.run.stage.shape in REWARDED:
            self.loss_fn = self._watched(self.loss_fn)
        super().fit(args, consumed_samples, num_update_steps_per_epoch)
        content = self.write_receipt(self.folder)
        self.run.require_proof(content)
        if self.training_log is not None:
            self.training_log.plot()
            card.write(self.folder, self.run, seed=args.train.seed)

    def _watched(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """The loss function of a pair trainer, whose rewards are also added to the meter in training."""

        def watched(*arguments: Any) -> Any:
            found = loss(*arguments)
            if torch.is_grad_enabled():
                _, chosen, rejected = found
                values = (chosen, rejected, (chosen > rejected).float(), chosen - rejected)
                there = torch.ones_like(chosen, dtype=torch.bool)
                self.reward_meter.add_values("train", dict(zip(REWARDS, values, strict=True)), there)
            return found

        return watched

    def _write_log(self, step: int, logs: Mapping[str, float]) -> None:
        """A line of the log, at the steps at which the host logs. Every process must call this."""
        self.step_losses.append(logs["loss_mean"])
        if step % self.args.logger.logging_steps:
            return
        rewards = self.reward_meter.means("train", next(self.model.parameters()).device)
        if self.training_log is not None:
            values = {name: value for name, value in logs.items() if name not in OF_HOST}
            values = {"loss": sum(self.step_losses) / len(self.step_losses), **values, **rewards}
            if "rewards/accuracies" in values:
                values["accuracy"] = values["rewards/accuracies"]  # LLaMA-Factory's log has it under this name
            self.training_log.write(step, {name: float(value) for name, value in values.items()})
        self.step_losses.clear()

    def evaluate(self, eval_dataloader: Any, steps: int = 0) -> None:
        """Evaluate as the host does. The means that it logs also go into the log of the run."""
        reduce, found = self.strategy.all_reduce, {}

        def all_reduce(data: Any, *arguments: Any, **options: Any) -> Any:
            result = reduce(data, *arguments, **options)
            if isinstance(result, dict):
                found.update(result)
            return result

        self.strategy.all_reduce = all_reduce
        try:
            super().evaluate(eval_dataloader, steps)
        finally:
            del self.strategy.all_reduce
        if self.training_log is not None:
            named = {
                f"eval_{name.removeprefix('eval_').removesuffix('_mean')}": value for name, value in found.items()
            }
            self.training_log.write(steps, {name: float(value) for name, value in named.items()})

    def save_logs_and_checkpoints(
        self, args: Any, global_step: int, step_bar: Any, logs_dict: Any = None, client_states: Any = None
    ) -> None:
        """Log and save as the host does, with our metrics, and with a receipt in every checkpoint."""
        self.last_step = global_step
        logs = {**(logs_dict or {}), **self.meter.means("train", next(self.model.parameters()).device)}
        self._write_log(global_step, logs)
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

    def _sums(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """The sum over the ranks of what they have counted."""
        name = COUNTED.get(self.run.stage.shape)
        total: Counter[str] = Counter()
        for rank in ranks:
            total.update(rank["counts"])
        return {name: dict(sorted(total.items()))} if name else {}

    def write_receipt(self, *folders: Path) -> dict[str, Any]:
        """Gather the parts of all processes and write the receipt on the first one. Every process must call this."""
        more = {"counts": self.counts.read(), **self.rank_report()}
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, self.run.rank_part(dist.get_rank(), more))
        accumulation = self.strategy.accumulated_gradient
        content = self.run.content(
            seed=self.args.train.seed,
            last_step=self.last_step,
            accumulation=accumulation,
            expected_loss_calls=(self.last_step - self.run.first_step) * accumulation,
            ranks=ranks,
            more={**self._sums(ranks), **self.run_report(ranks)},
            copies=self.args.ds.ring_attn_size * self.args.ds.tensor_parallel_size,
        )
        for folder in folders if dist.get_rank() == 0 else ():
            receipt.write(folder, content)
        return content


def trainer_options(run: Run, request: Request, metrics: Sequence[str]) -> Mapping[str, Any]:
    """Keyword arguments of `Accounted`. The run is complete by now, so it is compared with a checkpoint's receipt.

    Raises:
        ValueError: the run resumes from another one's checkpoint, or its reference model reads other tokens.
    """
    run.setup = setup_of(request)
    checkpoint = resumed_from(request.host)
    if checkpoint is not None:
        continue_from(
            run,
            checkpoint,
            seed=request.host.train.seed,
            switch=request.options.key("finepref_resume_changed", "true"),
            warn=_warn,
        )
    return {"run": run, "folder": Path(request.host.ckpt.output_dir), "metrics": metrics}


def _warn(text: str) -> None:
    """Print a warning, in the first process."""
    _tell(f"warning: {text}")


def _tell(text: str) -> None:
    """Print a line, in the first process."""
    if os.environ.get("RANK", "0") == "0":
        print(f"finepref: {text}", file=sys.stderr)
