"""The picture of a reliability diagram."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def draw(
    bins: Iterable[tuple[float, float, float]], file: Path, *, width: float = 0.1, x: str, y: str, title: str
) -> None:
    """Write a reliability diagram as a PNG file.

    Args:
        bins: (start, mean confidence, accuracy) of each bin that is not empty.
        file: to write.
        width: of the bins.
        x, y, title: the texts.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    filled = [*bins]
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle="--")
    axis.bar([i + width / 2 for i, _, _ in filled], [share for _, _, share in filled], width=0.9 * width, alpha=0.5)
    axis.plot([p for _, p, _ in filled], [share for _, _, share in filled], marker="o")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
