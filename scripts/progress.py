"""Run an installer quietly and say what it does and how far it is. Standard library only: nothing is installed yet.

    python3 scripts/progress.py --log FILE [--lock LOCK --into ENVIRONMENT] TITLE -- pip install ...
    python3 scripts/progress.py --log FILE TITLE -- apt-get install ...

The command's whole output goes to the log. A terminal shows a bar; elsewhere there is a line at the end, and one every
half minute until then. Warnings are shown as they come, but for those in NOISE. If the command fails, the end of the
log and the log's name are shown, and the exit code is the command's.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

LINE_EVERY_SECONDS = 30.0
UNITS = {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}
# Warnings that ask nothing of anyone.
NOISE = re.compile(
    r"Location '.*' is ignored: it is neither a file nor a directory"  # one of several indexes has not this package
    r"|Running pip as the 'root' user"  # in a container it is
    r"|apt does not have a stable CLI interface"
)


class State:
    """What the lines of pip or apt-get have told so far."""

    def __init__(self, wanted: set[str], site: Path | None) -> None:
        self.wanted, self.site = wanted, site
        self.total = len(wanted)
        self.there = self.fetched = self.set_up = 0
        self.bytes = 0.0
        self.now, self.installing = "", False
        self.sizes: dict[Path, int] = {}

    def read(self, line: str) -> None:
        """Take in one line of output."""
        if line.startswith("Requirement already satisfied: "):
            self.there += 1
        elif found := re.match(r"\s*(?:Downloading|Using cached) (\S+?)(?: \(([\d.]+) ([kMG]?B)\))?$", line):
            if not found[1].endswith(".metadata"):
                self.fetch(found[1].rsplit("/", 1)[-1].split("-")[0], float(found[2] or 0) * UNITS[found[3] or "B"])
        elif found := re.match(r"Processing (\S+\.(?:whl|tar\.gz))", line):
            file = Path(found[1])
            self.fetch(file.name.split("-")[0], file.stat().st_size if file.is_file() else 0)
        elif found := re.match(r"Get:\d+ \S+ \S+ \S+ (\S+) .*\[([\d.,]+) ([kMG]?B)\]", line):
            self.fetch(found[1], float(found[2].replace(",", "")) * UNITS[found[3]])
        elif found := re.match(r"Building wheels? for .*?: (.*)|\s*Building wheel for (\S+)", line):
            self.now = f"building {found[1] or found[2]}"
        elif line.startswith("Installing collected packages: "):
            self.installing, self.now = True, ""
        elif found := re.match(r"\d+ upgraded, (\d+) newly installed", line):
            self.total = int(found[1])
        elif found := re.match(r"Setting up (\S+)", line):
            self.installing, self.now = True, found[1]
            self.set_up += 1

    def fetch(self, name: str, size: float) -> None:
        self.now, self.fetched, self.bytes = name, self.fetched + 1, self.bytes + size

    def installed(self) -> tuple[int, float]:
        """How many of the wanted packages are installed, and the bytes of all that are."""
        if self.site is None:
            return self.set_up, self.bytes
        for record in self.site.glob("*.dist-info/RECORD"):  # pip writes it when the other files are there
            if record not in self.sizes:
                ends = (line.rpartition(",")[2] for line in record.read_text("utf-8", "replace").splitlines())
                self.sizes[record] = sum(int(end) for end in ends if end.isdigit())
        names = {re.sub(r"[-_.]+", "-", record.parent.name.split("-")[0]).lower() for record in self.sizes}
        return len(names & self.wanted), sum(self.sizes.values())

    def share_and_text(self) -> tuple[float | None, str]:
        """The share that is done of what goes on now, if it can be told, and all of it in words."""
        count, size = self.installed() if self.installing else (self.there + self.fetched, self.bytes)
        words = ["installed" if self.installing else "fetched"]
        if count or self.total:
            words += [f"{count} of {self.total} packages" if count <= self.total else f"{count} packages"]
        words += [amount(size)] * (size > 0)
        share = count / self.total if count <= self.total and self.total else None
        return share, ", ".join(words).replace(",", "", 1) + (f", {self.now}" if self.now else "")


def amount(size: float) -> str:
    """Bytes in the unit that a reader would choose."""
    unit, divisor = ("GB", 1e9) if size >= 1e9 else ("MB", 1e6) if size >= 1e6 else ("kB", 1e3)
    return f"{size / divisor:.1f} {unit}"


def elapsed(since: float) -> str:
    """Minutes and seconds."""
    minutes, seconds = divmod(int(time.monotonic() - since), 60)
    return f"{minutes}:{seconds:02}"


def canonical(line: str) -> str:
    """A line of a lock file as the name of its package."""
    return re.sub(r"[-_.]+", "-", re.split(r"[=<>!~ ;\[]", line.strip())[0]).lower()


class Screen:
    """Where progress is shown: a bar on a terminal, whole lines elsewhere."""

    def __init__(self, out: TextIO, title: str) -> None:
        self.out, self.title, self.started = out, title, time.monotonic()
        self.bar = out.isatty() and os.environ.get("TERM") != "dumb" and "MAKE_TERMOUT" not in os.environ
        self.next_line = self.started + LINE_EVERY_SECONDS

    def show(self, state: State) -> None:
        """The state, unless it is too early for another line."""
        if not self.bar and time.monotonic() < self.next_line:
            return
        share, text = state.share_and_text()
        if self.bar:
            filled = "" if share is None else f"[{'#' * round(20 * share):-<20}] "
            text = f"{self.title}: {filled}{text}, {elapsed(self.started)}"
            self.out.write(f"\r{text[: shutil.get_terminal_size().columns - 1]}\x1b[K")
            self.out.flush()
        else:
            self.next_line += LINE_EVERY_SECONDS
            self.say(f"{self.title}: {text}, {elapsed(self.started)}")

    def say(self, line: str) -> None:
        """A line that stays."""
        self.out.write(f"\r\x1b[K{line}\n" if self.bar else f"{line}\n")
        self.out.flush()


def output() -> TextIO:
    """Standard output; under `make --output-sync`, which would keep it back to the end, the terminal itself."""
    terminal = os.environ.get("MAKE_TERMOUT", "")
    if terminal and not sys.stdout.isatty():
        try:
            return open(terminal, "w", encoding="utf-8")
        except OSError:
            pass  # it was closed
    return sys.stdout


def run(command: list[str], state: State, screen: Screen, log: Path) -> int:
    """Run the command and show its progress. Returns its exit code."""
    warnings: list[str] = []
    with log.open("a", encoding="utf-8") as kept:
        kept.write(f"$ {' '.join(command)}\n")
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
        )

        def read() -> None:
            for line in process.stdout:
                kept.write(line)
                kept.flush()
                state.read(line.rstrip())
                # pip's errors come with its last lines, below.
                if re.match(r"WARNING|DEPRECATION|W: ", line) and not NOISE.search(line):
                    warnings.append(line.rstrip())

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            ended = False
            while not ended:
                reader.join(timeout=0.5)
                ended = not reader.is_alive()  # asked before the warnings are taken, so that none comes after
                while warnings:
                    screen.say(warnings.pop(0))
                screen.show(state)
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()
            reader.join(timeout=1)
            screen.say(f"{screen.title}: stopped; log: {log}")
            return 130
    return code


def main() -> int:
    """Returns the exit code of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True, help="file that the whole output is appended to")
    parser.add_argument("--lock", type=Path, help="pins whose packages are counted")
    parser.add_argument("--into", type=Path, help="virtual environment in which they are counted")
    parser.add_argument("title", help="what is done, at the beginning of each line")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    lines = options.lock.read_text(encoding="utf-8").splitlines() if options.lock else []
    wanted = {canonical(line) for line in lines if line.strip() and not line.startswith("#")}
    site = next(options.into.glob("lib/python3*/site-packages"), None) if options.into else None
    state, screen = State(wanted, site), Screen(output(), options.title)
    code = run(options.command, state, screen, options.log)
    if code == 130:
        return code
    if code != 0:
        end = options.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        screen.say("\n".join(line for line in end if not NOISE.search(line)))
        screen.say(f"{options.title}: failed with code {code} after {elapsed(screen.started)}; log: {options.log}")
        return code
    state.now = ""
    _, text = state.share_and_text() if state.installing else (None, "done")
    screen.say(f"{options.title}: {text}, {elapsed(screen.started)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
