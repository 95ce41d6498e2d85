"""Jobs of the web UI: once per output, seen by all, ended with all their processes, and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from finepref.hosts.llamafactory.webui.jobs import Job, JobBusy, Record, State, jobs_in
from webui_browser import until

WAITS = "import time\nwhile True: time.sleep(60)"
ANOTHER = """
import sys
from pathlib import Path
from finepref.hosts.llamafactory.webui.jobs import Job, JobBusy, Record
job = Job(Path(sys.argv[1]))
try:
    job.start(Record(kind="scoring", command=["true"], dataset_dir=".", sets={}))
except JobBusy:
    print("busy", job.status().state)
"""


@pytest.fixture
def start(tmp_path):
    """Start a Python program as a job; what is left of them is ended."""
    jobs = []

    def run(program: str, name: str = "made", **record: object) -> Job:
        job = Job(tmp_path / "finepref" / f"{name}.job")
        jobs.append(job)
        given = {"kind": "scoring", "dataset_dir": str(tmp_path), "sets": {}} | record
        job.start(Record(command=[sys.executable, "-c", program], **given))
        return job

    yield run
    for job in jobs:
        job.abort(grace=0.1)


def ended(job: Job):
    """Its status once it has ended."""
    until(lambda: not job.running(), "the end of the job")
    return job.status()


def alive(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


BARS = """
from tqdm import tqdm
def load():
    for _ in tqdm(range(3), desc="Loading weights", disable=None): pass
def score():
    bar = tqdm(total=4, desc="sepo score, reference", disable=None, mininterval=0)
    bar.update(1); bar.close()
print("a line")
{order}
print("the end")
"""


@pytest.mark.parametrize(("order", "note"), [("score(); load()", "Loading weights: 3/3"), ("load(); score()", "")])
def test_the_lines_and_the_commands_own_bar_are_kept_and_a_later_bar_is_a_note(start, order, note):
    parts = ["sepo score, oracle", "sepo score, reference"]
    found = ended(start(BARS.format(order=order), bar="sepo score", parts=parts))
    assert found.state is State.done
    assert found.lines == ["a line", "the end"]
    assert (found.progress.part, found.progress.done, found.progress.total) == ("sepo score, reference", "1", "4")
    assert found.progress.note == note
    assert found.share == (1 + 0.25) / 2
    assert ":" in found.progress.left


def test_a_running_job_is_not_started_again_by_this_web_ui_nor_by_another(start, tmp_path):
    marks = tmp_path / "marks"
    job = start(f"open({str(marks)!r}, 'a').write('x')\n{WAITS}")
    until(lambda: marks.exists() and marks.read_text(), "the start of the command")
    with pytest.raises(JobBusy):
        start("pass")
    other = [sys.executable, "-c", ANOTHER, str(job.folder)]
    assert subprocess.run(other, capture_output=True, text=True).stdout.split() == ["busy", "running"]
    assert marks.read_text() == "x"
    assert job.status().state is State.running


def test_an_abort_ends_the_children_of_the_command_too_and_says_stopped(start, tmp_path):
    pids = tmp_path / "pids"
    program = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {WAITS!r}])
open({str(pids)!r} + ".new", "w").write(f"{{os.getpid()}} {{child.pid}}")
os.replace({str(pids)!r} + ".new", {str(pids)!r})
child.wait()
"""
    job = start(program)
    until(pids.exists, "the start of the child")
    numbers = [int(number) for number in pids.read_text().split()]
    assert all(map(alive, numbers))
    job.abort()
    until(lambda: not any(map(alive, numbers)), "the end of both processes")
    assert not job.running()
    assert job.status().state is State.stopped


def test_a_command_that_does_not_hear_sigterm_is_killed(start, tmp_path):
    ready = tmp_path / "ready"
    program = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen({str(ready)!r}, 'w')\n{WAITS}"
    job = start(program)
    until(ready.exists, "the start of the command")
    job.abort(grace=0.2)
    assert ended(job).state is State.stopped


def test_a_command_that_outlives_its_first_process_is_still_the_running_job(start, tmp_path):
    """The first process may be killed for memory; the command inherits the lock."""
    ready = tmp_path / "ready"
    job = start(f"open({str(ready)!r}, 'w')\n{WAITS}")
    until(ready.exists, "the start of the command")
    first = int((job.folder / "pid").read_text())
    os.kill(first, signal.SIGKILL)
    until(lambda: not alive(first), "the end of the first process")
    assert job.running()
    with pytest.raises(JobBusy):
        start("pass")
    job.abort(grace=0.5)
    assert ended(job).state is State.stopped


def test_a_command_that_fails_is_told_with_its_code_and_one_that_was_killed_with_its_signal(start):
    failed = ended(start("print('FP001 no such file'); raise SystemExit(1)"))
    assert (failed.state, failed.result.code, failed.lines) == (State.failed, 1, ["FP001 no such file"])
    killed = ended(start("import os; os.kill(os.getpid(), 9)"))
    assert (killed.state, killed.result.code) == (State.failed, -9)


def test_of_a_long_log_the_last_lines_are_told(start):
    found = ended(start("for number in range(20_000): print('line', number)"))
    assert found.lines == [f"line {number}" for number in range(19_980, 20_000)]


def test_outputs_are_added_to_the_data_sets_and_what_is_missing_or_empty_is_not(start, tmp_path):
    table = tmp_path / "dataset_info.json"
    table.write_text('{"own": {"file_name": "own.jsonl"}}')
    sets = {f"finepref/{name}.jsonl": (name, "pair") for name in ("there", "empty", "missing")}
    program = f"import os; os.chdir({str(tmp_path / 'finepref')!r}); open('there.jsonl', 'w').write('x')"
    found = ended(start(f"{program}; open('empty.jsonl', 'w')", sets=sets))
    assert (found.state, found.result.added) == (State.done, ["there"])
    there = {"file_name": "finepref/there.jsonl", "formatting": "pair"}
    assert json.loads(table.read_text()) == {"own": {"file_name": "own.jsonl"}, "there": there}


def test_an_output_that_cannot_be_added_is_a_failure_that_says_why(start, tmp_path):
    table = tmp_path / "dataset_info.json"
    table.write_text('{"there": {"file_name": "other.jsonl"}}')
    sets = {"finepref/there.jsonl": ("there", "pair")}
    program = f"open({str(tmp_path / 'finepref' / 'there.jsonl')!r}, 'w').write('x')"
    found = ended(start(program, sets=sets))
    assert found.state is State.failed
    assert f"{table}:1 there: FP006" in found.result.problem or "FP006" in found.result.problem
    assert json.loads(table.read_text()) == {"there": {"file_name": "other.jsonl"}}


def test_a_new_start_forgets_how_the_last_one_ended(start, tmp_path):
    ended(start("raise SystemExit(1)"))
    job = start(WAITS)
    assert job.status().state is State.running
    assert job.status().result is None
    assert [each.name for each in jobs_in(tmp_path / "finepref")] == ["made"]
