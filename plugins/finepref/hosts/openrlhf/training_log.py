"""The log of a run on OpenRLHF in files, with the names that LLaMA-Factory gives them: trainer_log.jsonl and plots."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

FILE_NAME = "trainer_log.jsonl"
UNPLOTTED = ("current_steps", "total_steps", "lr", "epoch", "percentage", "accuracy", "grad_norm")


class TrainingLog:
    """A line for every step that the host logs, and for every evaluation. Only the first process has one.

    A run that starts anew begins a new file. One that resumes keeps the lines up to the step that it resumes from.

    Args:
        folder: of the file.
        first_step: optimizer steps done before.
        total_steps: of the whole training.
        steps_per_epoch: optimizer steps of an epoch.
    """

    def __init__(self, folder: Path, *, first_step: int, total_steps: int, steps_per_epoch: int) -> None:
        self.file, self.first, self.total, self.per_epoch = (
            folder / FILE_NAME,
            first_step,
            total_steps,
            steps_per_epoch,
        )
        self.started = time.monotonic()
        self.lines = self._before() if first_step else []
        folder.mkdir(parents=True, exist_ok=True)
        self.file.write_text("".join(map(_text, self.lines)), encoding="utf-8")

    def _before(self) -> list[dict[str, object]]:
        if not self.file.is_file():
            return []
        lines = []
        for text in self.file.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # the last line of a run that was killed
                continue
            if line.get("current_steps", 0) <= self.first:
                lines.append(line)
        return lines

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line: the step's values, and where in the training it is."""
        elapsed = time.monotonic() - self.started
        left = elapsed / max(step - self.first, 1) * (self.total - step)
        line = {
            "current_steps": step,
            "total_steps": self.total,
            **values,
            "epoch": round(step / self.per_epoch, 4),
            "percentage": round(100 * step / self.total, 2),
            "elapsed_time": str(timedelta(seconds=int(elapsed))),
            "remaining_time": str(timedelta(seconds=int(left))),
        }
        self.lines.append(line)
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(_text(line))

    def plot(self) -> None:
        """Draw each metric that has at least two points as training_NAME.png."""
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError:
            print("finepref: there are no plots, because matplotlib is not installed", file=sys.stderr)
            return
        names = dict.fromkeys(name for line in self.lines for name, value in line.items() if _is_number(value))
        for name in names:
            points = [(line["current_steps"], line[name]) for line in self.lines if _is_number(line.get(name))]
            if len(points) < 2 or name in UNPLOTTED:
                continue
            figure = Figure(layout="constrained")
            axis = figure.subplots()
            axis.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else "")
            axis.set_xlabel("step")
            axis.set_ylabel(name)
            figure.savefig(self.file.with_name(f"training_{name.replace('/', '_')}.png"), dpi=100)


def _text(line: Mapping[str, object]) -> str:
    return json.dumps(line) + "\n"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
