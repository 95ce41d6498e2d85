"""A game of `finepref apo run` on a tiny model, for the tests of both hosts: its files, its steps, and playing it.

As a program it is `finepref` with its steps in forks of a warm process: python apo_game.py ADDRESS WORD...
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from finepref.formats.jsonl import write_jsonl
from warm import Child, Warm, popen

STEPS = [
    *("data/human", "data/test_human", "data/testing_human", "base/reward", "testing/reward", "base/scored"),
    *("round_0/answers", "round_0/answers_scored", "round_0/eval"),
    *("round_1/samples", "round_1/pairs", "round_1/reward", "round_1/golden_pairs", "round_1/scored"),
    *("round_1/selected", "round_1/policy", "round_1/merged", "round_1/answers"),
    *("round_1/scored_by_base", "round_1/answers_scored", "round_1/eval"),
]
"""Of one round where the LLM is trained with LoRA, in the order in which they run."""


def save_game(folder: Path, model: Path, ranked_rows: Callable[..., list[dict]], **settings: Any) -> Path:
    """A YAML of one round with all the data beside it; `ranked_rows(start=i)` gives preferences of both kinds."""
    for name, start in (("human", 0), ("test_human", 30), ("testing_human", 60)):
        write_jsonl(folder / f"{name}.jsonl", [row for row in ranked_rows(start=start) if "kind" not in row])
    for name, start in (("queries", 0), ("test_queries", 4)):
        rows = [{"prompt": f"What is {i} + {i}?", "chosen": f"It is {2 * i}."} for i in range(start, start + 4)]
        write_jsonl(folder / f"{name}.jsonl", rows)
    files = ("human", "test_human", "testing_human", "queries", "test_queries")
    sampling = {"max_new_tokens": 6, "temperature": 1.0}
    common = {
        "model": str(model),
        **{name: str(folder / f"{name}.jsonl") for name in files},
        "learning_rates": [1.0e-3],
        "sample": {"n": 2, **sampling},
        "answer": {"n": 1, **sampling},
    }
    (folder / "game.yaml").write_text(yaml.safe_dump(common | settings))
    return folder / "game.yaml"


def play(game: Path, output: Path, warm: Warm | None = None) -> subprocess.Popen | Child:
    """Start the command in a session of its own, or with all of its steps in a process group of a warm process."""
    words = ["apo", "run", game, "--output", output]
    start, program = (subprocess.Popen, [Path(sys.executable).with_name("finepref")])
    if warm is not None:
        start, program = warm.popen, ["python", __file__, warm.address]
    root, variables = Path(__file__).parents[1], dict(os.environ)
    with open(output.with_suffix(".log"), "ab") as log:
        return start([*program, *words], stdout=log, stderr=log, cwd=root, start_new_session=True, env=variables)


def kill(process: subprocess.Popen | Child, output: Path) -> None:
    """Kill the command and its steps, and wait until the run's folder is free for the next one."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with open(output / "lock") as lock:  # a step that was just being started ends a moment later
        fcntl.flock(lock, fcntl.LOCK_EX)


def finish(game: Path, output: Path, warm: Warm | None = None) -> None:
    """Play to the end."""
    assert play(game, output, warm).wait(timeout=900) == 0, output.with_suffix(".log").read_text()[-4000:]


def steps_in(warm_address: str) -> SimpleNamespace:
    """The module subprocess, for `finepref.pipelines.steps`, with a Popen that forks the warm process."""
    return SimpleNamespace(**vars(subprocess) | {"Popen": partial(popen, warm_address)})


def main() -> None:
    from finepref import cli
    from finepref.pipelines import steps

    steps.subprocess = steps_in(sys.argv.pop(1))
    sys.argv[0] = "finepref"
    cli.main()


if __name__ == "__main__":
    main()
