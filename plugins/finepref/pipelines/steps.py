"""Pipelines of commands that can be killed at any point and resumed: a finished step is not run again.

A step has a folder with `step.json` (its command, digests of its inputs and outputs, its time) and `log.txt`. If a
step is killed while it runs, its command has to resume: our commands have journals, the hosts have checkpoints.

A private step is one whose data nobody else should see. What it prints goes neither to the terminal nor to the log,
because hosts print rows and errors quote them: its errors are in `private.txt`, and only their kinds are told. All
files that it writes are readable by the user only, also those that the library `datasets` copies rows to, which are in
the step's folder until it ends and not in the user's cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NoReturn

import psutil

from finepref.formats.files import write_json

RECORD, LOG = "step.json", "log.txt"
PRIVATE, CACHE = "private.txt", "datasets_cache"
"""Of a private step: its standard error, and the copies of rows that the library `datasets` makes."""
OWN = {RECORD, LOG, PRIVATE, CACHE}
"""What is in a step's folder before its command has made anything."""
KINDS = re.compile(
    r"^(?:(?:[\w.]+: )?([A-Z]{2,8}\d{3}) |([\w.]+(?:Error|Exception|Interrupt|Changed|Damaged|Busy))\b)", re.M
)
"""A problem's code, or the class of an error, at the beginning of a line."""


GRACE = 20.0
"""Seconds that the processes of a step have to end when the run is told to."""


class StepChanged(ValueError):  # noqa: N818
    """A step was started with another command or other inputs."""


class StepFailed(RuntimeError):  # noqa: N818
    """The command of a step failed, or did not write its outputs."""


class PipelineBusy(RuntimeError):  # noqa: N818
    """Another run, or a command that it left running, uses the folder."""


class Pipeline:
    """The steps of one folder; a context manager, with one run per folder at a time.

    The commands inherit the lock, so that a second run cannot start while commands of a killed run are still running.
    SIGTERM and SIGHUP, as a scheduler or a closed terminal sends them, end the step's processes and then the run.

    Args:
        folder: of the run; created if it does not exist. It contains the folders of all steps.

    Attributes:
        steps: step name -> contents of its `step.json`, in the order of the calls of `run`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.steps: dict[str, dict[str, object]] = {}

    def __enter__(self) -> Pipeline:
        """Take the lock.

        Raises:
            PipelineBusy: it is taken.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / "lock", "a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise PipelineBusy(f"{self.folder} is in use by another run, or by a step that it left behind") from None
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._lock.close()

    def path(self, step: str, name: str = "") -> Path:
        """The folder of a step, such as `round_1/sample`, or a file in it."""
        return self.folder / step / name

    def run(
        self,
        step: str,
        command: Sequence[object],
        *,
        inputs: Iterable[Path] = (),
        outputs: Iterable[Path],
        environment: Mapping[str, str] | None = None,
        private: bool = False,
    ) -> None:
        """Run one command, unless it has finished before.

        Args:
            step: its name, which is also that of its folder.
            command: words; the first is a command of this Python environment or of the PATH.
            inputs: files and folders that the step reads.
            outputs: files and folders that it must write.
            environment: further variables; not for secrets, because `step.json` contains them.
            private: the data of the step is nobody else's, see the module's docstring.

        Raises:
            StepChanged: the folder contains the work of another command or of other inputs.
            StepFailed: see there.
        """
        folder = self.path(step)
        folder.mkdir(parents=True, exist_ok=True)
        words = [str(word) for word in command]
        wanted: dict[str, object] = {
            "command": words,
            "environment": dict(environment or {}),
            "inputs": {str(path): content_digest(path) for path in inputs},
        }
        made = [*outputs]
        found = json.loads((folder / RECORD).read_bytes()) if (folder / RECORD).exists() else {}
        there = [path for path in made if path.exists()]
        begun = bool(there) or any(path.name not in OWN for path in folder.iterdir())
        if found and begun and (change := _change(found, wanted)):
            raise StepChanged(
                f"{folder} was started differently: {change}; undo that, or remove {folder} to run the step again"
            )
        if "outputs" in found and begun:
            if found["outputs"] != {str(path): content_digest(path) for path in there}:
                raise StepChanged(f"the outputs of {step} were changed since; remove {folder} to run the step again")
            print(f"{step}: already done, in {found['seconds']} s", flush=True)
        else:
            found = wanted | self._execute(step, words, wanted, environment or {}, made, private)
        self.steps[step] = found

    def _execute(
        self,
        step: str,
        words: list[str],
        wanted: Mapping[str, object],
        environment: Mapping[str, str],
        made: Sequence[Path],
        private: bool,
    ) -> dict[str, object]:
        """Run the command of a step; returns its outputs and time.

        Args:
            step: its name.
            words: the command.
            wanted: what `step.json` holds from the start on.
            environment: further variables.
            made: files and folders that it must write.
            private: see `run`.

        Raises:
            StepFailed: see there.
        """
        write_json(self.path(step, RECORD), wanted)
        shown = shlex.join([*(f"{name}={value}" for name, value in environment.items()), *words])
        print(f"\n{step}\n$ {shown}", flush=True)
        bin_folder = str(Path(sys.executable).parent)
        variables = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}"}
        variables |= {"PYTHONUNBUFFERED": "1"} | dict(environment)
        started = time.monotonic()
        with open(self.path(step, LOG), "ab") as log:
            log.write(f"$ {shown}\n".encode())
            if private:
                log.flush()
                code = self._in_private(step, words, variables)
            else:
                code = self._in_public(words, variables, log)
        if code != 0:
            raise StepFailed(self._failure(step, code, private))
        if missing := [str(path) for path in made if not path.exists()]:
            place = self.path(step, PRIVATE if private else LOG)
            raise StepFailed(f"{step} did not write {', '.join(missing)}, see {place}")
        done: dict[str, object] = {
            "outputs": {str(path): content_digest(path) for path in made},
            "seconds": round(time.monotonic() - started, 1),
        }
        write_json(self.path(step, RECORD), dict(wanted) | done)
        return done

    def _in_public(self, words: list[str], variables: Mapping[str, str], log: BinaryIO) -> int:
        """Run a command whose output is shown and kept; returns its exit status.

        Args:
            words: the command.
            variables: its environment.
            log: gets the output.
        """
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=variables,
            pass_fds=[self._lock.fileno()],
        )
        try:
            assert process.stdout is not None
            while piece := process.stdout.read1():  # type: ignore[attr-defined]
                log.write(piece)
                sys.stdout.buffer.write(piece)
                sys.stdout.flush()
            return process.wait()
        finally:
            _end(process)

    def _in_private(self, step: str, words: list[str], variables: Mapping[str, str]) -> int:
        """Run a command of a private step; returns its exit status.

        Args:
            step: its name.
            words: the command.
            variables: its environment.
        """
        cache = self.path(step, CACHE)
        own = os.open(self.path(step, PRIVATE), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = subprocess.Popen(
                words,
                stdout=subprocess.DEVNULL,
                stderr=own,
                env=dict(variables) | {"HF_DATASETS_CACHE": str(cache.resolve())},
                pass_fds=[self._lock.fileno()],
                umask=0o077,
            )
            try:
                code = process.wait()
            finally:
                _end(process)
        finally:
            os.close(own)
        if code == 0:
            shutil.rmtree(cache, ignore_errors=True)
        return code

    def _failure(self, step: str, code: int, private: bool) -> str:
        """What is told of a command that failed; of a private one the kinds of its errors, not their texts."""
        if not private:
            return f"{step} ended with code {code}, see {self.path(step, LOG)}"
        path = self.path(step, PRIVATE)
        told = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        kinds = ", ".join(dict.fromkeys(first or second for first, second in KINDS.findall(told)[-8:]))
        named = f" ({kinds})" if kinds else ""
        return f"{step} ended with code {code}{named}; {path} has its errors, which may repeat private texts"


def _leave(number: int, _frame: object) -> NoReturn:
    """End the process as a shell tells of a signal, by an exception, so that the step is ended too."""
    raise SystemExit(128 + number)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command, if it still runs, and all processes that it has started: launchers do not always pass it on."""
    if process.poll() is None:
        command = psutil.Process(process.pid)
        running = [*command.children(recursive=True), command]
        for each in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.terminate()
        for each in psutil.wait_procs(running, timeout=GRACE)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()


def folders(*models: str) -> list[Path]:
    """The models that are local folders, which are inputs of a step; the others are names of a hub."""
    return [Path(model) for model in models if model and Path(model).is_dir()]


def content_digest(path: Path) -> str:
    """32 hex digits of a file's bytes, or of the names and bytes of all files under a folder.

    Raises:
        FileNotFoundError: there is no such file or folder.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_dir():
            with open(file, "rb") as stream:
                content = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest()
            digest.update(file.relative_to(path).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()


def _change(found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    """The difference, for a message; empty if there is none."""
    old, new = found["command"], wanted["command"]
    assert isinstance(old, list)
    assert isinstance(new, list)
    if old != new:
        gone, come = ([word for word in one if word not in other] for one, other in ((old, new), (new, old)))
        return f"{shlex.join(gone)!r} before, {shlex.join(come)!r} now" if gone or come else "another order of options"
    if found["environment"] != wanted["environment"]:
        return f"environment {found['environment']} before, {wanted['environment']} now"
    before, now = found["inputs"], wanted["inputs"]
    assert isinstance(before, dict)
    assert isinstance(now, dict)
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return f"changed contents of {', '.join(changed)}" if changed else ""
