"""The flat YAML keys that our stages add; each help text is what `llamafactory-cli train --help` prints.

This file is imported while the host defines its own arguments, so it imports nothing of the host.
"""

from dataclasses import dataclass, field
from typing import Literal


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
