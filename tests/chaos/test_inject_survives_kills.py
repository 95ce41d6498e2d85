"""`kill -9` of `finepref seapo inject` at random points, then one run to the end.

The endpoint is a small server in this process that answers by the question alone and notes what it was asked. It holds
back the last answer, so that how fast a machine is does not decide whether a kill strikes in the middle of the work.
Most runs are forked from a server process that has imported the command's modules, so that 50 of them take seconds;
the first and the last are fresh interpreters. `make test` kills 20 times small and 4 times large; `make test-chaos`,
by FINEPREF_CHAOS=full, 200 times records of some bytes and 50 times records of 2 MB.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from finepref.synth.seapo.prompts import ERRORS

FULL = os.environ.get("FINEPREF_CHAOS") == "full"
CONCURRENCY = 4


class AnswerLimit:
    """How many answers one process may still get; who asks for more waits until the next process is served."""

    def __init__(self) -> None:
        self.left = self.process = 0
        self.changed = threading.Condition()

    def next_process(self, left: int) -> None:
        with self.changed:
            self.left = left
            self.process += 1
            self.changed.notify_all()

    def take(self) -> None:
        with self.changed:
            process = self.process
            self.changed.wait_for(lambda: self.left > 0 or self.process > process)
            if self.process == process:
                self.left -= 1


class Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A killed client resets its connections."""


class Endpoint(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: list[str]
    answers: AnswerLimit

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = request["messages"][0]["content"]
        number = int(re.search(r"What is number (\d+)\?", text)[1])
        name = next(name for name, meaning in ERRORS.items() if meaning in text)
        self.asked.append(f"r{number}/{name}")
        self.answers.take()
        padding = re.search(r"x*$", re.search(r"is right, and it is small\.? ?x*", text)[0])[0]
        answer = f"Number {number} is wrong by {len(name)}, and it is small. {padding}"
        if number % 7 == 0 and name == "logic":
            answer = "I'm sorry, I cannot do that."
        message = {"role": "assistant", "content": answer}
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        }
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def endpoint() -> Iterator[tuple[str, list[str], AnswerLimit]]:
    """The server's address, the ids it was asked for, in order, and how many more it answers."""
    asked: list[str] = []
    answers = AnswerLimit()
    server = Server(("127.0.0.1", 0), type("Noting", (Endpoint,), {"asked": asked, "answers": answers}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked, answers
    finally:
        server.shutdown()
        server.server_close()


def run_command(arguments: list[str]) -> None:
    from finepref.cli import app
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore that a killed fork leaves to the test process
    app(arguments)


def journalled(work_dir: Path) -> set[str]:
    """The ids in the whole lines of a journal."""
    path = work_dir / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return {entry["id"] for line in lines for entry in json.loads(line)}


def journal_size(work_dir: Path) -> int:
    path = work_dir / "journal.jsonl"
    return path.stat().st_size if path.exists() else 0


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("kills", "records", "types", "padding"),
    [
        pytest.param(200 if FULL else 20, 400 if FULL else 60, tuple(ERRORS), 0, id="small"),
        pytest.param(50 if FULL else 4, 80 if FULL else 12, ("logic",), 2_000_000, id="large"),
    ],
)
def test_inject_killed_again_and_again_gives_the_same_bytes_and_asks_no_journalled_id_again(
    tmp_path, monkeypatch, kills, records, types, padding
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    rows = [
        {
            "id": f"r{i}",
            "prompt": f"What is number {i}?",
            "chosen": f"Number {i} is right, and it is small. {'x' * padding}".strip(),
        }
        for i in range(records)
    ]
    total = len(types) * records
    source = tmp_path / "questions.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def arguments(output: Path, url: str) -> list[str]:
        command = f"seapo inject {source} --output {output} --engine openai --model m --base-url {url}"
        return [*command.split(), "--concurrency", str(CONCURRENCY), "--types", ",".join(types)]

    def fresh(output: Path, url: str) -> None:
        code = "import sys; from finepref.cli import app; app(sys.argv[1:])"
        subprocess.run([sys.executable, "-c", code, *arguments(output, url)], check=True, timeout=300)

    def contents(output: Path) -> list[bytes]:
        return [output.read_bytes(), output.with_suffix(".report.json").read_bytes()]

    chance = random.Random(24)
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["finepref.cli", "finepref.synth.seapo.inject", "openai.resources.chat"])
    with endpoint() as (url, asked, answers):
        answers.next_process(total)
        fresh(tmp_path / "calm.jsonl", url)
        entry_size = (tmp_path / "calm.work" / "journal.jsonl").stat().st_size / total
        expected = contents(tmp_path / "calm.jsonl")
        assert len(asked) == len({*asked}) == total

        output, work_dir = tmp_path / "killed.jsonl", tmp_path / "killed.work"
        sizes = []
        for kill in range(kills):
            done = journalled(work_dir)
            asked.clear()
            at_the_end = kill >= kills - kills // 5
            answers.next_process(total if at_the_end else total - len(done) - 1)
            process = fork.Process(target=run_command, args=(arguments(output, url),))
            process.start()
            if at_the_end:
                while process.is_alive() and len(asked) < total - len(done):
                    time.sleep(0.001)
                time.sleep(chance.uniform(0, 0.004))
            elif kill % 5 == 0:
                time.sleep(chance.uniform(0, 0.2))  # at start-up
            else:
                size = journal_size(work_dir) + chance.uniform(0, max(1, total // kills)) * entry_size
                while process.is_alive() and answers.left and journal_size(work_dir) < size:
                    time.sleep(0.001)
            process.kill()
            process.join()
            assert done.isdisjoint(asked)
            assert done <= journalled(work_dir)
            assert len({*asked} - journalled(work_dir)) <= CONCURRENCY, "more was paid for and lost than was under way"
            assert not output.exists() or output.read_bytes() == expected[0]
            sizes.append(len(journalled(work_dir)))

        done = journalled(work_dir)
        asked.clear()
        answers.next_process(total)
        fresh(output, url)
        assert done.isdisjoint(asked)
        assert journalled(work_dir) == {f"r{i}/{name}" for i in range(records) for name in types}
        assert contents(output) == expected
    assert sum(0 < size < total for size in sizes) >= kills * 3 // 5, "kills should strike in the middle of the work"
    assert len({*sizes}) > min(kills, total) // 4, "the killed runs should make progress"
