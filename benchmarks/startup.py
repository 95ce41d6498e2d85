"""The cost of finepref's start-up hook for an unrelated Python process, in milliseconds.

    .venvs/core/bin/python benchmarks/startup.py

Installs the wheel into a fresh environment and starts Python alternately with the hook, with FINEPREF_DISABLE=1, and
in an identical environment without finepref; prints medians and the difference. (An editable install costs about 20 ms
more, because of setuptools' own finder for mapped packages.)
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROUNDS = 100
ROOT = Path(__file__).parents[1]


def milliseconds(python: Path, environment: dict[str, str]) -> float:
    """Wall-clock time of a process that does nothing."""
    started = time.perf_counter()
    subprocess.run([str(python), "-c", "pass"], env=environment, check=True, cwd="/")
    return (time.perf_counter() - started) * 1000


def main() -> None:
    """Print the medians."""
    plain = {key: value for key, value in os.environ.items() if key != "FINEPREF_DISABLE"}
    with tempfile.TemporaryDirectory() as folder:
        pythons = {}
        for name in ("with", "without"):
            venv.create(Path(folder, name), with_pip=False, symlinks=True)
            pythons[name] = Path(folder, name, "bin", "python")
        pip = [sys.executable, "-m", "pip", "--quiet"]
        subprocess.run(
            [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, str(ROOT)], check=True
        )
        (wheel,) = Path(folder).glob("finepref-*.whl")
        subprocess.run([*pip, "--python", str(pythons["with"]), "install", "--no-deps", str(wheel)], check=True)
        kinds = {
            "attached": (pythons["with"], plain),
            "FINEPREF_DISABLE=1": (pythons["with"], {**plain, "FINEPREF_DISABLE": "1"}),
            "not installed": (pythons["without"], plain),
        }
        taken: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(ROUNDS):
            for name, (python, environment) in kinds.items():
                taken[name].append(milliseconds(python, environment))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    for name, value in medians.items():
        print(f"{name:20} {value:7.2f} ms (median of {ROUNDS})")
    cost = medians["attached"] - medians["not installed"]
    print(f"cost of finepref     {cost:7.2f} ms ({medians['attached'] / medians['not installed']:.3f} x)")


if __name__ == "__main__":
    main()
