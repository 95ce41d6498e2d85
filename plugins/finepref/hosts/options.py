"""The flat YAML keys that our stages add; each help text is what `llamafactory-cli train --help` prints.

This file is imported while the host defines its own arguments, so it imports nothing of the host.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Literal, get_args, get_origin


@dataclass
class SeapoOptions:
    """Keys of stage `seapo_kto`. The KTO keys proper are the host's: pref_beta, pref_ftx, kto_*_weight."""

    seapo_error_types: str = field(
        default="all",
        metadata={"help": "Comma list of the error types to draw negatives from, e.g. correctness,logic; or all."},
    )
    seapo_resample: Literal["epoch", "once"] = field(
        default="epoch",
        metadata={"help": "Draw a new negative per prompt and epoch, or one for the whole run."},
    )
    seapo_auto_weights: bool = field(
        default=False,
        metadata={"help": "Move kto_chosen_weight so that desirable:undesirable weight lies in [1, 4/3] (KTO paper)."},
    )

    def check(self) -> None:
        """Refuse what YAML parsing lets through.

        Raises:
            ValueError: one line naming the key.
        """
        if isinstance(self.seapo_error_types, (list, tuple)):  # a YAML list
            self.seapo_error_types = ",".join(self.seapo_error_types)
        if not all(name.strip() for name in self.seapo_error_types.split(",")):
            raise ValueError(f"`seapo_error_types` has an empty name: {self.seapo_error_types!r}")
        if self.seapo_resample not in ("epoch", "once"):
            raise ValueError(f"`seapo_resample` is epoch or once, not {self.seapo_resample!r}")
        for key in ("pref_beta", "kto_chosen_weight", "kto_rejected_weight"):
            if not getattr(self, key) > 0:
                raise ValueError(f"`{key}` must be above 0, not {getattr(self, key)}")
        if self.pref_ftx < 0:
            raise ValueError(f"`pref_ftx` must not be negative, but is {self.pref_ftx}")

    @staticmethod
    def error_types(arguments: "SeapoOptions") -> tuple[str, ...] | None:
        """The types to draw from, None for all."""
        if arguments.seapo_error_types.strip() == "all":
            return None
        return tuple(name.strip() for name in arguments.seapo_error_types.split(","))


@dataclass
class PairOptions:
    """What stages on pairs of responses share."""

    finepref_full_logits: bool = field(
        default=False,
        metadata={"help": "Plain path for comparison: every token reaches the output head, nothing is recomputed."},
    )


@dataclass
class SepoOptions(PairOptions):
    """Keys of stage `sepo`. It has no reference model, and of the host's preference keys it uses none."""

    sepo_preset: Literal["paper", "released"] = field(
        default="paper",
        metadata={
            "help": "Values for sepo_gamma and sepo_margin: the paper's (2.5, 0) or the released code's (1, 0)."
        },
    )
    sepo_gamma: float | None = field(
        default=None,
        metadata={"help": "Scale of the mean log-probability of the selected tokens, in place of the preset's."},
    )
    sepo_margin: float | None = field(
        default=None,
        metadata={"help": "Margin (lambda) by which chosen must lead rejected, in place of the preset's."},
    )
    sepo_selection: Literal["oracle", "random", "all"] = field(
        default="oracle",
        metadata={"help": "Tokens to train on: by the scores or spans of the data; as many at random; every token."},
    )
    sepo_ratio_chosen: float = field(
        default=0.3,
        metadata={"help": "Share of the chosen tokens, those with the highest scores. Spans are taken as they are."},
    )
    sepo_ratio_rejected: float = field(
        default=0.3,
        metadata={"help": "Share of the rejected tokens, those with the lowest scores. Spans are taken as they are."},
    )
    sepo_map_scores: bool = field(
        default=False,
        metadata={"help": "Carry scores of another tokenizer over by their character offsets; else they are refused."},
    )

    def check(self) -> None:
        """Refuse what YAML parsing lets through, and host keys that would be ignored.

        Raises:
            ValueError: one line naming the key.
        """
        _check_values(self, SepoOptions)
        _refuse_unused(self, "sepo", "pref_beta", "ref_model", "ref_model_adapters", "ref_model_quantization_bit")
        for key in ("sepo_ratio_chosen", "sepo_ratio_rejected"):
            if not 0 < getattr(self, key) <= 1:
                raise ValueError(f"`{key}` must be above 0 and at most 1, not {getattr(self, key)}")
        if self.sepo_gamma is not None and not self.sepo_gamma > 0:
            raise ValueError(f"`sepo_gamma` must be above 0, not {self.sepo_gamma}")
        if self.sepo_margin is not None and self.sepo_margin < 0:
            raise ValueError(f"`sepo_margin` must not be negative, but is {self.sepo_margin}")
        self.pref_loss = "simpo"  # the host's only way to say that there is no reference model


@dataclass
class TdpoOptions(PairOptions):
    """Keys of stage `tdpo`. Of the host's preference keys it uses pref_beta and ref_model."""

    tdpo_variant: Literal["tdpo1", "tdpo2", "dpo"] = field(
        default="tdpo2",
        metadata={"help": "The paper's two losses, or DPO, over the same tokens."},
    )
    tdpo_alpha: float | None = field(
        default=None,
        metadata={"help": "Weight of the sequential KL in tdpo2 (default 0.5, the paper's); the others have none."},
    )
    tdpo_masks: Literal["annotated", "none"] = field(
        default="annotated",
        metadata={"help": "Train on the tokens of the data's spans, or on every token of both responses."},
    )
    tdpo_sides: Literal["one", "two"] = field(
        default="two",
        metadata={
            "help": (
                "two: both responses count, one without spans as a whole. "
                "one: only the response that has the spans counts (granular code)."
            )
        },
    )
    tdpo_normalize_spans: bool = field(
        default=False,
        metadata={
            "help": "Divide log-ratio and KL by the number of masked tokens, so that short spans learn as fast."
        },
    )

    def check(self) -> None:
        """Refuse what YAML parsing lets through, and keys that would be ignored.

        Raises:
            ValueError: one line naming the key.
        """
        _check_values(self, TdpoOptions)
        _refuse_unused(self, "tdpo")
        if not self.pref_beta > 0:
            raise ValueError(f"`pref_beta` must be above 0, not {self.pref_beta}")
        if self.tdpo_alpha is not None and self.tdpo_variant != "tdpo2":
            raise ValueError(f"`tdpo_alpha` belongs to tdpo2; {self.tdpo_variant} has none, so leave it out")
        if self.tdpo_alpha is not None and self.tdpo_alpha < 0:
            raise ValueError(f"`tdpo_alpha` must not be negative, but is {self.tdpo_alpha}")
        if self.tdpo_masks == "none" and (self.tdpo_sides == "one" or self.tdpo_normalize_spans):
            key = "tdpo_sides: one" if self.tdpo_sides == "one" else "tdpo_normalize_spans"
            raise ValueError(f"`{key}` needs spans, but `tdpo_masks` is none")


@dataclass
class GranularOptions:
    """The key that turns the host's stage `sft` into ours."""

    granular: bool = field(
        default=False,
        metadata={"help": "In stage sft, train on the spans of the chosen response only (span_pair records)."},
    )

    def check(self) -> None:
        """Refuse what YAML parsing lets through.

        Raises:
            ValueError: one line naming the key.
        """
        _check_values(self, GranularOptions)


@dataclass
class ApoOptions:
    """Keys of stage `apo_rm`. Of the host's preference keys it uses none."""

    apo_kl_coeff: float = field(
        default=1.0,
        metadata={"help": "Coefficient of the ranking loss on human records (kl_coeff in the paper's code)."},
    )
    apo_coeff: float = field(
        default=0.1,
        metadata={"help": "Coefficient of the adversarial records: golden answers above the LLM's samples."},
    )
    apo_sample_num: int = field(
        default=4,
        metadata={"help": "Samples per golden answer; apo_coeff is divided by it."},
    )
    apo_loss: Literal["ranking", "wgan"] = field(
        default="ranking",
        metadata={"help": "Loss of the adversarial records: -log sigmoid of the margin, or minus the margin itself."},
    )
    apo_normalization: Literal["per_type", "released"] = field(
        default="per_type",
        metadata={"help": "A mean for each kind of records, or the authors' one over all pairs of the micro-batch."},
    )
    apo_pooling: Literal["last", "eos", "mean", "max"] = field(
        default="last",
        metadata={"help": "Read the reward at the response's last token, its end token, or over all tokens."},
    )

    def check(self) -> None:
        """Refuse what YAML parsing lets through, and keys that would be ignored.

        Raises:
            ValueError: one line naming the key.
        """
        _check_values(self, ApoOptions)
        _refuse_unused(self, "apo_rm", "pref_beta", "ref_model", "ref_model_adapters", "ref_model_quantization_bit")
        for key in ("apo_kl_coeff", "apo_coeff"):
            if getattr(self, key) < 0:
                raise ValueError(f"`{key}` must not be negative, but is {getattr(self, key)}")
        if self.apo_kl_coeff == self.apo_coeff == 0:
            raise ValueError("`apo_kl_coeff` and `apo_coeff` are both 0, so there is no loss")
        if self.apo_loss == "wgan" and self.apo_coeff == 0:
            raise ValueError("`apo_loss: wgan` is the adversarial records' loss, but their `apo_coeff` is 0")
        if self.apo_sample_num < 1:
            raise ValueError(f"`apo_sample_num` must be at least 1, not {self.apo_sample_num}")


def _check_values(arguments: object, owner: type) -> None:
    """Types and choices of the keys of `owner`, which the host checks for flags but not for YAML."""
    for key in fields(owner):
        value = getattr(arguments, key.name)
        if get_origin(key.type) is Literal:
            if value not in get_args(key.type):
                raise ValueError(f"`{key.name}` is {' or '.join(get_args(key.type))}, not {value!r}")
        elif key.type is bool:
            if type(value) is not bool:
                raise ValueError(f"`{key.name}` is true or false, not {value!r}")
        elif key.type is int:
            if type(value) is not int:
                raise ValueError(f"`{key.name}` must be a whole number, not {value!r}")
        elif (value, key.default) != (None, None) and (type(value) not in (int, float) or not math.isfinite(value)):
            raise ValueError(f"`{key.name}` must be a number, not {value!r}")


def _refuse_unused(arguments: object, stage: str, *more: str) -> None:
    """Keys of the host's preference stages that ours does not read."""
    unused = ("pref_ftx", "pref_bco_weight", "pref_loss", "dpo_label_smoothing", "simpo_gamma", "ld_alpha", *more)
    for key in fields(arguments):
        if key.name in unused and getattr(arguments, key.name) != key.default:
            raise ValueError(f"`{key.name}` does nothing in stage {stage}, so leave it out")
