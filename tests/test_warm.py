"""The warm process of warm.py: its children are as processes started anew, and none of them is left behind."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from warm import Warm

PROGRAM = """
import os, sys, time
print(os.environ.get("RANK"), os.environ.get("COLOUR"), *sys.argv[1:], os.getcwd())
print("to the other", file=sys.stderr)
time.sleep(float(sys.argv[1]))
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def warm():
    with Warm(["json"]) as process:
        yield process


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    (tmp_path / "program.py").write_text(PROGRAM)
    return ["python", str(tmp_path / "program.py")]


def ends(process_id: int) -> bool:
    """Whether a process ends within a minute."""
    for _ in range(6000):
        stat = Path(f"/proc/{process_id}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False


def test_a_child_has_its_words_folder_variables_and_exit_code(warm, program, tmp_path):
    done = warm.run([*program, "0", "3"], environment={"COLOUR": "green"}, folder=tmp_path)
    assert done.code == 3
    assert done.output.splitlines() == [f"None green 0 3 {tmp_path}", "to the other"]


def test_ranks_know_their_number_and_one_that_fails_ends_the_others(warm, program, tmp_path):
    both = warm.run([*program, "0", "0"], processes=2, folder=tmp_path)
    assert both.code == 0
    assert [line.split()[0] for line in both.output.splitlines() if "other" not in line] == ["0", "1"]
    (tmp_path / "second.py").write_text("import os, time\nif os.environ['RANK'] == '1': 1 / 0\ntime.sleep(600)")
    failed = warm.run(["python", tmp_path / "second.py"], processes=2)
    assert "ZeroDivisionError" in failed.output
    assert failed.code == 1


def test_a_child_late_is_killed(warm, program):
    assert warm.run([*program, "600", "0"], timeout=0.2).code == -signal.SIGKILL


def test_pipes_and_process_groups_are_those_of_popen(warm, program):
    child = warm.popen([*program, "600", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert child.stdout.readline().startswith(b"None ")
    assert child.stderr.readline() == b"to the other\n"
    assert child.poll() is None
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


def test_a_caller_that_is_killed_in_the_middle_of_its_request_leaves_nothing_locked(warm, program, tmp_path):
    """Its descriptors, a lock's among them, have come before the words."""
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(warm.address)
            socket.send_fds(caller, [(1000).to_bytes(8)], [1, 2, lock.fileno()])
            caller.sendall(b"{")
    assert warm.run([*program, "0", "0"]).code == 0, "the next request is served"
    with open(tmp_path / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_child_ends_with_its_caller_and_with_the_warm_process(program):
    with Warm(["json"]) as process:
        code = (
            "import subprocess, sys, warm\n"
            "child = warm.popen(sys.argv[1], sys.argv[2:], stdout=subprocess.DEVNULL)\n"
            "print(child.pid, flush=True)\n"
            "sys.stdin.read()\n"
        )
        words = [sys.executable, "-c", code, process.address, *program, "600", "0"]
        variables = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        caller = subprocess.Popen(words, env=variables, **pipes)
        orphan = int(caller.stdout.readline())
        caller.kill()
        caller.wait()
        assert ends(orphan)
        left = process.popen([*program, "600", "0"])
    assert ends(left.pid)
