"""The option `finepref_reference_cache` on LLaMA-Factory, see `finepref.hosts.reference_cache`.

Without shards the file is made before the trainer, with the model as it was loaded: no checkpoint of a resumed run is
in it then. Under ZeRO-3 and FSDP a model runs only within the trainer, so that the reference is loaded as without a
cache, the file is made by it right before the first step, and the reference is given up.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from llamafactory.data.collator import MultiModalDataCollatorForSeq2Seq
from llamafactory.extras import logging
from llamafactory.extras.constants import IGNORE_INDEX
from torch import Tensor
from transformers import TrainerCallback

from finepref.hosts import packed, reference_cache
from finepref.hosts.evaluating import evaluating
from finepref.hosts.exact import bits, floats
from finepref.hosts.llamafactory import forward, reference
from finepref.hosts.model_identity import identity
from finepref.hosts.reference_cache import Cache, Kept, Text

logger = logging.get_logger("llamafactory.finepref")  # the host shows what is below its own name

ROW = "reference_row"
"""Column with the index of a row among those of all splits."""


def refuse(args: Any, key: str) -> None:
    """Refuse what a file of log-probabilities cannot serve.

    Args:
        args: the run's `HostArguments`.
        key: the option as the user writes it.

    Raises:
        ValueError: one line that names the key.
    """
    model, finetuning = args.model, args.finetuning
    if args.data.streaming:
        raise ValueError(f"{key} reads all rows before the training, which a stream does not have: leave it out")
    if model.add_tokens or model.add_special_tokens:
        raise ValueError(
            f"{key}: the embeddings of new tokens (`add_tokens`) are random, so that each run has another reference: "
            "save the model with its new tokens first"
        )
    if not args.data.ignore_pad_token_for_loss:
        raise ValueError(f"{key}: `ignore_pad_token_for_loss: false` also reads padding, which is in no file")
    if getattr(finetuning, "pissa_init", False):
        raise ValueError(f"{key}: `pissa_init` changes the model below the adapter; leave one of them out")


class Rows:
    """The kept log-probabilities of the rows of all splits, by the column `ROW`. Empty until they are there."""

    def __init__(self) -> None:
        self.kept: list[Kept] = []

    def __bool__(self) -> bool:
        return bool(self.kept)

    def __getitem__(self, index: int) -> list[np.ndarray]:
        for each in self.kept:
            if index < len(each):
                return each[index]
            index -= len(each)
        raise IndexError("the row is in no split of which log-probabilities are kept")


class CachedReference:
    """The files of a run, one of each split.

    Args:
        adapter: of the stage.
        run: the run; its setup gets the names of the files.
        args: the run's `HostArguments`.
        splits: {name: data set, several data sets by name, or None}, as the host has them. Each row gets `ROW`.
        tokenizer_module: as the host has it.
        template: the host's template, in use.
    """

    def __init__(
        self,
        adapter: Any,
        run: Any,
        args: Any,
        splits: dict[str, Any],
        tokenizer_module: dict[str, Any],
        template: Any,
    ) -> None:
        self.run, self.args, self.rows = run, args, Rows()
        self.chosen = reference.choose(args, needed=True)
        self.sharded = bool(reference.sharded(args.training))
        self.tokenizer_module, self.template = tokenizer_module, template
        self.texts: list[reference_cache.Texts] = []
        self.caches: list[Cache] = []
        for name in ("train_dataset", "eval_dataset"):
            split = splits.get(name)
            if isinstance(split, dict):
                splits[name] = {key: self._numbered(part, adapter) for key, part in split.items()}
            elif split is not None:
                splits[name] = self._numbered(split, adapter)

    def _numbered(self, split: Any, adapter: Any) -> Any:
        start = sum(len(each.prompts) for each in self.texts)
        self.texts.append(_texts_of(split, adapter.responses))
        return split.add_column(ROW, np.arange(start, start + len(split)))

    def obtain(self, model: Any) -> bool:
        """Find the files, or make them.

        Args:
            model: the policy as it was loaded.

        Returns:
            Whether they are there. If not, the reference has to be loaded, and `Filling` makes them.
        """
        second = self.chosen.kind == "model" and self.args.finetuning.ref_model is not None
        loaded = None
        if second and not self._is_known():  # it has to be downloaded, so that its digests are known
            loaded = None if self.sharded else reference.make(model, self.args)[0]
        self._name()
        if reference_cache.found(self.caches):
            for cache in self.caches:
                logger.info_rank0(f"reference log-probabilities: found {reference_cache.described(cache)}")
        elif self.sharded:
            return False
        else:
            if second and loaded is None:
                loaded = reference.make(model, self.args)[0]
            self._fill(model if loaded is None else loaded)
        del loaded
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.open()
        return True

    def open(self) -> None:
        """Let the collators read the files, and note them in the receipt."""
        self.rows.kept = [Kept(cache.folder) for cache in self.caches]
        self.run.setup.reference = {**self.run.setup.reference, "cache": [cache.key for cache in self.caches]}

    def _is_known(self) -> bool:
        names = (self.chosen.path, *self.chosen.adapters)
        return all(identity(name)["weights_sha256"] for name in names if name)

    def _name(self) -> None:
        """Name the files, by what the reference is."""
        args, chosen = self.args, self.chosen
        second = chosen.kind == "model" and args.finetuning.ref_model is not None
        quantised = args.finetuning.ref_model_quantization_bit if second else args.model.quantization_bit
        scaling = args.model.rope_scaling and [str(args.model.rope_scaling), args.data.cutoff_len]
        model = reference_cache.about(
            identity(chosen.path),
            [identity(name) for name in chosen.adapters],
            revision=args.model.model_revision,
            quantization=quantised and [quantised, str(args.model.quantization_method)],
            dtype=[str(args.model.compute_dtype), str(self._precision)],
            rope=scaling or None,
        )
        parent = self.run.cache or Path(args.model.cache_dir or datasets.config.HF_DATASETS_CACHE, "finepref")
        self.caches = [Cache(texts, model, parent.resolve()) for texts in self.texts]

    @property
    def _precision(self) -> torch.dtype | None:
        """The type of mixed precision, None without."""
        training = self.args.training
        return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None

    def _fill(self, model: Any) -> None:
        device = self.args.training.device
        if not (getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False)):
            model.to(device)
        base: AbstractContextManager[Any] = nullcontext()
        if self.chosen.kind == "base":
            base = model.disable_adapter()
        precision = self._precision
        mixed = torch.autocast(device.type, precision) if precision else nullcontext()
        alone = forward.Alone(self.run)
        with base, mixed, evaluating(model):
            self.fill(model, device, lambda rows: forward.values(alone, model, rows).logps)

    def fill(self, model: Any, device: torch.device, logps_of: Any, *, in_step: bool = False) -> None:
        """Make the files.

        Args:
            model: whose inputs are made.
            device: where it is.
            logps_of: `forward.Rows` -> log pi [M, T].
            in_step: see `reference_cache.fill`.
        """
        collate = MultiModalDataCollatorForSeq2Seq(
            template=self.template,
            model=model,
            pad_to_multiple_of=8,
            label_pad_token_id=IGNORE_INDEX,
            **self.tokenizer_module,
        )

        def read(texts: Sequence[Text]) -> np.ndarray:
            batch = collate([_feature(*text) for text in texts])
            labels = batch.pop("labels")
            needed = labels[:, 1:] != IGNORE_INDEX
            count = int(needed.sum())
            inputs = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
            logps = logps_of(forward.Rows(inputs, labels.to(device), needed.to(device), count))
            return logps.float().cpu()[needed].numpy()

        reference_cache.fill(self.caches, read, in_step=in_step, tell=logger.info_rank0)


class Filling(TrainerCallback):
    """Makes the files by the reference of a trainer whose weights are in shards, and gives that up."""

    def __init__(self, cached: CachedReference, trainer: Any) -> None:
        self.cached, self.trainer = cached, trainer

    def on_train_begin(self, args, state, control, **kwargs):
        trainer, policy = self.trainer, self.trainer.model_wrapped
        device = trainer.accelerator.device
        with evaluating(policy):
            self.cached.fill(
                trainer.model, device, lambda rows: forward.reference_logps(trainer, policy, rows), in_step=True
            )
        self.cached.open()
        if trainer.ref_model is not None:
            models = trainer.accelerator._models
            models[:] = [each for each in models if each is not trainer.ref_model]
            trainer.ref_model = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _texts_of(split: Any, responses: Sequence[tuple[str, str]]) -> reference_cache.Texts:
    columns = ["prompt", *(name for pair in responses for name in pair if name)]
    there = split.select_columns(columns)

    def row(index: int) -> tuple[list[int], list[list[int]]]:
        return responses_of(there[index], responses)

    tables = there.with_format("arrow").iter(1000)
    return reference_cache.texts_of(tables, responses, row)


def responses_of(row: dict[str, Any], responses: Sequence[tuple[str, str]]) -> tuple[list[int], list[list[int]]]:
    """The prompt of a tokenised row, and its responses, see `reference_cache.texts_of`."""
    found = []
    for ids, lengths in responses:
        found += packed.parted(row[ids], row[lengths]) if lengths else [packed.plain(row[ids])]
    return packed.plain(row["prompt"]), found


def _feature(prompt: Sequence[int], response: Sequence[int]) -> dict[str, Any]:
    """A sequence as the host's collator takes it."""
    ids = [*prompt, *response]
    labels = [IGNORE_INDEX] * len(prompt) + [*response]
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": labels,
        "images": None,
        "videos": None,
        "audios": None,
    }


def placed(values: Sequence[np.ndarray], lengths: Sequence[int], width: int, side: str) -> Tensor:
    """Log-probabilities of the responses of a batch as its collator adds them: int32 [M, T], see `exact`.

    Args:
        values: of each response.
        lengths: number of tokens of each prompt with its response.
        width: L, that of the padded batch.
        side: where it is padded, "right" or "left".
    """
    ends = [width] * len(values) if side == "left" else lengths
    return bits(torch.from_numpy(reference_cache.placed(values, ends, width))[:, 1:])


def of_batch(batch: dict[str, Any], kind: str = "") -> Tensor | None:
    """The log-probabilities [M, T] that `placed` has put into a batch; None if it has none."""
    found = batch.get(f"{kind}reference")
    return None if found is None else floats(found)
