"""The row of a stage: everything that the hosts need to know of a method. Each method's file ends with its row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from finepref.methods.shapes import SHAPES, Shape

Batch = Literal["pair", "unpaired", "ranked", "lists", "single"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training method.

    The types of the functions depend on the shape; see `finepref.methods.batches` and the methods beside it.

    Attributes:
        name: the value of `stage:` in a YAML, and of `python -m finepref.hosts.openrlhf.train`.
        title: the method's name; a longer description may follow after a colon.
        paper: the paper with its loss, e.g. "arXiv 2404.11999".
        shape: what a batch holds: "pair" (two responses), "unpaired" (one, desirable or not), "ranked" (a scored
            list, for a reward model), "lists" (the same, for a policy), "single" (one, for SFT). It decides which of
            the host's trainers is used, see `methods.shapes`.
        formats: values of `formatting` in dataset_info.json whose rows the stage trains on.
        options: a dataclass derived from the shape's base in `finepref.methods.options`.
        losses: batch and options -> (`LossOut` [B], metrics), the metrics [B], scalars for "unpaired". None for
            "single": the host's own loss.
        weigh: pair: `PairRow`, options, seed -> `Weights`. single: the same -> a weight, 0 or 1, per token of the one
            response. Default: spans where the data has them, else every response token.
        reference: whether the loss reads a reference model; a bool, or a function options -> bool.
        kl: pair: options -> "" (the loss reads no KL), "metric" (it is only logged), "loss" (it gets a
            gradient) or "rejected" (only that of the rejected response does).
        metrics: names of the metrics that `losses` returns, in any order.
        settings: options -> values that differ from the given options, e.g. those of a preset; for the receipt.
        check_record: record, options -> problems for which the stage cannot train on the record. A record of shape
            "unpaired" is a `Negatives`, or a single row as a `Feedback`.
        check_data: facts, options -> problems of the training data as a whole. The facts depend on the shape: the set
            of error types (unpaired), the set of kinds (ranked, lists), the number of records with spans (single).
        negative_weights: whether the loss is defined for spans of negative weight; else they are refused.
        recipe: a YAML with the paper's settings, or "".
        demo_dataset: a name in a dataset_info.json that the recipe also runs on, or "".
        switch: a boolean YAML key that turns the host's stage of this shape into this stage.
        openrlhf_command: a name under `openrlhf.cli` for the command line; default `train_NAME`.
        openrlhf_group: the group of its flags on OpenRLHF; default the name.
        cards: names of further patch cards that the stage needs on LLaMA-Factory. A package ships its own by an entry
            point of the group `finepref.cards`, see `finepref.hosts.patching`.
        codes: further problem codes -> short meaning; letters that are not FP, then three digits.
        texts: option -> language -> {"label", "info"} for the web UI; English comes from the option itself.
    """

    name: str
    title: str
    paper: str
    shape: Batch
    formats: tuple[str, ...]
    options: type
    losses: Callable[..., Any] | None = None
    weigh: Callable[..., Any] | None = None
    reference: bool | Callable[[Any], bool] = False
    kl: Callable[[Any], str] | None = None
    metrics: tuple[str, ...] = ()
    settings: Callable[[Any], Mapping[str, Any]] | None = None
    check_record: Callable[..., list[Any]] | None = None
    check_data: Callable[..., list[Any]] | None = None
    negative_weights: bool = False
    recipe: str = ""
    demo_dataset: str = ""
    switch: str = ""
    openrlhf_command: str = ""
    openrlhf_group: str = ""
    cards: tuple[str, ...] = ()
    codes: Mapping[str, str] | None = None
    texts: Mapping[str, Mapping[str, Mapping[str, str]]] | None = None

    @property
    def of_shape(self) -> Shape:
        """The entry of its shape in `finepref.methods.shapes`."""
        return SHAPES[self.shape]

    @property
    def host_stage(self) -> str:
        """LLaMA-Factory's own stage whose argument checks, export and resume rules apply."""
        return self.of_shape.llamafactory_stage

    @property
    def llamafactory_cards(self) -> tuple[str, ...]:
        """Patch cards that must be in place on LLaMA-Factory; all others may drift."""
        return (*self.of_shape.llamafactory_cards, *self.cards)

    @property
    def openrlhf_cards(self) -> tuple[str, ...]:
        """Patch cards that must be in place on OpenRLHF; empty if the stage does not run there."""
        return self.of_shape.openrlhf_cards

    @property
    def command(self) -> str:
        """Its name under `openrlhf.cli`, "" if it does not run on OpenRLHF."""
        return (self.openrlhf_command or f"train_{self.name}") if self.of_shape.openrlhf_module else ""

    @property
    def group(self) -> str:
        """The group of its flags on OpenRLHF."""
        return self.openrlhf_group or self.name

    def needs_reference(self, options: Any) -> bool:
        """Whether a run with these options reads a reference model."""
        return self.reference(options) if callable(self.reference) else self.reference

    def kl_use(self, options: Any) -> str:
        """The use of the KL with these options, see `kl`."""
        return self.kl(options) if self.kl else ""

    def read_options(self, host: str, values: Mapping[str, Any], spelling: Callable[[str, str], str]) -> Any:
        """`options.read`, and what depends on the stage.

        Raises:
            ValueError: one line that names the option as the host spells it.
        """
        made = self.options.read(host, values, spelling)
        if made.caches_reference:
            made.refuse_cache(self.name, reference=self.needs_reference(made), kl=self.kl_use(made))
        return made

    def settings_of(self, options: Any) -> dict[str, Any]:
        """The options of a run with the values in use, for the receipt and the model card."""
        given = {name: getattr(options, name) for name in self.options.described(options.host)}
        given["finepref_overlong"] = options.overlong
        return given | dict(self.settings(options) if self.settings else {})
