"""What happened to the rows of a run: trained on, evaluated on, cut, skipped or rejected, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finepref.formats.jsonl import write_aside
from finepref.methods.overlong import PROMPT_CUT

MAX_SAMPLES = "max_samples"
INCOMPLETE = "prompt_split_by_max_samples"
MIXED_OUT = "left_out_by_mixing"
NEVER_DRAWN = "left_out_by_num_samples"
FEW_FOR_WARNING = 0.01
"""The share of records with a cut prompt above which a run warns."""


@dataclass
class Rows:
    """Counts of rows of the data files; a record that was made of several rows counts as these.

    Attributes:
        read: rows in the files; None if the host fetches the data itself.
        training: rows in the training set; None for a stream, whose length is not known.
        evaluation: rows in the evaluation sets.
        repeated: rows that are in a set more than once, because a mix or `num_samples` repeats them.
        skipped: reason -> rows that are in no set although nothing is wrong with them.
        rejected: code -> rows with a problem, which `finepref_bad_rows: skip` left out.
        cut: what is cut -> rows that are trained or evaluated on, but not as a whole.
        responses_skipped: reason -> responses that are left out of records that are kept.
        named: the skipped rows: {id, place, reason}.
        bad: the rejected rows, see `formats.check.rejected_row`.
    """

    read: int | None = None
    training: int | None = None
    evaluation: int = 0
    repeated: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    responses_skipped: Counter[str] = field(default_factory=Counter)
    named: list[Mapping[str, object]] = field(default_factory=list)
    bad: list[Mapping[str, object]] = field(default_factory=list)

    def skip(self, record_id: str, place: str, reason: str, rows: int = 1) -> None:
        """Count and name a record that is left out, of `rows` rows."""
        self.skipped[reason] += rows
        self.named.append({"id": record_id, "place": place, "reason": reason})

    def skip_response(self, record_id: str, place: str, name: str, reason: str) -> None:
        """Count and name a response that is left out of a record, such as a negative of one error type."""
        self.responses_skipped[reason] += 1
        self.named.append({"id": record_id, "place": place, "response": name, "reason": reason})

    def note_cut(self, cut: str, rows: int = 1) -> None:
        """Count what is cut of a record that is kept, see `methods.overlong.Fit.cut`."""
        for part in filter(None, cut.split(",")):
            self.cut[part] += rows

    def kept(self) -> dict[str, Any]:
        """The counts, for the run that uses the rows later; JSON can express them."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Take over the counts of the run that prepared the rows, see `kept`."""
        self.read, self.repeated = kept["read"], kept["repeated"]
        self.named += kept["named"]
        self.bad += kept["bad"]
        for name in ("skipped", "rejected", "cut", "responses_skipped"):
            getattr(self, name).update(kept[name])

    def content(self) -> dict[str, object]:
        """The receipt's entry `rows`."""
        return {
            "read": self.read,
            "in_training_set": self.training,
            "in_evaluation_set": self.evaluation,
            "repeated": self.repeated,
            "skipped": dict(sorted(self.skipped.items())),
            "rejected": dict(sorted(self.rejected.items())),
            "cut": dict(sorted((+self.cut).items())),
            "responses_skipped": dict(sorted(self.responses_skipped.items())),
        }

    def add_up(self) -> bool:
        """Whether read + repeated = training + evaluation + skipped + rejected; True if rows could not be counted."""
        if self.read is None or self.training is None:
            return True
        out = self.training + self.evaluation + self.skipped.total() + self.rejected.total()
        return self.read + self.repeated == out

    def summary(self, *, longest: str) -> list[str]:
        """Lines for the log: what was skipped, rejected or cut, with three examples each; empty if nothing was.

        Args:
            longest: the option that limits a sequence's length, as the user writes it.
        """
        lines = []
        for reason, count in sorted(self.skipped.items()):
            examples = [f"{row['id']} ({row['place']})" for row in self.named if row["reason"] == reason][:3]
            lines.append(f"{count} rows skipped: {reason}" + (f", such as {', '.join(examples)}" if examples else ""))
        for reason, count in sorted(self.responses_skipped.items()):
            lines.append(f"{count} responses skipped: {reason}, see skipped.jsonl")
        for code, count in sorted(self.rejected.items()):
            lines.append(f"{count} rows rejected: {code}, see rejected.jsonl")
        for part, count in sorted((+self.cut).items()):
            lines.append(f"{count} rows have a {part} that is cut to fit {longest}")
        return lines

    def warning(self, *, option: str) -> str:
        """A warning if many prompts are cut, "" if not; `option` is the user's name of `finepref_overlong`."""
        kept = (self.training or 0) + self.evaluation
        cut = self.cut[PROMPT_CUT]
        if not kept or cut <= FEW_FOR_WARNING * kept:
            return ""
        return (
            f"{cut} of {kept} prompts ({cut / kept:.1%}) are cut, so the model answers another question than the one "
            f"in the data; {option} keep_prompt cuts only responses, skip leaves such records out"
        )

    def write(self, folder: Path) -> None:
        """Write rejected.jsonl and skipped.jsonl into a folder; remove those of an earlier run."""
        write_aside(folder / "rejected.jsonl", self.bad)
        write_aside(folder / "skipped.jsonl", self.named)
