"""SeaPO (arXiv 2509.24781) with the KTO loss (arXiv 2402.01306). Not SePO (`sepo`).

A prompt's good answer is trained on together with ONE erroneous version of it per epoch, which
`finepref.methods.draws` draws. A row of a prompt that has no such pair is trained on by its own label.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from finepref.formats import records
from finepref.formats.problems import Problem
from finepref.formats.record_places import record_mark
from finepref.methods.batches import Unpaired
from finepref.methods.draws import error_types_of
from finepref.methods.options import BETA, UnpairedOptions, host_option, option
from finepref.methods.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from finepref.losses.ops import LossOut


@dataclass
class SeapoOptions(UnpairedOptions):
    """Options of the draws and of the KTO loss."""

    seapo_error_types: str = option(
        "all",
        "Comma list of the error types to draw negatives from, e.g. correctness,logic; or all.",
        comma_list=True,
    )
    seapo_resample: Literal["epoch", "once"] = option(
        "epoch", "Draw a new negative per prompt and epoch, or one for the whole run."
    )
    seapo_auto_weights: bool = option(
        False, "Move kto_chosen_weight so that desirable:undesirable weight lies in [1, 4/3] (KTO paper)."
    )
    pref_beta: float = host_option(0.1, BETA, llamafactory="pref_beta", openrlhf="model.beta", above=0)
    pref_ftx: float = host_option(
        0.0,
        "Coefficient of the desirable responses' negative log-likelihood.",
        llamafactory="pref_ftx",
        only="llamafactory",
        at_least=0,
    )
    kto_chosen_weight: float = host_option(
        1.0, "Weight of the desirable responses.", llamafactory="kto_chosen_weight", above=0
    )
    kto_rejected_weight: float = host_option(
        1.0, "Weight of the undesirable responses.", llamafactory="kto_rejected_weight", above=0
    )

    @property
    def error_types(self) -> tuple[str, ...] | None:
        if self.seapo_error_types.strip() == "all":
            return None
        return tuple(name.strip() for name in self.seapo_error_types.split(","))

    @property
    def resampled(self) -> bool:
        return self.seapo_resample == "epoch"

    @property
    def beta(self) -> float:
        return self.pref_beta

    @property
    def ftx(self) -> float:
        return self.pref_ftx

    @property
    def advice(self) -> str:
        chosen, rejected = self.key("kto_chosen_weight"), self.key("kto_rejected_weight")
        advised, _ = advised_weights(self)
        if self.seapo_auto_weights or advised == self.kto_chosen_weight:
            return ""
        ratio = f"{chosen} / {rejected}"
        if self.responses != (1, 1):
            desirable, undesirable = self.responses
            ratio = f"{chosen} x {desirable} desirable / ({rejected} x {undesirable} undesirable) responses"
        return (
            f"{ratio} is outside [1, 4/3]; the KTO paper advises {advised:.4g} for the first "
            f"({self.key('seapo_auto_weights', 'true')} sets it)"
        )


def advised_weights(options: SeapoOptions) -> tuple[float, float]:
    """(desirable, undesirable) weight by the KTO paper's rule for the responses in the data.

    The weights stay as given if there are responses of one kind only.
    """
    from finepref.losses.kto import automatic_weights

    chosen, rejected = options.kto_chosen_weight, options.kto_rejected_weight
    if 0 in options.responses:
        return chosen, rejected
    return automatic_weights(*options.responses, desirable_weight=chosen, undesirable_weight=rejected)


def weights(options: SeapoOptions) -> tuple[float, float]:
    """(desirable, undesirable) weight in use: as given, or by the paper's rule with `seapo_auto_weights`."""
    given = options.kto_chosen_weight, options.kto_rejected_weight
    return advised_weights(options) if options.seapo_auto_weights else given


def settings(options: SeapoOptions) -> dict[str, Any]:
    """The weights in use, for the receipt."""
    chosen, rejected = weights(options)
    return {"kto_chosen_weight": chosen, "kto_rejected_weight": rejected}


def check_record(record: records.Negatives | records.Feedback, options: SeapoOptions) -> list[Problem]:
    """FP204 if a record has negatives, but none of the types in `seapo_error_types`.

    A single row that names no error type is trained on whatever the types.
    """
    wanted, types = options.error_types, error_types_of(record)
    if wanted is None or not types or types & set(wanted):
        return []
    field = "negatives" if isinstance(record, records.Negatives) else "error_type"
    asked = options.key("seapo_error_types")
    text = f"has {', '.join(sorted(types))}, but {asked} is {', '.join(wanted)}"
    return [Problem(record_mark(record.id), 0, field, "FP204", text)]


def check_data(found: Collection[str], options: SeapoOptions) -> list[Problem]:
    """FP204 if a type in `seapo_error_types` is in no record: a misspelled type would never be drawn."""
    unknown = set(options.error_types or ()) - set(found)
    if not unknown:
        return []
    asked = options.key("seapo_error_types")
    text = (
        f"no record has an error of type {', '.join(sorted(unknown))}, which {asked} names; "
        f"the data has {', '.join(sorted(found))}"
    )
    return [Problem("the data", 0, "negatives", "FP204", text)]


def losses(batch: Unpaired, options: SeapoOptions) -> tuple[LossOut, dict[str, Tensor]]:
    """KTO loss [B] of each response, see `finepref.losses.kto`. The metric `kl` is the scalar reference point z0."""
    from torch import zeros_like

    from finepref.losses.kto import kto_loss, kto_reference_point

    reference_point = kto_reference_point(batch.kl_log_ratio, zeros_like(batch.kl_log_ratio))
    desirable_weight, undesirable_weight = weights(options)
    out = kto_loss(
        batch.log_ratio,
        batch.desirable,
        reference_point,
        beta=options.pref_beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )
    return out, {"kl": reference_point}


STAGE = Stage(
    name="seapo_kto",
    title="SeaPO: strategic error amplification, one random negative per prompt and epoch, KTO",
    paper="arXiv 2509.24781 (data), arXiv 2402.01306 (KTO loss)",
    shape="unpaired",
    formats=("negatives", "feedback"),
    options=SeapoOptions,
    losses=losses,
    reference=True,
    metrics=("kl",),
    settings=settings,
    check_record=check_record,
    check_data=check_data,
    recipe="examples/seapo_kto.yaml",
    demo_dataset="seapo_demo",
    openrlhf_command="train_kto",
    openrlhf_group="kto",
)
