"""The package of examples/own_stage, installed beside finepref for the processes that a test starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from plain_pairs import Plain, minus_log_sigmoid, overlaps

ROOT = Path(__file__).parents[1]


def install(folder: Path) -> dict[str, str]:
    """Install it into a folder; the environment with which a process sees it."""
    shutil.copytree(ROOT / "examples/own_stage", folder / "source")
    program = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    program += ["--no-build-isolation", "--no-index", "--target", str(folder / "site"), str(folder / "source")]
    subprocess.run(program, check=True, timeout=120)
    path = [str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path)}


def first_loss(plain: Plain, rows: Sequence[dict], *, beta: float, gamma: float) -> float:
    """The stage's loss over all rows by sums over Python floats, without finepref."""
    total = 0.0
    for row in rows:
        u = {}
        for side in ("chosen", "rejected"):
            tokens, spans = plain.tokens(row["prompt"], row[side]), row.get(f"{side}_spans")
            kept = [token.policy for token in tokens if not spans or overlaps(token, spans)]
            u[side] = beta * sum(kept) / len(kept)
        total += minus_log_sigmoid(u["chosen"] - u["rejected"] - gamma)
    return total / len(rows)
