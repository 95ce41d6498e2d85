"""What a shape of batch brings to LLaMA-Factory: how records become model inputs, and how they train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from finepref.methods.options import Options
from finepref.methods.stage import Stage


class Adapter(ABC):
    """Data and training of the stages of one shape. `finepref.methods.shapes` names it, and `workflow.run` uses it.

    Attributes:
        stage: the stage that it is made for.
        schema: bump it whenever tokenised rows change meaning. It is part of the dataset cache's fingerprint and of
            the marker in a `tokenized_path` folder; without it the host serves rows made by older code.
        adds_value_head: the model gets the host's value head.
        predicts: the trainer has `write_scores(eval_dataset)` for `do_predict`.
    """

    schema: str
    adds_value_head: bool = False
    predicts: bool = False

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def arrange(self, dataset: Any, *, truncated: bool, streaming: bool) -> Any:
        """Records of the merged dataset before the train/eval split, e.g. grouped.

        Args:
            dataset: rows {"_record": canonical JSON, "_formatting": name} of all datasets of the run.
            truncated: `max_samples` cut at least one dataset short.
            streaming: `dataset` is an IterableDataset.

        Raises:
            BadData: what the records cannot be trained on.
        """
        return dataset

    def prepare(self, dataset: Any, *, streaming: bool) -> Any:
        """One split's records right before tokenising, e.g. with a partner for each."""
        return dataset

    @abstractmethod
    def processor(self) -> Any:
        """Makes the host's DatasetProcessor that tokenises; its class has `schema` as a dataclass field."""

    @abstractmethod
    def check_tokenized(self, dataset: Any, options: Options) -> None:
        """Refuse a tokenised train or eval split that the stage's options cannot use.

        Raises:
            BadData: naming the records.
        """

    def check_training(self, dataset: Any, options: Options) -> None:  # noqa: B027 - optional
        """Refuse a tokenised train split that would be good enough to evaluate on.

        Raises:
            BadData: naming what is missing.
        """

    @abstractmethod
    def build_trainer(self, parts: Any, **common: Any) -> Any:
        """The trainer, a subclass of the host's, with its collator and callbacks (see `workflow.Parts`)."""

    @abstractmethod
    def plot_keys(self, options: Options) -> list[str]:
        """Logged metrics to plot beside the loss."""

    def needs_reference(self, options: Options, finetuning_args: Any) -> bool:
        """Whether the trainer wants a reference model: a second model, or None where the LoRA base serves as one."""
        return self.stage.needs_reference(options)
