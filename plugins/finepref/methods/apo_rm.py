"""APO, ADVERSARIAL preference optimization (arXiv 2311.08045): its reward model. Not Anchored PO (TRL's "APO").

Records are lists of scored responses: human preferences (kind "human"), or golden answers that rank above the LLM's
own samples (kind "apo").
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from finepref.formats.problems import Problem
from finepref.formats.record_places import record_mark
from finepref.formats.records import Pair, Record
from finepref.methods.batches import Ranked
from finepref.methods.options import RankedOptions, option
from finepref.methods.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from finepref.losses.ops import LossOut


@dataclass
class ApoOptions(RankedOptions):
    """Options of the reward model's loss. None of the hosts' own preference options is read."""

    apo_kl_coeff: float = option(
        1.0, "Coefficient of the ranking loss on human records (kl_coeff in the paper's code).", at_least=0
    )
    apo_coeff: float = option(
        0.1, "Coefficient of the adversarial records: golden answers above the LLM's samples.", at_least=0
    )
    apo_sample_num: int = option(4, "Samples per golden answer; apo_coeff is divided by it.", at_least=1)
    apo_loss: Literal["ranking", "wgan", "plackett_luce"] = option(
        "ranking",
        "ranking: -log sigmoid of each pair's margin. wgan: minus the margin itself, for the adversarial records. "
        "plackett_luce: the likelihood of the whole order of a list.",
    )
    apo_ties: Literal["apart", "breslow"] = option(
        "apart",
        "plackett_luce: equally scored responses do not compete with each other (apart), or each with all (breslow).",
    )
    apo_margins: bool = option(
        False, "ranking: the better response must lead by the difference of the scores, of a pair by its margin."
    )
    apo_normalization: Literal["per_type", "released"] = option(
        "per_type",
        "One mean per kind of record (per_type), or the authors' mean over all pairs of the micro-batch (released).",
    )
    apo_pooling: Literal["last", "eos", "mean", "max"] = option(
        "last",
        "Read the reward at the response's last token, its end token, or over all tokens.",
        openrlhf={
            "default": "eos",
            "choices": ("eos", "last"),
            "help": "Read the reward at the end token, as the host's PPO and serve_rm do, or right before it.",
        },
    )
    apo_keep_value_head: bool = option(
        False, "Start from the value head of a reward model; the host draws a new one at random.", only="openrlhf"
    )

    @property
    def pooling(self) -> tuple[str, str]:
        return "apo_pooling", self.apo_pooling

    @property
    def keeps_value_head(self) -> bool:
        return self.apo_keep_value_head

    @property
    def over_step(self) -> bool:
        return self.apo_normalization == "per_type"

    def check_together(self) -> None:
        """Refuse coefficients that leave no loss.

        Raises:
            ValueError: one line naming the options.
        """
        if self.apo_kl_coeff == self.apo_coeff == 0:
            raise ValueError(f"{self.key('apo_kl_coeff')} and {self.key('apo_coeff')} are both 0, so there is no loss")
        if self.apo_ties != "apart" and self.apo_loss != "plackett_luce":
            raise ValueError(f"{self.key('apo_ties')} belongs to {self.key('apo_loss', 'plackett_luce')}")
        if self.apo_loss == "plackett_luce" and self.apo_normalization == "released":
            raise ValueError(
                f"{self.key('apo_normalization', 'released')} divides by pairs, but "
                f"{self.key('apo_loss', 'plackett_luce')} has whole lists"
            )
        if self.apo_margins and self.apo_loss == "plackett_luce":
            raise ValueError(f"{self.key('apo_margins')} does nothing with {self.key('apo_loss', 'plackett_luce')}")
        if self.apo_loss == "wgan" and self.apo_coeff == 0:
            raise ValueError(
                f"{self.key('apo_loss', 'wgan')} is the adversarial records' loss, but their "
                f"{self.key('apo_coeff')} is 0"
            )


def check_record(record: Record, options: ApoOptions) -> list[Problem]:
    """FP264 if a pair has no margin although the loss reads it."""
    if not options.apo_margins or not isinstance(record, Pair) or record.margin is not None:
        return []
    return [Problem(record_mark(record.id), 0, "margin", "FP264", f"{options.key('apo_margins')} reads it")]


def check_data(kinds: Collection[str], options: ApoOptions) -> list[Problem]:
    """FP223 if all records have coefficient 0; FP224 if the WGAN loss has no record of kind "apo"."""
    coefficients = {"human": options.apo_kl_coeff, "apo": options.apo_coeff}
    if not any(coefficients[kind] > 0 for kind in kinds):
        text = f"all training records are {' and '.join(sorted(kinds))}, and the coefficient of these is 0"
        return [Problem("dataset", 0, "kind", "FP223", text)]
    if options.apo_loss == "wgan" and "apo" not in kinds:
        text = f"{options.key('apo_loss', 'wgan')} is for records of kind apo, but the training data has none"
        return [Problem("dataset", 0, "kind", "FP224", text)]
    return []


def losses(batch: Ranked, options: ApoOptions) -> tuple[LossOut, dict[str, Tensor]]:
    """Each record's contribution [B] to the loss of the step, see `finepref.losses.apo_rm.apo_rm_loss`."""
    from finepref.losses.apo_rm import apo_rm_loss

    out = apo_rm_loss(
        batch.rewards,
        batch.scores,
        batch.is_apo,
        kl_coeff=options.apo_kl_coeff,
        apo_coeff=options.apo_coeff,
        samples=options.apo_sample_num,
        kind=options.apo_loss,
        ties=options.apo_ties,
        margins=options.apo_margins,
        normalization=options.apo_normalization,
        mask=batch.present,
        counts=batch.counts,
    )
    return out, {}


STAGE = Stage(
    name="apo_rm",
    title="APO: adversarial preference optimization, the reward model's step on scored lists of responses",
    paper="arXiv 2311.08045",
    shape="ranked",
    formats=("ranked", "pair"),
    options=ApoOptions,
    losses=losses,
    check_record=check_record,
    check_data=check_data,
    recipe="examples/apo_rm.yaml",
    demo_dataset="apo_demo",
    openrlhf_group="apo",
)
