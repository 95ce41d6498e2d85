"""The runs of an experiment: each arm and seed is one training by `llamafactory-cli train`, then its measures.

Every step is one command line of `finepref.pipelines.steps`: what is done is not done again, and a changed setting is
refused. The folder of the runs has

    data/                      rows, and dataset_info.json
    steps/NAME/                a step that is done once
    runs/ARM-SEED/train/model  a training, with its log and receipt
    runs/ARM-SEED/NAME/        what is done after it, and what a measure wrote
    runs/ARM-SEED/NAME.jsonl   a dataset of the run's own
    tuning/ARM-VALUE/          a run of the tuning, likewise
    cpu.json                   step -> seconds of CPU time
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiment import Experiment
from finepref.evals.model_folder import RECEIPT
from finepref.formats.files import write_json
from finepref.hosts.receipt import EVALUATION, FILE_NAME
from finepref.pipelines import llamafactory
from finepref.pipelines.run_folders import Figure, Run, read_runs
from finepref.pipelines.steps import Pipeline

RECEIPTS = (FILE_NAME, EVALUATION, RECEIPT)
AGAIN = "again"
"""Folder of the run that is done a second time, beside `runs`."""


class Runs:
    """An experiment in a folder.

    Args:
        experiment: which.
        run: the pipeline of the folder.
        model: folder of a model in place of the one that the steps make, for `small`.
    """

    def __init__(self, experiment: Experiment, run: Pipeline, *, model: Path | None = None) -> None:
        self.experiment, self.run, self.model = experiment, run, model
        self.tuning: dict[str, Any] | None = None
        self._times = run.path("cpu.json")
        self.cpu: dict[str, float] = json.loads(self._times.read_bytes()) if self._times.exists() else {}

    def prepare(self) -> None:
        """The rows, and the steps that are done once."""
        own = self.experiment
        self.run.path("data").mkdir(parents=True, exist_ok=True)
        write_json(self.run.path("data", "dataset_info.json"), _table(own.datasets))
        for name, step in own.steps.items():
            if isinstance(step, str):
                self._command(f"steps/{name}", step, self.made(name))
            else:
                self._train(f"steps/{name}", step)

    def tune(self) -> None:
        """Choose a value of the tuned key for each tuned arm; all later runs of the arm have it.

        `tuning` is then {key, figure, seed, values: arm -> value -> figure, best: arm -> value}.
        """
        plan = self.experiment.tune
        if plan is None:
            return
        values: dict[str, dict[str, float]] = {arm: {} for arm in plan.arms}
        for arm in plan.arms:
            for value in plan.values:
                place = f"tuning/{arm}-{value}".replace(" ", "_")
                found = self._arm(arm, plan.seed, place, {plan.key: value}, plan.measures)
                values[arm][str(value)] = found.figures[plan.figure].value
        sign = 1 if plan.expected == "higher" else -1
        best = {arm: max(plan.values, key=lambda value: sign * own[str(value)]) for arm, own in values.items()}
        self.tuning = {"key": plan.key, "figure": plan.figure, "seed": plan.seed, "values": values, "best": best}

    def arm(self, arm: str, seed: int, folder: str = "runs") -> Run:
        """Train an arm with a seed and measure it; its figures and curves, labelled with the arm."""
        tuned = self.tuning or {"best": {}}
        change = {tuned["key"]: tuned["best"][arm]} if arm in tuned["best"] else {}
        place = f"{folder}/{arm}-{seed}".replace(" ", "_")
        return self._arm(arm, seed, place, change, self.experiment.part("measures", arm))

    def _arm(self, arm: str, seed: int, place: str, change: Mapping[str, Any], measures: Mapping[str, str]) -> Run:
        """See `arm`.

        Args:
            arm: its name.
            seed: of every training.
            place: folder of the run.
            change: keys on top of the arm's.
            measures: name -> command line.
        """
        own = self.experiment
        keys = {key: each for key, each in own.arms[arm].items() if key not in ("then", "measures")}
        names: dict[str, object] = {"here": self.run.path(place), "arm": arm, "seed": seed}
        if untrained := keys.get("untrained"):
            trained = self.model or Path(str(self._filled(untrained)))
            found = Run(arm, trained)
        else:
            trained = self._train(f"{place}/train", {**own.train, **keys, **change, "seed": seed})
            found = read_runs([str(trained)], RECEIPTS)[0]
        if found.receipt is None and own.trains(arm):  # the host's own stages leave none
            found = replace(found, receipt={"seed": seed})
        names |= {"run": trained, "last": trained}
        names["last"] = self._then(own.part("then", arm), seed, place, names)
        figures = dict(found.figures)
        for name, command in measures.items():
            output = self.run.path(f"{place}/{name}", "figures")
            output.mkdir(parents=True, exist_ok=True)
            self._command(f"{place}/{name}", command, output, **names)
            figures |= read_runs([str(output)], RECEIPTS)[0].figures
        curves = dict(found.curves)
        for name, (first, second) in own.derived.items() if curves else ():
            curves[name] = _difference(curves[first], curves[second])
            figures[name] = Figure(curves[name][-1][1])
        return replace(found, name=f"{arm} {seed}", label=arm, figures=figures, curves=curves)

    def _then(self, steps: Mapping[str, Any], seed: int, place: str, names: Mapping[str, object]) -> object:
        """Do what comes after a run's training; gives the model of the last training, or `names["last"]`.

        Args:
            steps: name -> a command line, or the keys of a training.
            seed: of every training.
            place: folder of the run.
            names: placeholder -> its value.
        """
        here, datasets, last = self.run.path(place), self.experiment.own, names["last"]
        if datasets:
            here.mkdir(parents=True, exist_ok=True)
            write_json(here / "dataset_info.json", _table(datasets))
        for name, step in steps.items():
            if isinstance(step, str):
                output = here / f"{name}.jsonl" if name in datasets else here / name / "made"
                self._command(f"{place}/{name}", step, output, **{**names, "last": last})
            else:
                last = self._train(f"{place}/{name}", {**step, "seed": seed}, here, **names)
        return last

    def made(self, name: str) -> Path:
        """What a step's command wrote."""
        if name in self.experiment.datasets:
            return self.run.path("data", f"{name}.jsonl")
        return self.run.path(f"steps/{name}", "made")

    def _train(self, step: str, keys: Mapping[str, Any], data: Path | None = None, **names: object) -> Path:
        """A training by the host; gives the folder that it wrote. `data`: of its dataset, if that is the run's own."""
        section = {name: self._filled(value, **names) for name, value in keys.items()}
        if self.model is not None:
            section["model_name_or_path"] = str(self.model)
        data = data or self.run.path("data")
        datasets = [section[key] for key in ("dataset", "eval_dataset") if section.get(key)]
        files = [data / f"{name}.jsonl" for each in datasets for name in str(each).split(",")]
        above = {"model_name_or_path": section.pop("model_name_or_path"), "dataset_dir": data}
        with self._timed(step):
            return llamafactory.train(self.run, step, section, above, inputs=files)

    def _command(self, step: str, text: str, output: Path, **names: object) -> None:
        words = [str(self._filled(word, output=output, **names)) for word in shlex.split(text)]
        paths = [Path(word.partition("=")[2] or word) for word in words]
        inside = [path for path in paths if self.run.folder in path.parents and output not in (path, *path.parents)]
        with self._timed(step):
            self.run.run(step, words, inputs=[path for path in inside if path.exists()], outputs=[output])

    def _filled(self, value: object, **names: object) -> object:
        """A text with its placeholders replaced; other values as they are."""
        if not isinstance(value, str) or "{" not in value:
            return value
        return value.format(folder=self.run.folder, **names)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        """Note the CPU time of a step that is done now; one that was done before started no process."""
        before = os.times()
        yield
        after = os.times()
        if (before.children_user, before.children_system) != (after.children_user, after.children_system):
            seconds = after.children_user - before.children_user + after.children_system - before.children_system
            self.cpu[step] = round(seconds, 1)
            write_json(self._times, self.cpu)


def every(runs: Runs, seeds: int) -> list[Run]:
    """All arms with seeds 1 to `seeds`, arm by arm; trained seed by seed, so that a stop leaves whole seeds."""
    runs.prepare()
    runs.tune()
    found: dict[str, list[Run]] = {arm: [] for arm in runs.experiment.arms}
    for seed in range(1, seeds + 1):
        for arm in found:
            if seed == 1 or runs.experiment.trains(arm):
                found[arm].append(runs.arm(arm, seed))
    return [run for own in found.values() for run in own]


def _table(datasets: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A dataset_info.json."""
    return {name: {"file_name": f"{name}.jsonl", **entry} for name, entry in datasets.items()}


def _difference(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(step, value - minus) for (step, value), (_, minus) in zip(one, other, strict=True)]
