"""A paper's experiment, from nothing to its page.

    make reproduce PAPER=tdpo                            all runs; a finished one is not run again
    python reproduce tdpo --seeds 3 --folder FOLDER      the same; without the environment being made

The plan is docs/reproduction/PAPER/experiment.yaml, and the text above the results in README.md there. The results go
into README.md, results.json and plots beside it. Threads are those of OMP_NUM_THREADS: with another number of them, or
on another processor, figures differ in their last digits.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from arms import AGAIN, Runs, every
from experiment import PAGES, ROOT, load
from finepref.pipelines.steps import Pipeline
from results import same, write_page, write_small


def main() -> None:
    """Run an experiment and write its page."""
    names = sorted(file.parent.name for file in PAGES.glob("*/experiment.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paper", choices=names)
    parser.add_argument("--seeds", type=int, help="1 to N; default: as planned")
    parser.add_argument("--folder", type=Path, help="of the runs; default: runs/reproduce/PAPER")
    parser.add_argument(
        "--small", type=Path, metavar="MODEL", help="the section `small` with a tiny model: small.json"
    )
    given = parser.parse_args()
    os.chdir(ROOT)
    page = PAGES / given.paper
    experiment = load(page, small=given.small is not None)
    folder = given.folder or Path("runs/reproduce") / (f"{given.paper}-small" if given.small else given.paper)
    with Pipeline(folder) as run:
        runs = Runs(experiment, run, model=given.small)
        found = every(runs, given.seeds or experiment.seeds)
        if given.small:
            write_small(page / "small.json", experiment, found)
            return
        again = None
        if experiment.again:
            arm, seed = experiment.again["arm"], experiment.again["seed"]
            first = next(each for each in found if each.label == arm and each.name == f"{arm} {seed}")
            again = same(first, runs.arm(arm, seed, AGAIN))
        facts = {name: json.loads(runs.made(name).read_bytes()) for name in experiment.facts}
        write_page(experiment, found, steps=run.steps, cpu=runs.cpu, again=again, facts=facts, tuning=runs.tuning)


if __name__ == "__main__":
    main()
