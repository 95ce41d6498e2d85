"""What a stage brings to LLaMA-Factory: how its records become model inputs, and how it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Adapter(ABC):
    """One stage's data and training half. Subclass it, name it in the stage's row, and `workflow.run` does the rest.

    Attributes:
        schema: bump it whenever tokenised rows change meaning. It is part of the dataset cache's fingerprint and of
            the marker in a `tokenized_path` folder; without it the host serves rows made by older code.
        adds_value_head: the model gets the host's value head.
        predicts: the trainer has `write_scores(eval_dataset)` for `do_predict`.
    """

    schema: str
    adds_value_head: bool = False
    predicts: bool = False

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
    def processor(self) -> type:
        """The host's DatasetProcessor subclass that tokenises; it must set `schema` as a dataclass field."""

    @abstractmethod
    def check_tokenized(self, dataset: Any, arguments: Any) -> None:
        """Refuse a tokenised train or eval split that the stage's options cannot use.

        Raises:
            BadData: naming the records.
        """

    def check_training(self, dataset: Any, arguments: Any) -> None:  # noqa: B027 - optional
        """Refuse a tokenised train split that would be good enough to evaluate on.

        Raises:
            BadData: naming what is missing.
        """

    @abstractmethod
    def build_trainer(self, parts: Any, **common: Any) -> Any:
        """The trainer, a subclass of the carrier's, with its collator and callbacks (see `workflow.Parts`)."""

    @abstractmethod
    def plot_keys(self, arguments: Any) -> list[str]:
        """Logged metrics to plot beside the loss."""

    def needs_reference(self, arguments: Any) -> bool:
        """Whether the trainer wants a reference model: a second model, or None where the LoRA base serves as one."""
        return True

    def settings(self, arguments: Any) -> dict[str, Any]:
        """The options that define the run, for the receipt and the model card."""
        return {}
