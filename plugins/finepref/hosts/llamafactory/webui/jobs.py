"""Commands that the web UI starts in the background, one at a time for each output.

All state is in the folder of a job, so that several browser tabs, a reload and a restart of the web UI see the same:

    record.json    what was started: see `Record`
    lock           locked by the kernel as long as any process of the job is alive; the processes inherit it
    pid            of the first process, which leads the job's process group (`job_process`)
    progress.json  the last progress bar, see `Progress`
    log.txt        what the command has printed, without progress bars
    result.json    how it ended, see `Result`; not there if it was killed
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from finepref.formats.files import write_json

RECORD, LOCK, PID, PROGRESS, LOG, RESULT = "record.json", "lock", "pid", "progress.json", "log.txt", "result.json"
SUFFIX = ".job"
GRACE = 10.0
"""Seconds that an aborted job has to end by itself."""
TAIL = 32_000
"""Bytes of the log that are read for the last lines."""
TRIES = 3
_STARTING = threading.Lock()


class JobBusy(RuntimeError):  # noqa: N818
    """The job is running already."""


class State(StrEnum):
    """What a job is doing."""

    running = "running"
    done = "done"
    failed = "failed"
    stopped = "stopped"
    """Aborted or killed; what it has done is kept."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was started.

    Attributes:
        kind: which form it comes from.
        stage: the label of the stage for which it was started.
        command: its words.
        dataset_dir: the folder of the dataset_info.json to which the outputs are added.
        sets: file of an output, relative to that folder -> its name and format as a data set.
        bar: how the names of the command's own progress bars begin.
        parts: these names, one after the other; () if their number is not known.
        begun: when, in seconds of `time.time`.
    """

    kind: str
    stage: str = ""
    command: Sequence[str]
    dataset_dir: str
    sets: Mapping[str, tuple[str, str]]
    bar: str = ""
    parts: Sequence[str] = ()
    begun: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The last progress bars of a command.

    Attributes:
        part: name of the job's own bar.
        done, total: as the bar writes them.
        percent: of this part.
        left: the time that is left for this part, as the bar writes it; "?" if it is not known.
        note: the last bar of something else, such as the loading of a model.
    """

    part: str = ""
    done: str = ""
    total: str = ""
    percent: int = 0
    left: str = "?"
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a job ended.

    Attributes:
        code: exit code of the command; below 0 the signal that ended it.
        aborted: whether the job was told to end.
        added: names of the data sets that are in dataset_info.json now.
        problem: why an output could not be added, "" if none.
    """

    code: int
    aborted: bool = False
    added: Sequence[str] = ()
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Status:
    """A job as its folder tells."""

    name: str
    state: State
    record: Record
    progress: Progress = field(default_factory=Progress)
    result: Result | None = None
    lines: Sequence[str] = ()

    @property
    def share(self) -> float | None:
        """The share of the whole job that is done, 0 to 1; None while that is not known."""
        if not self.progress.part:
            return None
        parts = [*self.record.parts]
        if self.progress.part not in parts:
            return self.progress.percent / 100
        return (parts.index(self.progress.part) + self.progress.percent / 100) / len(parts)


@dataclass(frozen=True)
class Job:
    """A job by its folder."""

    folder: Path

    @property
    def name(self) -> str:
        """Its name, which is that of its output."""
        return self.folder.name.removesuffix(SUFFIX)

    def start(self, record: Record) -> None:
        """Start the command in a process group of its own. It does not end with this process.

        Raises:
            JobBusy: it is running, here or as a child of another web UI.
        """
        with _STARTING:
            lock = self._lock(fcntl.LOCK_EX)
            for _ in range(TRIES):
                if lock is None:  # perhaps another web UI only asks whether it is running
                    time.sleep(0.05)
                    lock = self._lock(fcntl.LOCK_EX)
            if lock is None:
                raise JobBusy(self.name)
            try:
                for name in (PID, PROGRESS, LOG, RESULT):
                    (self.folder / name).unlink(missing_ok=True)
                write_json(self.folder / RECORD, asdict(record) | {"begun": time.time()})
                words = ["-m", "finepref.hosts.llamafactory.webui.job_process", str(self.folder), str(lock)]
                process = subprocess.Popen(
                    [sys.executable, *words],
                    pass_fds=(lock,),
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
                (self.folder / PID).write_text(str(process.pid))
            finally:
                os.close(lock)
        threading.Thread(target=process.wait, daemon=True).start()

    def running(self) -> bool:
        """Whether any process of it is alive."""
        if not (self.folder / LOCK).exists():
            return False
        with _STARTING:
            lock = self._lock(fcntl.LOCK_SH)
            if lock is None:
                return True
            os.close(lock)
            return False

    def abort(self, *, grace: float = GRACE) -> None:
        """End the process group: first by SIGTERM, after some seconds by SIGKILL. Does nothing if none is alive."""
        for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
            deadline = time.monotonic() + seconds
            told = False
            while self.running() and time.monotonic() < deadline:
                if not told and (pid := self._pid()):
                    with suppress(ProcessLookupError):
                        os.killpg(pid, number)
                    told = True
                time.sleep(0.05)

    def status(self, lines: int = 20) -> Status | None:
        """What it is doing, and the last lines of what it has printed; None if nothing was ever started."""
        running = self.running()  # first, so that a job that ends meanwhile is not told as stopped
        record, result = self._read(RECORD), self._read(RESULT)
        if not record:
            return None
        state = State.running
        ended = Result(**result) if result else None
        if not running:
            state = State.stopped
            if ended is not None and not ended.aborted:
                state = State.failed if ended.code or ended.problem else State.done
        return Status(
            name=self.name,
            state=state,
            record=Record(**record),
            progress=Progress(**self._read(PROGRESS)),
            result=ended,
            lines=self._printed().splitlines()[-lines:],
        )

    def _lock(self, kind: int) -> int | None:
        """A descriptor with the lock, None if it is taken."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def _printed(self) -> str:
        """The end of what the command has printed."""
        try:
            with open(self.folder / LOG, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def _pid(self) -> int:
        try:
            return int((self.folder / PID).read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.folder / name).read_bytes())
        except (FileNotFoundError, ValueError):
            return {}


def jobs_in(folder: Path) -> list[Job]:
    """The jobs whose outputs are in a folder, by name."""
    return [Job(path.parent) for path in sorted(folder.glob(f"*{SUFFIX}/{RECORD}"))]
