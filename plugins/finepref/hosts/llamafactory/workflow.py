"""A training run of any of our stages on LLaMA-Factory: the host's own steps in its order, plus the receipt."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from llamafactory.extras import logging
from torch import distributed as dist
from transformers import TrainerCallback

from finepref import stages
from finepref.hosts import card, patching, receipt
from finepref.hosts.llamafactory import arguments, batches, cached_reference, data, reference, streams, tokenized
from finepref.hosts.llamafactory.adapter import Adapter
from finepref.hosts.llamafactory.run_setup import setup_of
from finepref.hosts.llamafactory.verdicts import total
from finepref.hosts.missing_model import missing_model_hint
from finepref.hosts.reading import notes_of
from finepref.hosts.resume import continue_from
from finepref.hosts.run import Run

logger = logging.get_logger("llamafactory.finepref")  # the host shows what is below its own name

PREPARED_WITHIN = timedelta(days=7)


@dataclass(frozen=True)
class HostArguments:
    """The host's arguments of a run."""

    model: Any
    data: Any
    training: Any
    finetuning: Any


@dataclass
class Parts:
    """The arguments of `Adapter.build_trainer`."""

    model: Any
    ref_model: Any
    template: Any
    tokenizer_module: dict[str, Any]
    args: HostArguments
    run: Run
    kept: cached_reference.Rows = field(default_factory=cached_reference.Rows)

    def trainer_arguments(self) -> dict[str, Any]:
        """Keyword arguments of all our trainers; the adapter adds the reference model and the collator."""
        return {
            "run": self.run,
            "model": self.model,
            "args": self.args.training,
            "finetuning_args": self.args.finetuning,
            **self.tokenizer_module,
        }


def dispatch(original):
    """A host's `run_*` that calls `run` for our stages (cards `run-kto`, ...). Its last argument is `callbacks`."""

    @functools.wraps(original)
    def run_stage(model_args, data_args, training_args, finetuning_args, *rest, **named):
        row = stages.find(finetuning_args.finepref_stage)
        if row is None:
            return original(model_args, data_args, training_args, finetuning_args, *rest, **named)
        callbacks = named.get("callbacks", rest[-1] if rest else None)
        return run(row, HostArguments(model_args, data_args, training_args, finetuning_args), callbacks)

    return run_stage


def run(row: stages.Stage, args: HostArguments, callbacks: Any = None) -> None:
    """Train and evaluate one stage.

    Raises:
        HostDrift: a card of the stage is not in place.
        BadData: the data cannot be trained on; only the tokenizer has been loaded by then.
        FileNotFoundError: a local model folder is missing; the message names the command that makes it.
        ValueError: `packing` or `do_predict` is set, which the stage does not support, or a setting that contradicts
            an option.
        UnprovenRun: the receipt does not add up.
    """
    patching.require(row.llamafactory_cards, needed_by=f"stage {row.name}")
    if args.data.packing:
        raise ValueError(f"`packing` is not for stage {row.name}: its responses are compared one by one")
    for path in (args.model.model_name_or_path, args.finetuning.ref_model, *(args.model.adapter_name_or_path or ())):
        if path and (hint := missing_model_hint(path)):
            raise FileNotFoundError(hint)
    adapter = data.adapter_of(row)
    if args.training.do_predict and not adapter.predicts:
        raise ValueError(f"`do_predict` is not for stage {row.name}: it has no scores to write")
    options = arguments.options_of(row, args.finetuning)
    batches.refuse(args.training, args.data, options)
    reference.refuse_missing(args, needed=row.shape == "single" and adapter.needs_reference(options, args.finetuning))
    more = {"finetuning_type": args.finetuning.finetuning_type}
    with Run(row, options, row.llamafactory_cards, settings=more).active() as started:
        _train(adapter, started, args, callbacks)


def _train(adapter: Adapter, run: Run, args: HostArguments, callbacks: Any) -> None:
    """Train, evaluate and predict, in the order of the host's own `run_*`."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.model import load_model, load_tokenizer

    row, options, training = run.stage, run.options, args.training.do_train
    tokenizer_module = load_tokenizer(args.model)
    tokenizer = tokenizer_module["tokenizer"]
    needs_reference = adapter.needs_reference(options, args.finetuning)
    if options.caches_reference:
        cached_reference.refuse(args, options.key("finepref_reference_cache", "true"))
    if needs_reference:
        reference.refuse_foreign(args, tokenizer)
        if training and reference.continues_adapter(args):
            reference.refuse_sharded(args)
    template = get_template_and_fix_tokenizer(tokenizer, args.data)
    with patience(args.training):
        dataset_module = get_dataset(
            template, args.model, args.data, args.training, stage=row.name, **tokenizer_module
        )
        if not args.data.streaming:
            local = not args.data.data_shared_file_system
            with args.training.main_process_first(desc="check rows", local=local):  # the others find its results
                check_splits(adapter, run, dataset_module, args)
    count_rows(run, dataset_module, args)

    run.setup = setup_of(
        args, template, tokenizer, needs_reference=needs_reference, shares_reference=row.shape != "single"
    )
    resumed = arguments.resume_point(args.training, args.finetuning) if training else None
    if isinstance(resumed, str):
        if not Path(resumed).is_dir():
            raise FileNotFoundError(f"`resume_from_checkpoint`: there is no folder {resumed!r}")
        continue_from(
            run,
            Path(resumed),
            seed=args.training.seed,
            switch=options.key("finepref_resume_changed", "true"),
            warn=logger.warning_rank0,
        )

    cached = None
    if options.caches_reference:
        cached = cached_reference.CachedReference(adapter, run, args, dataset_module, tokenizer_module, template)
    if args.model.use_reentrant_gc and reference.under_fsdp(args.training):
        args.model.use_reentrant_gc = False  # FSDP1 has no weights for it in the backward pass
        logger.info_rank0("Under FSDP, gradient checkpointing is not reentrant: `use_reentrant_gc` is set to false.")
    model = load_model(tokenizer, args.model, args.finetuning, training, add_valuehead=adapter.adds_value_head)
    frozen = None
    in_file = cached is not None and cached.obtain(model)
    if in_file or not needs_reference:
        ref_model = None
    elif args.finetuning.ref_model is None and not training:
        ref_model = model
    else:
        ref_model, frozen = reference.make(model, args, shared=row.shape != "single")

    parts = Parts(model, ref_model, template, tokenizer_module, args, run, *([cached.rows] if cached else []))
    shared = args.data.streaming and args.training.world_size > 1 and streams.read_everywhere(args.training)
    trainer = adapter.build_trainer(parts, callbacks=callbacks, **dataset_module)
    trainer.adapter = adapter
    if shared:
        trainer.get_train_dataloader = partial(streams.train_dataloader, trainer)
    if frozen is not None:
        trainer.frozen = frozen
    if cached is not None and not in_file:
        trainer.add_callback(cached_reference.Filling(cached, trainer))
    receipts = ReceiptCallback(run, trainer, args.data)
    trainer.add_callback(receipts)

    if training:
        result = trainer.train(resume_from_checkpoint=resumed)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
        if trainer.is_world_process_zero() and args.finetuning.plot_loss:
            _plot(trainer, adapter.plot_keys(options))

    if args.training.do_eval:
        metrics = trainer.evaluate(metric_key_prefix="eval")
        itself = model is ref_model or (in_file and cached.chosen.kind == "itself")
        if itself:  # a model's reward against itself is 0 by definition
            metrics = {key: value for key, value in metrics.items() if "rewards" not in key}
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    if args.training.do_predict:
        trainer.write_scores(dataset_module["eval_dataset"])

    if not training:
        receipts.write_without_training()
    _model_card(run, trainer, args)


@contextmanager
def patience(training: Any) -> Iterator[None]:
    """Within the block, `main_process_first` of the host's TrainingArguments waits beyond `ddp_timeout`.

    The first process may read, check and tokenise for longer than a step of the training may take.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield
        return
    group = dist.new_group(backend="gloo", timeout=PREPARED_WITHIN)

    @contextmanager
    def main_process_first(local: bool = True, desc: str = "work") -> Iterator[None]:
        first = (training.local_process_index if local else training.process_index) == 0
        if not first:
            dist.barrier(group)
        try:
            yield
        finally:
            if first:
                dist.barrier(group)

    training.main_process_first = main_process_first
    try:
        yield
    finally:
        del training.main_process_first
        dist.destroy_process_group(group)


def _parts(split: Any) -> list[Any]:
    """The data sets of a split; for several names in eval_dataset the host makes a dict."""
    return list(split.values()) if isinstance(split, dict) else [] if split is None else [split]


def check_splits(adapter: Adapter, run: Run, dataset_module: dict[str, Any], args: HostArguments) -> None:
    """Leave out the rows of each split that cannot be used, and check each split as a whole."""

    def usable(part: Any) -> Any:
        part = tokenized.usable(run, adapter.check(run.options), part, args.data)
        adapter.check_split(part, run.options)
        return part

    for name in ("train_dataset", "eval_dataset"):
        split = dataset_module.get(name)
        if isinstance(split, dict):
            dataset_module[name] = {key: usable(part) for key, part in split.items()}
        elif split is not None:
            dataset_module[name] = usable(split)
    if dataset_module.get("train_dataset") is not None and args.training.do_train:
        adapter.check_training(dataset_module["train_dataset"], run.options)


def count_rows(run: Run, dataset_module: dict[str, Any], args: HostArguments) -> None:
    """Count the rows of the splits and tell what was left out.

    Raises:
        UnprovenRun: rows are missing without a reason.
    """
    reads = [entry.read for entry in run.datasets]
    run.rows.read = sum(reads) if None not in reads else None
    if args.data.streaming:
        return
    train = dataset_module.get("train_dataset")
    run.rows.training = total(train, "rows") if train is not None else 0
    run.rows.evaluation = sum(total(part, "rows") for part in _parts(dataset_module.get("eval_dataset")))
    if not run.rows.add_up():
        raise receipt.UnprovenRun(f"rows went missing between file and trainer: {run.rows.content()}")
    for line in notes_of(run.datasets) + run.rows.summary(longest="`cutoff_len`"):
        logger.info_rank0(line)
    if warning := run.rows.warning(option="`finepref_overlong`"):
        logger.warning_rank0(warning)
    if args.training.should_save:
        run.rows.write(Path(args.training.output_dir))


class ReceiptCallback(TrainerCallback):
    """Writes the receipt into every checkpoint and fails a run whose loss calls do not add up."""

    def __init__(self, run: Run, trainer: Any, data_args: Any) -> None:
        self.run, self.trainer, self.data_args = run, trainer, data_args
        self.batches: int | None = 0

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.run.first_step = state.global_step
        self.run.loss_calls = self.run.seen = 0
        self.run.planned = state.max_steps
        self.batches = None if self.data_args.streaming else len(train_dataloader)

    def on_save(self, args, state, control, **kwargs):
        self._write(Path(args.output_dir, f"checkpoint-{state.global_step}"), args, state)

    def on_train_end(self, args, state, control, **kwargs):
        content = self._write(Path(args.output_dir), args, state)
        if not self.data_args.streaming:
            self.run.require_proof(content)

    def write_without_training(self) -> None:
        """Write the receipt of a run that only evaluates or predicts; the one of a training stays beside it."""
        args = self.trainer.args
        there = receipt.read(args.output_dir)
        trained = there is not None and there["first_step"] + there["optimizer_steps"] > 0
        name = receipt.EVALUATION if trained else receipt.FILE_NAME
        self._write(Path(args.output_dir), args, self.trainer.state, name)

    def _write(self, folder: Path, args: Any, state: Any, name: str = receipt.FILE_NAME) -> dict[str, Any]:
        """Gather the parts of all ranks and write the receipt on the first one. Every rank must call this."""
        from accelerate.utils import gather_object

        ranks = gather_object([self.run.rank_part(args.process_index, self.trainer.rank_report())])
        accumulation = args.gradient_accumulation_steps
        content = self.run.content(
            seed=args.seed,
            last_step=state.global_step,
            accumulation=accumulation,
            expected_loss_calls=receipt.micro_batches(
                first_step=self.run.first_step,
                last_step=state.global_step,
                accumulation=accumulation,
                batches_per_epoch=self.batches,
            ),
            ranks=ranks,
            more=self.trainer.run_report(ranks),
        )
        if args.should_save:
            receipt.write(folder, content, name)
        return content


def _plot(trainer: Any, keys: list[str]) -> None:
    from llamafactory.extras.ploting import plot_loss

    logged = {key for entry in trainer.state.log_history for key in entry}
    wanted = ["loss", "eval_loss", *keys, *(f"eval_{key}" for key in keys)]
    wanted += sorted(key for key in logged if key.startswith("eval_") and key.endswith("_loss"))
    plot_loss(trainer.args.output_dir, keys=[key for key in dict.fromkeys(wanted) if key in logged])


def _model_card(run: Run, trainer: Any, args: HostArguments) -> None:
    """Write the host's model card, with a section about our stage and its settings."""
    from llamafactory.train.trainer_utils import create_modelcard_and_push

    folder, writes = Path(args.training.output_dir), args.training.do_train and args.training.should_save
    if writes:  # with `push_to_hub` the host uploads the card right after it
        trainer.create_model_card = card.with_section(trainer.create_model_card, folder, run)
    create_modelcard_and_push(trainer, args.model, args.data, args.training, args.finetuning)
    if writes:
        card.append(folder, run)
