"""`finepref annotate` in a process of its own, and a client that speaks to it as its page does."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Client:
    """Requests to an annotator's page; `steps` counts what the page knows of."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.host, self.path = re.fullmatch(r"http://([\d.]+:\d+)(/.+/)", url).groups()
        self.steps = self.data()["steps"]

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """Status and body of the answer; a header of the value "" is left out."""
        connection = http.client.HTTPConnection(self.host, timeout=60)
        named = {"Host": self.host, "Content-Length": str(len(body))}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in named.items():
            if value:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found

    def page(self) -> str:
        """The page."""
        return self.request("GET", self.path)[1].decode()

    def data(self) -> dict[str, Any]:
        """What the page's script reads."""
        (text,) = re.findall(r'id="data">(.*?)</script>', self.page(), re.DOTALL)
        return json.loads(text)

    def send(self, **step: object) -> tuple[int, dict[str, Any]]:
        """A step, as it is sent by the page."""
        body = json.dumps({"steps": self.steps, **step}).encode()
        status, answer = self.request("POST", f"{self.path}step", body, Origin=f"http://{self.host}")
        found = json.loads(answer)
        self.steps = found.get("steps", self.steps)
        return status, found

    def mark(self, record: int, side: str, start: int, end: int, kind: str = "bad", weight: float = 1) -> None:
        """A mark, which is saved."""
        place = {"record": record, "side": side, "start": start, "end": end}
        status, found = self.send(do="mark", kind=kind, weight=weight, **place)
        assert status == 200, found


class Command:
    """A running `finepref annotate`.

    Attributes:
        url: of its page.
    """

    def __init__(self, words: list[str], folder: Path) -> None:
        program = "from finepref.cli import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "annotate", *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.told: list[str] = []
        for line in self.process.stdout:
            self.told.append(line)
            if found := re.search(r"http://\S+", line):
                self.url = found[0]
                break
        else:
            raise RuntimeError("".join(self.told))

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.wait()

    def end(self, number: int = signal.SIGINT) -> str:
        """Ctrl-C, or another signal; what the command tells at its end."""
        self.process.send_signal(number)
        told = self.process.stdout.read()
        assert self.process.wait() == 0, told
        return told


@contextmanager
def annotator(folder: Path, *words: str) -> Iterator[Command]:
    """The command, killed at the end of the block if it still runs."""
    command = Command([*words], folder)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.kill()
        command.process.stdout.close()
