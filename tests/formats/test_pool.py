"""A file that several processes share gives the report and the rejected rows that one process gives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from finepref.formats.check import check_file
from finepref.formats.jsonl import MAX_LINE
from finepref.formats.pool import FEW, WorkerDied, ordered_map

GOOD = '{{"id": "{}", "prompt": "q{}", "chosen": "good ça", "rejected": "bad"{}}}'


def lines(count: int = 40) -> list[bytes]:
    """Rows of every kind, good and bad, between blank lines, ids that come again near and far, and unread columns."""
    made = []
    for n in range(count):
        made.append(GOOD.format(n, n, ', "source": "web"' if n % 3 else "").encode())
        made.append(
            [
                b"",
                b'{"id": "torn',
                b'{"id": "x", "prompt": "\xff"}',
                b'{"prompt": "", "chosen": "same", "rejected": "same"}',
                GOOD.format(max(0, n - 20), n, "").encode(),
                GOOD.format(n, n, ', "margin": 1e999').encode(),
                b'{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}',
                b"[1]",
                GOOD.format(f"cr-{n}", n, "").encode() + b"\r",
            ][n % 9]
        )
    return made


FILES = {
    "every kind of row": b"\n".join(lines()) + b"\n",
    "no final line end": b"\n".join(lines()),
    "a byte order mark": b"\xef\xbb\xbf" + b"\n".join(lines()),
    "a line that is too long": b"\n".join([*lines(12), b"x" * (MAX_LINE + 70_000), *lines(12)]),
    "a line that is too long at the end": b"\n".join([*lines(12), b"x" * MAX_LINE]) + b"\n",
    "an array": b"[" + b",\n".join([GOOD.format(n % 30, n, "").encode() for n in range(40)]) + b"]",
    "an array in one line": b"[" + b",".join([GOOD.format(n % 30, n, "").encode() for n in range(40)]) + b", {}]",
    "UTF-16": b"\xff\xfe" + GOOD.format(1, 1, "").encode("utf-16-le") * 40,
    "nothing": b"",
    "blank lines only": b"\n" * 500,
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES.keys())
@pytest.mark.parametrize("chunk_size", [1, 97])
def test_two_processes_find_what_one_finds_wherever_the_file_is_cut(content, chunk_size, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    whole = check_file(path, "pair", rejected_path=one, limit=20)
    shared = check_file(path, "pair", rejected_path=two, limit=20, jobs=2, chunk_size=chunk_size)
    assert shared == whole
    assert list(shared.ignored) == list(whole.ignored)
    assert two.read_bytes() == one.read_bytes()


def test_labels_are_counted_over_all_processes(tmp_path):
    """One undesirable row, far from the rest, is what makes the file of two classes."""
    path = tmp_path / "data.jsonl"
    rows = [{"id": f"{n}", "prompt": "q", "response": "a", "label": True} for n in range(60)]
    for last, codes in ((True, ["FP061"]), (False, [])):
        rows[-1]["label"] = last
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        report = check_file(path, "feedback", jobs=2, chunk_size=200)
        assert [problem.code for problem in report.problems] == codes


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def die_at_30(number: int) -> int:
    if number == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_results_come_in_order_from_other_processes_and_few_items_are_held():
    taken = []
    results = ordered_map(square, (taken.append(n) or n for n in range(200)), jobs=2)
    pids = set()
    for number, (item, (value, pid)) in enumerate(results):
        assert (item, value) == (number, number * number)
        assert len(taken) <= number + FEW + 2 * 2
        pids.add(pid)
    assert number == 199
    assert os.getpid() not in pids


@pytest.mark.parametrize(("count", "jobs"), [(FEW - 1, 2), (100, 1)])
def test_few_items_or_one_job_stay_in_this_process(count, jobs):
    assert {pid for _, (_, pid) in ordered_map(square, range(count), jobs=jobs)} == {os.getpid()}


def test_a_killed_process_is_an_error_that_says_so():
    with pytest.raises(WorkerDied, match="a worker process was killed"):
        list(ordered_map(die_at_30, range(100), jobs=2))


ENDLESS = """
import os, signal, sys
from itertools import count
from finepref.formats.pool import ordered_map
def pid(number):
    return os.getpid()
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored
    for number, worker in ordered_map(pid, count(), jobs=2):
        if number == 0:
            print(worker, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_when_the_first_one_is_interrupted_or_killed(number, tmp_path):
    """All of them have the other end of standard output: reading to its end means that all have ended."""
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) != process.pid
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as the terminal does
        else:
            process.kill()
        _, errors = process.communicate(timeout=60)
    assert errors.count("Traceback") == (number == signal.SIGINT)  # of the first process alone
