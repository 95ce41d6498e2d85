"""Commands of this environment without their imports: a warm process has imported a host once and forks per command.

`Warm` starts a fresh interpreter, finepref attached to it as to any other, which imports the modules that take most of
a tiny run's time. It has run nothing and has no threads, so a fork of it is as a new process after its imports. Tests
that are about new processes (does finepref attach, do the launchers work) start the real commands.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import IO, Any

LENGTH = 8
"""Bytes before a request that say how many it has."""


class Warm:
    """A warm process; a context manager.

    Args:
        modules: to import; `module:function` is called too.
        environment: further variables of the process. Those that are read at import have to be here.
    """

    def __init__(self, modules: Iterable[str], environment: Mapping[str, str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")  # the path of a socket has to be short
        self.address = f"{self._folder.name}/socket"
        words = [sys.executable, __file__, self.address, *modules]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, env=os.environ | dict(environment or {}))

    def __enter__(self) -> Warm:
        while True:
            with (
                contextlib.suppress(FileNotFoundError, ConnectionRefusedError),
                socket.socket(socket.AF_UNIX) as ready,
            ):
                ready.connect(self.address)
                return self
            assert self._process.poll() is None, "the warm process ended; see what it printed"
            time.sleep(0.02)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # tells it to end, and its children with it
        self._process.wait()
        self._folder.cleanup()

    def popen(self, words: Sequence[object], **options: Any) -> Child:
        """`popen` of this process."""
        return popen(self.address, words, **options)

    def run(
        self,
        words: Sequence[object],
        *,
        processes: int = 1,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        timeout: float = 300,
    ) -> SimpleNamespace:
        """Run a command to its end, on several processes as torchrun would; its exit `code` and its `output`.

        Args:
            words: the command.
            processes: how many; above 1, each has the variables of torch.distributed.
            environment: further variables.
            folder: to run in.
            timeout: seconds, after which all are killed.
        """
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(processes)]
            world = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
            children = []
            for rank, file in enumerate(files):
                own = world | {"RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {}
                variables = os.environ | {name: str(value) for name, value in own.items()} | dict(environment or {})
                child = self.popen(words, stdout=file, stderr=subprocess.STDOUT, env=variables, cwd=folder)
                children.append(child)
            code = _finish(children, timeout)
            for file in files:
                file.seek(0)
            output = "".join(file.read().decode(errors="replace") for file in files)
        return SimpleNamespace(code=code, output=output)


def _finish(children: list[Child], timeout: float) -> int:
    """Wait for all, as long as none has failed and it is not too late; 0, or what the first to fail ended with."""
    deadline, waiting = time.monotonic() + timeout, list(children)
    while waiting and time.monotonic() < deadline and not any(child.returncode for child in children):
        waiting = [child for child in waiting if child.poll() is None]
        time.sleep(0.01)
    failed = [child.returncode for child in children if child.returncode]
    for child in waiting:
        child.kill()
        failed.append(child.wait())
    return failed[0] if failed else 0


def free_port() -> str:
    """A port for torch.distributed."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def popen(
    address: str,
    words: Sequence[object],
    *,
    stdout: Any = None,
    stderr: Any = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    pass_fds: Sequence[int] = (),
    start_new_session: bool = False,
    umask: int = -1,
) -> Child:
    """As `subprocess.Popen` with these options, in a fork of the warm process at that address.

    The words are a console script of this environment, `python -m MODULE` or `python FILE`, and arguments. Instead of
    a new session the child gets a process group of its own; otherwise it is in the caller's.
    """
    pipes: dict[str, IO[bytes] | None] = {"stdout": None, "stderr": None}
    closing: list[int] = []

    def descriptor(name: str, wanted: Any, default: int) -> int:
        if wanted is None:
            return default
        if wanted == subprocess.PIPE:
            reading, writing = os.pipe()
            pipes[name] = os.fdopen(reading, "rb")
            closing.append(writing)
            return writing
        if wanted == subprocess.DEVNULL:
            closing.append(os.open(os.devnull, os.O_WRONLY))
            return closing[-1]
        return wanted if isinstance(wanted, int) else wanted.fileno()

    out = descriptor("stdout", stdout, 1)
    err = out if stderr == subprocess.STDOUT else descriptor("stderr", stderr, 2)
    request = {
        "words": [str(word) for word in words],
        "environment": dict(os.environ if env is None else env),
        "folder": str(cwd or os.getcwd()),
        "group": 0 if start_new_session else os.getpgrp(),
        "umask": umask,
    }
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    text = json.dumps(request).encode()
    socket.send_fds(connection, [len(text).to_bytes(LENGTH)], [out, err, *pass_fds])
    connection.sendall(text)
    for each in closing:
        os.close(each)
    return Child(connection, **pipes)


class Child:
    """A forked command: what the tests use of `subprocess.Popen`. Several threads may ask it."""

    def __init__(self, connection: socket.socket, stdout: IO[bytes] | None, stderr: IO[bytes] | None) -> None:
        self.stdout, self.stderr = stdout, stderr
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._answers = connection.makefile("rb")
        self._connection = connection
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
                self.returncode = int(self._answers.readline() or -signal.SIGKILL)
                self._answers.close()
                self._connection.close()
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def main() -> None:
    """The warm process: python warm.py SOCKET MODULE..., until its standard input is closed."""
    address, *modules = sys.argv[1:]
    sys.modules["warm"] = sys.modules["__main__"]  # a test's program that imports it gets this one
    for name in modules:
        where, _, function = name.partition(":")
        module = importlib.import_module(where)
        if function:
            getattr(module, function)()
    gc.collect()
    gc.freeze()  # or every child would copy most of the memory
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(16)
    ends: dict[int, tuple[int, socket.socket]] = {}  # pidfd -> process id, who waits for it
    waiting: dict[socket.socket, int] = {}  # the same the other way round
    selector = selectors.DefaultSelector()
    selector.register(listening, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listening:
                connection, _ = listening.accept()
                with contextlib.suppress(OSError):  # of a caller that was killed meanwhile
                    request, descriptors = received(connection)
                    child = os.fork()
                    if child == 0:
                        for each in (listening, connection, *waiting):
                            each.close()
                        selector.close()
                        become(request, descriptors)
                    for each in descriptors:
                        os.close(each)
                    end = os.pidfd_open(child)
                    ends[end], waiting[connection] = (child, connection), child
                    selector.register(end, selectors.EVENT_READ)
                    selector.register(connection, selectors.EVENT_READ)
                    tell(connection, child)
            elif key.fileobj in ends:
                child, connection = ends.pop(key.fileobj)
                selector.unregister(key.fileobj)
                os.close(key.fileobj)
                if waiting.pop(connection, None):
                    selector.unregister(connection)
                tell(connection, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                connection.close()
            elif key.fileobj in waiting:  # the caller is gone, so there is nobody who could stop the child
                selector.unregister(key.fileobj)
                os.kill(waiting.pop(key.fileobj), signal.SIGKILL)
            elif key.fileobj == 0:
                for child, _ in ends.values():
                    os.kill(child, signal.SIGKILL)
                os._exit(0)


def received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request and the descriptors that came with it: standard output, standard error, and what is to stay open.

    Raises:
        OSError: the caller ended in the middle of it.
    """
    head, descriptors, _, _ = socket.recv_fds(connection, LENGTH, 16)
    try:
        size, text = int.from_bytes(head), b""
        while not text or len(text) < size:
            piece = connection.recv(size - len(text))
            if not piece:
                raise OSError("the caller has gone")
            text += piece
    except OSError:
        for each in descriptors:  # or what the caller has locked would stay so
            os.close(each)
        raise
    return json.loads(text), descriptors


def tell(connection: socket.socket, number: int) -> None:
    """Answer, if there is still somebody who listens."""
    with contextlib.suppress(OSError):
        connection.sendall(f"{number}\n".encode())


def become(request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """Be the process that was asked for, in the fork that this is called in."""
    code = 1
    try:
        os.setpgid(0, request["group"])
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        if request["umask"] >= 0:
            os.umask(request["umask"])
        if "datasets" in sys.modules and (cache := os.environ.get("HF_DATASETS_CACHE")):
            sys.modules["datasets"].config.HF_DATASETS_CACHE = Path(cache)  # read at import
        for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), *descriptors[:2])):
            os.dup2(descriptor, number)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)
        command(request["words"])()
        code = 0
    except SystemExit as ended:
        if ended.code is not None and not isinstance(ended.code, int):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else ended.code is not None
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(words: list[str]) -> Callable[[], Any]:
    """What a fresh process would do first with these words, which become sys.argv."""
    program, *rest = words
    if not Path(program).name.startswith("python"):
        (script,) = entry_points(group="console_scripts", name=Path(program).name)
        sys.argv = words
        return script.load()
    if rest[0] == "-m":
        sys.argv = rest[1:]
        return lambda: runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    sys.argv = rest
    sys.path[0] = str(Path(rest[0]).parent)
    return lambda: runpy.run_path(rest[0], run_name="__main__")


if __name__ == "__main__":
    main()
