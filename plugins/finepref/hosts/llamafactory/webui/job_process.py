"""The first process of a job of the web UI: runs its command, keeps what it prints, adds its outputs to the data sets.

`python -m finepref.hosts.llamafactory.webui.job_process FOLDER LOCK`, see `jobs`. The command writes to a terminal of
its own, because progress bars are only drawn in terminals.
"""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import tty
from dataclasses import asdict, replace
from pathlib import Path

from finepref.formats import dataset_info
from finepref.formats.check import BadData
from finepref.formats.files import write_json
from finepref.hosts.llamafactory.webui.jobs import LOG, PROGRESS, RECORD, RESULT, Progress, Record, Result

WIDTH = 160
EVERY = 0.3
"""Seconds between two writings of the progress."""
BAR = re.compile(r"(.*?):?\s+(\d+)%\|.*\|\s*([^/\s]+)/(\S+) \[[^<\]]*<([^,\]]+)")
OPEN_BAR = re.compile(r"(.*?):? (\d+ ?[^\[\d]*) \[[\d:?]+, ")  # without a known end
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PLAIN = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": str(WIDTH), "PYTHONUNBUFFERED": "1", "TYPER_USE_RICH": "0"}


class Output:
    """What a command prints, divided into lines and progress bars.

    Args:
        folder: of the job.
        record: its record.
    """

    def __init__(self, folder: Path, record: Record) -> None:
        self._folder = folder
        self._own = record.bar
        self._log = (folder / LOG).open("w", encoding="utf-8", buffering=1)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""
        self._written = 0.0
        self._changed = False
        self.progress = Progress()

    def feed(self, data: bytes) -> None:
        """Read further bytes; an incomplete line waits for the next ones."""
        *whole, self._rest = re.split(r"[\r\n]", self._rest + self._decoder.decode(data))
        for line in whole:
            self._line(line)
        if bar := self._bar(self._rest):
            self._note(bar)
        if self._changed and time.monotonic() - self._written >= EVERY:
            self.flush()

    def flush(self) -> None:
        """Write the progress."""
        partial = self._folder / f".{PROGRESS}.partial"
        partial.write_text(json.dumps(asdict(self.progress)), encoding="utf-8")
        os.replace(partial, self._folder / PROGRESS)
        self._written, self._changed = time.monotonic(), False

    def close(self) -> None:
        """Take the last line, and write all."""
        self._line(self._rest)
        self.flush()
        self._log.close()

    def _line(self, line: str) -> None:
        text = CONTROLS.sub("", line).rstrip()
        if bar := self._bar(text):
            self._note(bar)
        elif text:
            print(text, file=self._log)

    def _bar(self, text: str) -> Progress | None:
        """The progress that a line shows, None if it is not a bar."""
        if found := BAR.match(CONTROLS.sub("", text)):
            part, percent, done, total, left = found.groups()
            if self._own and part.startswith(self._own):
                return Progress(part=part, done=done, total=total, percent=int(percent), left=left)
            return replace(self.progress, note=f"{part}: {done}/{total}".removeprefix(": "))
        if found := OPEN_BAR.match(text):
            return replace(self.progress, note=f"{found[1]}: {found[2]}".removeprefix(": "))
        return None

    def _note(self, progress: Progress) -> None:
        self.progress, self._changed = progress, True


def run(folder: Path, lock: int) -> Result:
    """Run the command of a job's record, and write its result."""
    record = Record(**json.loads((folder / RECORD).read_bytes()))
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    reading, writing = os.openpty()
    tty.setraw(writing)
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 50, WIDTH, 0, 0))
    output = Output(folder, record)
    command = subprocess.Popen(
        record.command,
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=writing,
        pass_fds=(lock,),
        env=os.environ | PLAIN,
    )
    os.close(writing)
    if told:  # it came before the command could have heard it
        command.terminate()
    while data := _read(reading, command):
        output.feed(data)
    code = command.wait()
    output.close()
    added, problem = [], ""
    for file, (name, formatting) in record.sets.items():
        path = Path(record.dataset_dir) / file
        if code < 0 or told or not path.is_file() or not path.stat().st_size:
            continue
        try:
            dataset_info.add(record.dataset_dir, name, {"file_name": file, "formatting": formatting})
            added.append(name)
        except (BadData, OSError) as error:
            problem = str(error)
    result = Result(code=code, aborted=bool(told), added=added, problem=problem)
    write_json(folder / RESULT, asdict(result))
    return result


def _read(reading: int, command: subprocess.Popen) -> bytes:
    """Further bytes of what a command prints; b"" once it has ended and all is read."""
    while True:
        ended = command.poll() is not None
        if select.select([reading], [], [], 0 if ended else EVERY)[0]:
            try:
                return os.read(reading, 65536)
            except OSError:  # no process has the terminal open
                command.wait()
                return b""
        if ended:
            return b""


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
