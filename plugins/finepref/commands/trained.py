"""How a model was trained, by the receipt beside its weights, for commands that read it in the same way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from finepref.commands.sequence_options import OWN
from finepref.hosts.receipt import FILE_NAME


class Trained(NamedTuple):
    """What a receipt tells; None where it does not, or where there is no receipt.

    Attributes:
        folder: of the model.
        pooling: where the reward is read (apo_pooling).
        template: LLaMA-Factory's template, or "tokenizer" for the tokenizer's chat template.
        cutoff_len: most tokens of a sequence.
    """

    folder: Path
    pooling: str | None = None
    template: str | None = None
    cutoff_len: int | None = None

    def differences(self, **given: str | int | None) -> list[str]:
        """A line for each option that is given and is not as in training.

        Args:
            given: option -> its value, None if it is not given.
        """
        lines = []
        for name, value in given.items():
            trained = getattr(self, name)
            if value is not None and trained is not None and value != trained:
                option = f"--{name.replace('_', '-')}"
                lines.append(f"{option} {value}: by its receipt, {self.folder} was trained with {trained}")
        return lines


def trained_of(folder: Path) -> Trained:
    """What the receipt in a model's folder tells.

    Raises:
        ValueError: the receipt is not JSON.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return Trained(folder)
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        raise ValueError(f"{path} is not JSON") from None
    settings, run = content.get("settings") or {}, content.get("run") or {}
    template = run["template"] or OWN if "template" in run else None  # earlier versions do not tell
    return Trained(folder, settings.get("apo_pooling"), template, run.get("cutoff_len"))
