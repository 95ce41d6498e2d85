"""The remote engine against a server that answers with scripted bytes: no fault loses a prompt or stops the others.

Also: a secret in the environment or in the address is nowhere in what a run leaves behind.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from finepref.formats.jsonl import write_jsonl
from finepref.formats.records import Message
from finepref.synth.engines import openai as engine_openai
from finepref.synth.engines.openai import MAX_TRIES, OpenAIEngine
from finepref.synth.engines.protocol import Request

CANARY = "canary-7f3a9c51"


def body(content: object = "fine", **choice: object) -> bytes:
    choices = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}} | choice]
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
    ).encode()


def reply(content: bytes, status: str = "200 OK", *, kind: str = "application/json", **headers: object) -> bytes:
    lines = {"content-type": kind, "content-length": len(content), "connection": "close"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + content


GOOD = reply(body())
ERROR = json.dumps({"error": {"message": "no"}}).encode()
NOW = {"retry_after": "0.01"}

# What the server sends on the first, second, ... try (the last again and again); then what must come of the prompt:
# its text, or the beginning of the reason; then how often the server may be asked.
FAULTS: dict[str, tuple[list[object], str, int]] = {
    "429 twice with Retry-After": (
        [reply(ERROR, "429 Slow", **NOW), reply(ERROR, "429 Slow", **NOW), GOOD],
        "fine",
        3,
    ),
    "429 once without Retry-After": ([reply(ERROR, "429 Slow"), GOOD], "fine", 2),
    "429 once with a Retry-After of words": ([reply(ERROR, "429 Slow", retry_after="soon"), GOOD], "fine", 2),
    "429 for ever": ([reply(ERROR, "429 Slow", **NOW)], "HTTP 429: ", 5),
    "429 until tomorrow": ([reply(ERROR, "429 Slow", retry_after="86400")], "HTTP 429: ", 1),
    "500 for ever": ([reply(ERROR, "500 Broken", **NOW)], "HTTP 500: ", 5),
    "503 once": ([reply(b"<html>busy</html>", "503 Busy", kind="text/html", **NOW), GOOD], "fine", 2),
    "408 once": ([reply(ERROR, "408 Late", **NOW), GOOD], "fine", 2),
    "400": ([reply(ERROR, "400 Bad")], "HTTP 400: ", 1),
    "reset before the reply, once": (["reset", GOOD], "fine", 2),
    "reset in the middle of the body, once": ([GOOD[:-20], GOOD], "fine", 2),
    "body in drips": (["drip", GOOD], "fine", 2),
    "silence, once": (["silence", GOOD], "fine", 2),
    "HTML": ([reply(b"<html>Sign in</html>", kind="text/html")], "the reply is not a chat completion", 1),
    "truncated JSON": ([reply(body()[:-40])], "JSONDecodeError: ", 1),
    "NaN for a text": ([reply(body(float("nan")))], "the content of the reply is not a text", 1),
    "lone surrogate": ([reply(body("\ud800"))], "the content of the reply has a lone surrogate", 1),
    "not UTF-8": ([reply(body("x").replace(b'"x"', b'"\xff"'))], "UnicodeDecodeError: ", 1),
    "endless nesting": ([reply(b"[" * 50_000)], "RecursionError: ", 1),
    "no choices": ([reply(b'{"object": "chat.completion", "choices": []}')], "the reply has no choices", 1),
    "an error with status 200": ([reply(ERROR)], "the reply has no choices", 1),
    "cut answer": ([reply(body("fi", finish_reason="length"))], "fi", 1),
    "huge body": ([reply(body("x" * 300_000))], "OpenAIError: the reply is longer than 200000 bytes", 1),
    "no gzip inside": ([reply(b"nothing", content_encoding="gzip"), GOOD], "fine", 2),
    "gzip": ([reply(gzip.compress(body()), content_encoding="gzip")], "fine", 1),
    "redirect": ([reply(b"", "307 Moved", location="ELSEWHERE")], "HTTP 307: ", 1),
}


class Server:
    """Sends the bytes of a fault, or does what its name says; counts the tries of each."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        self.tries: Counter[str] = Counter()
        self.connections = 0
        self.elsewhere = ""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            headers = dict(line.lower().split(b": ", 1) for line in iter(lines.readline, b"\r\n") if b": " in line)
            name = json.loads(lines.read(int(headers[b"content-length"])))["messages"][0]["content"]
            script = FAULTS[name][0] if name in FAULTS else [GOOD]
            what = script[min(self.tries[name], len(script) - 1)]
            self.tries[name] += 1
            with suppress(OSError):  # the client has hung up
                self._send(connection, what)

    def _send(self, connection: socket.socket, what: object) -> None:
        match what:
            case "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            case "drip":
                for byte in reply(b" " * 1000):
                    connection.sendall(bytes([byte]))
                    time.sleep(0.05 if byte == 32 else 0)
            case "silence":
                time.sleep(4)
            case bytes():
                connection.sendall(what.replace(b"ELSEWHERE", self.elsewhere.encode()))


@pytest.fixture
def server():
    made = Server()
    yield made
    made.socket.close()


def test_every_prompt_ends_answered_or_failed_with_a_reason_after_five_tries_at_most(server, monkeypatch):
    monkeypatch.setattr(engine_openai, "MAX_BODY", 200_000)
    other = Server()
    server.elsewhere = f"{other.url}/chat/completions"
    engine = OpenAIEngine("m", base_url=server.url, concurrency=64, timeout=2.0)
    names = [*FAULTS, "good"]
    asked = [Request(name, (Message("user", name),), 16) for name in names]
    found = {each.id: each for batch in engine.generate(asked) for each in batch}
    assert sorted(found) == sorted(names)
    assert (found.pop("good").text, server.tries.pop("good")) == ("fine", 1)
    results = {name: each.error or each.text for name, each in found.items()}
    assert {n: r for n, r in results.items() if not r.startswith(FAULTS[n][1])} == {}
    assert {name: each.error is None for name, each in found.items()} == {
        n: f[1] in {"fine", "fi"} for n, f in FAULTS.items()
    }
    assert dict(server.tries) == {name: tries for name, (_, _, tries) in FAULTS.items()}
    assert max(server.tries.values()) <= MAX_TRIES
    assert found["cut answer"].stop_reason == "length"
    assert other.connections == 0
    other.socket.close()


@pytest.mark.parametrize(
    "url", [f"ftp://u:{CANARY}@host/v1", f"http://u:{CANARY}@[::1/v1", f"http://?{CANARY}", CANARY]
)
def test_an_address_that_is_none_is_refused_and_not_repeated(url):
    with pytest.raises(ValueError, match="not an http or https address") as refused:
        OpenAIEngine("m", base_url=url)
    assert CANARY not in str(refused.value)


@pytest.mark.parametrize("typed", [False, True], ids=["environment", "command line"])
def test_a_secret_of_the_environment_or_the_address_is_nowhere_in_what_a_run_leaves(server, tmp_path, typed):
    """The key, a password and a query value of the address; the server says each back in an error of one request.

    An address that was typed is in the process's arguments, and in nothing else.
    """
    echo = {"error": {"message": f"bad key {CANARY}-key, bad user {CANARY}-word, bad query {CANARY}-query"}}
    FAULTS["echo"] = ([reply(json.dumps(echo).encode(), "401 No")], "", 1)
    names = ["good", "echo", "other"]
    source = tmp_path / "in" / "questions.jsonl"
    write_jsonl(source, [{"id": name, "prompt": name, "chosen": f"It is {name}, to be sure."} for name in names])
    plain = {key: value for key, value in os.environ.items() if not key.startswith("OPENAI_")}
    url = server.url.replace("//", f"//user:{CANARY}-word@") + f"?token={CANARY}-query"
    secret = {"OPENAI_API_KEY": f"{CANARY}-key\n", "OPENAI_LOG": "debug"}
    secret |= {} if typed else {"OPENAI_BASE_URL": url}
    code = (
        "import sys; from finepref.synth.seapo import prompts as seapo; seapo.ASK = '{question}'\n"
        "from finepref.cli import app; app(sys.argv[1:])"
    )
    output = tmp_path / "out" / "negatives.jsonl"
    command = [
        sys.executable,
        "-c",
        code,
        "seapo",
        "inject",
        str(source),
        "--output",
        str(output),
        "--engine",
        "openai",
    ]
    process = subprocess.Popen(
        [*command, "--model", "m", *(["--base-url", url] if typed else [])],
        env=plain | secret,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    arguments = set()
    while process.poll() is None:
        for path in (f"/proc/{process.pid}/cmdline", *map("/proc/{}/cmdline".format, _children(process.pid))):
            with suppress(OSError):
                arguments.add(Path(path).read_bytes())
        time.sleep(0.05)
    told = process.stdout.read()
    left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.name == "journal.jsonl" for path in left)
    assert any(path.name == "negatives.report.json" for path in left)
    assert b"bad key ***, bad user ***, bad query ***" in left[output.with_suffix(".report.json")]
    seen = {**left, "what it said": told} | ({} if typed else {"its arguments": b"".join(arguments)})
    for name, content in seen.items():
        assert CANARY.encode() not in content, name


def _children(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return []


def test_the_engine_logs_no_key_itself(server, caplog, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    engine = OpenAIEngine("m", base_url=server.url)
    assert [each.text for batch in engine.generate([Request("good", (Message("user", "good"),), 4)]) for each in batch]
    assert CANARY not in caplog.text
    assert CANARY not in repr(vars(engine).get("model"))
