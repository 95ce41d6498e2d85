"""Base of the adapters to LLaMA-Factory, one per shape of batch: how records become model inputs, and the trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from finepref.hosts.batching import RowTokens, Units
from finepref.methods.options import Options
from finepref.methods.stage import Stage


def keeps_batches(args: Any) -> bool:
    """Whether a rank trains on batches as its collator makes them, with Python numbers in them.

    With `dispatch_batches`, the default of a stream, the first process joins the batches of all ranks and splits them,
    which only tensors survive.

    Args:
        args: the run's `HostArguments`.
    """
    dispatched = args.training.accelerator_config.dispatch_batches
    return not (args.data.streaming if dispatched is None else dispatched)


class Adapter(ABC):
    """Data and training of all stages of one shape. `finepref.methods.shapes` names the class for each shape.

    Attributes:
        stage: the stage that it was made for.
        schema: to be changed whenever tokenised rows change their meaning. It is part of the dataset cache's
            fingerprint and of the marker in a `tokenized_path` folder, so that no rows made by older code are used.
        adds_value_head: whether the model gets the host's value head.
        responses: columns with the responses of a tokenised row, see `reference_cache.texts_of`.
        predicts: whether the trainer has `write_scores(eval_dataset)` for `do_predict`.
    """

    schema: str
    adds_value_head: bool = False
    predicts: bool = False
    responses: tuple[tuple[str, str], ...] = ()

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def arrange(self, dataset: Any, *, truncated: bool, streaming: bool) -> Any:
        """Change the records of the merged dataset before the train/eval split, e.g. group them.

        Args:
            dataset: rows of the cache (see `row_cache.COLUMNS`) of all data sets of the run.
            truncated: whether `max_samples`, `num_samples` or the mix leaves out rows.
            streaming: whether `dataset` is an IterableDataset.

        Raises:
            BadData: records that cannot be trained on.
        """
        return dataset

    def prepare(self, dataset: Any, *, streaming: bool) -> Any:
        """Change one split's records right before tokenising, e.g. add a partner to each."""
        return dataset

    @abstractmethod
    def processor(self, options: Options) -> Any:
        """A callable that makes the DatasetProcessor; its class has `schema` as a dataclass field."""

    @abstractmethod
    def check(self, options: Options) -> Any:
        """A `tokenized.TokenizedCheck` that finds the rows of a split that the options cannot use, or None."""

    def check_split(self, dataset: Any, options: Options) -> None:  # noqa: B027 - optional
        """Refuse a tokenised train or eval split as a whole.

        Raises:
            BadData: naming what is wrong.
        """

    def check_training(self, dataset: Any, options: Options) -> None:  # noqa: B027 - optional
        """Note facts of the tokenised training split, and refuse one that can only be evaluated on.

        Raises:
            BadData: naming what is missing.
        """

    @abstractmethod
    def row_tokens(self, dataset: Any) -> RowTokens:
        """How many tokens each row of a tokenised data set brings into a batch."""

    def units(self, dataset: Any, options: Options) -> Units:
        """The rows of a tokenised training split that belong into one micro-batch. Here each stands alone."""
        return Units.of(np.ones(len(dataset), dtype=bool))

    @abstractmethod
    def build_trainer(self, parts: Any, **common: Any) -> Any:
        """Make the trainer, a subclass of the host's, from `workflow.Parts`, with its collator and callbacks."""

    @abstractmethod
    def plot_keys(self, options: Options) -> list[str]:
        """Names of the logged metrics that are plotted in addition to the loss."""

    def needs_reference(self, options: Options, finetuning_args: Any) -> bool:
        """Whether the trainer needs a reference model: a second model, or the base model under LoRA adapters."""
        return self.stage.needs_reference(options)
