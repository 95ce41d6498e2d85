"""The folder of one model's results: a file per task, which is there or not, so that finished tasks are not run again.

OUTPUT/MODEL/results.json                    all tasks and suites, for people and for tables
             finepref_eval_receipt.json      what was evaluated: model, adapter, template, versions, commands
             tasks/TASK.json                 a task: settings, metrics, groups
             samples/TASK.jsonl              a row per document: its id and its metrics
             work/                           answers of unfinished tasks
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from finepref.evals.suites import SUITES, table
from finepref.formats.files import write_json
from finepref.formats.jsonl import write_jsonl
from finepref.formats.problems import BadData, Problem
from finepref.hosts import model_identity
from finepref.hosts.receipt import now, versions
from finepref.hosts.receipt import read as read_receipt
from finepref.synth.journal import locked

RECEIPT = "finepref_eval_receipt.json"
RESULTS = "results.json"
FORMAT = 1
"""Version of the files."""


class Target(NamedTuple):
    """What is evaluated.

    Attributes:
        name: of its folder.
        model: folder or hub name.
        adapter: folder or hub name of a peft adapter on it.
    """

    name: str
    model: str
    adapter: str | None = None

    @property
    def tokenizer(self) -> str:
        """Where its tokenizer is: with the adapter, if that has one of its own."""
        if self.adapter and (Path(self.adapter) / "tokenizer_config.json").is_file():
            return self.adapter
        return self.model


class Result(NamedTuple):
    """The outcome of a task.

    Attributes:
        n: number of documents.
        metrics: name -> {value, stderr?, higher_is_better?}.
        by: group of documents, such as an error type -> its figures.
        samples: a row per document, {id, ...}.
        told: further facts: number of examples, version of the task, rows left out.
    """

    n: int
    metrics: Mapping[str, Mapping[str, Any]]
    by: Mapping[str, Mapping[str, Any]] = {}
    samples: Sequence[Mapping[str, Any]] = ()
    told: Mapping[str, Any] = {}


class ModelFolder:
    """The folder of a model; a context manager, with one process per folder at a time.

    Args:
        output: the folder of all models.
        target: the model.
        overwrite: replace results with other settings.

    Raises:
        BadData: the folder holds the results of another model (FP302).
        JournalBusy: another process writes to it.
    """

    def __init__(self, output: Path, target: Target, *, overwrite: bool = False) -> None:
        self.folder, self.target, self.overwrite = output / target.name, target, overwrite
        self._receipt: dict[str, Any] = {}
        self._runs: list[dict[str, Any]] = []

    def __enter__(self) -> ModelFolder:
        self._lock = locked(self.folder)
        try:
            self._receipt = self._described()
            self._check_model()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def work(self, task: str, settings: Mapping[str, Any]) -> Path:
        """The folder of an unfinished task; other settings, and a model that was changed, have another one."""
        parts = [settings, self._receipt["model"], self._receipt["adapter"]]
        told = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=4).hexdigest()
        folder = self.folder / "work" / f"{file_name(task)}-{told}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def rejected(self, task: str) -> Path:
        """The file of the rows of a task that cannot be read."""
        return self.folder / "samples" / f"{file_name(task)}.rejected.jsonl"

    def finished(self, task: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The result of a task that is there with these settings, None if it is still to be run.

        Raises:
            BadData: it is there with other settings, which are not to be overwritten (FP302).
        """
        path = self._task(task)
        if not path.is_file():
            return None
        found = json.loads(path.read_bytes())
        asked = json.loads(json.dumps(settings))
        if found["settings"] == asked:
            return dict(found)
        if self.overwrite:
            return None
        told = ", ".join(
            f"{name} {found['settings'].get(name)!r} there, {asked.get(name)!r} now"
            for name in sorted(found["settings"].keys() | asked.keys())
            if found["settings"].get(name) != asked.get(name)
        )
        text = f"holds {task} with other settings: {told}; choose another --output, or --overwrite replaces it"
        raise BadData([Problem(str(path), 0, "", "FP302", text)])

    def keep(self, task: str, settings: Mapping[str, Any], result: Result) -> None:
        """Write the result of a task, and what all tasks give together."""
        if result.samples:  # a group has none of its own
            write_jsonl(self.folder / "samples" / f"{file_name(task)}.jsonl", result.samples)
        own = {"format": FORMAT, "task": task, "n": result.n, "metrics": result.metrics, "by": result.by}
        write_json(self._task(task), {**own, **result.told, "settings": settings})
        self.summarise()

    def summarise(self) -> dict[str, Any]:
        """Write and return results.json: {model, tasks: {task: ...}, suites: {suite: {label: {value, ...}}}}."""
        paths = sorted((self.folder / "tasks").glob("*.json"))
        tasks = {found["task"]: found for found in (json.loads(path.read_bytes()) for path in paths)}
        suites = {name: lines for name in SUITES if (lines := table(name, tasks))}
        content = {"format": FORMAT, "model": self.target.name, "tasks": tasks, "suites": suites}
        write_json(self.folder / RESULTS, content)
        return content

    def ran(self, tasks: Sequence[str], seconds: float, further: Mapping[str, Any]) -> None:
        """Write the receipt, with this command as the last of its runs.

        Args:
            tasks: that it ran so far; those that were finished before are not among them.
            seconds: wall time.
            further: facts for the receipt, such as the chat template's digest.
        """
        run = {"at": now(), "command": sys.argv, "tasks": [*tasks], "seconds": round(seconds, 1)}
        write_json(self.folder / RECEIPT, self._receipt | further | {"runs": [*self._runs, run]})

    def _task(self, task: str) -> Path:
        return self.folder / "tasks" / f"{file_name(task)}.json"

    def _described(self) -> dict[str, Any]:
        model, adapter = self.target.model, self.target.adapter
        trained = model_identity.folder_of(adapter or model)
        found = read_receipt(trained) if trained else None
        return {
            "format": FORMAT,
            "name": self.target.name,
            "model": model_identity.identity(model),
            "adapter": model_identity.identity(adapter) if adapter else None,
            "trained": {key: found[key] for key in ("stage", "seed", "optimizer_steps")} if found else None,
            "versions": versions() | eval_versions(),
        }

    def _check_model(self) -> None:
        path = self.folder / RECEIPT
        if not path.is_file():
            return
        before = json.loads(path.read_bytes())
        for part in ("model", "adapter"):
            old, new = before.get(part), self._receipt[part]
            if (old is None) != (new is None) or (old and new and not model_identity.same(old, new)):
                names = [each["path"] if each else "none" for each in (old, new)]
                told = f"holds the results of another {part} ({names[0]}; now {names[1]})"
                text = f"{told}: name the model anew, NAME=FOLDER, or choose another --output"
                raise BadData([Problem(str(self.folder), 0, "", "FP302", text)])
        self._runs = before.get("runs", [])


def eval_versions() -> dict[str, str]:
    """Versions of the packages that evaluate, besides those of every receipt."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("lm_eval", "reasoning-gym", "vllm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def file_name(task: str) -> str:
    """A task's name as that of a file."""
    return re.sub(r"[^\w.@-]+", "_", task)
