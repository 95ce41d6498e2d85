"""Steps of a pipeline, with real processes."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time

import psutil
import pytest
from finepref.pipelines.steps import Pipeline, PipelineBusy, StepChanged, StepFailed, content_digest

# A step that appends a line per call and writes what the call was given.
WRITE = """
import sys
from pathlib import Path
folder, text = Path(sys.argv[1]), sys.argv[2]
with open(folder / "calls", "a") as calls:
    calls.write("x")
(folder / "made").write_text(text)
"""


def write(pipeline: Pipeline, step: str, text: str = "a", **more) -> None:
    folder = pipeline.path(step)
    command = [sys.executable, "-c", WRITE, folder, text]
    pipeline.run(step, command, outputs=[folder / "made"], **more)


def calls(pipeline: Pipeline, step: str) -> int:
    return len(pipeline.path(step, "calls").read_text())


def runs(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_finished_step_is_not_run_again(tmp_path, capsys):
    for _ in range(2):
        with Pipeline(tmp_path) as pipeline:
            write(pipeline, "round_1/sample")
            assert calls(pipeline, "round_1/sample") == 1
            assert pipeline.steps["round_1/sample"]["seconds"] >= 0
    assert "round_1/sample: already done" in capsys.readouterr().out


def test_a_finished_step_whose_output_lies_elsewhere_is_not_run_again(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for _ in range(2):
        with Pipeline(tmp_path / "run") as pipeline:
            command = [sys.executable, "-c", WRITE, tmp_path / "elsewhere", "a"]
            pipeline.run("make", command, outputs=[tmp_path / "elsewhere" / "made"])
    assert (tmp_path / "elsewhere" / "calls").read_text() == "x"


def test_a_step_that_lost_one_of_its_outputs_is_refused(tmp_path):
    with Pipeline(tmp_path) as pipeline:
        write(pipeline, "sample")
        pipeline.path("sample", "made").unlink()
        with pytest.raises(StepChanged, match="the outputs of sample were changed since"):
            write(pipeline, "sample")


def test_a_step_with_other_words_is_refused_by_name(tmp_path):
    with Pipeline(tmp_path) as pipeline:
        write(pipeline, "sample", "a")
        with pytest.raises(StepChanged, match=r"sample was started differently: 'a' before, 'b' now"):
            write(pipeline, "sample", "b")
        assert calls(pipeline, "sample") == 1


def test_a_step_whose_input_changed_is_refused_by_the_inputs_name(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "rows").write_text("1")
    with Pipeline(tmp_path / "run") as pipeline:
        write(pipeline, "sample", inputs=[source])
        write(pipeline, "sample", inputs=[source])
        (source / "rows").write_text("2")
        with pytest.raises(StepChanged, match=f"changed contents of {source}"):
            write(pipeline, "sample", inputs=[source])


def test_a_step_whose_output_changed_is_refused(tmp_path):
    with Pipeline(tmp_path) as pipeline:
        write(pipeline, "sample")
        pipeline.path("sample", "made").write_text("other")
        with pytest.raises(StepChanged, match="the outputs of sample were changed since"):
            write(pipeline, "sample")


def test_a_step_that_failed_before_it_made_anything_may_be_corrected(tmp_path):
    with Pipeline(tmp_path) as pipeline:
        with pytest.raises(StepFailed, match=r"sample ended with code 3, see .*log.txt"):
            pipeline.run("sample", [sys.executable, "-c", "raise SystemExit(3)"], outputs=[])
        write(pipeline, "sample")
        assert calls(pipeline, "sample") == 1


def test_a_step_that_does_not_make_its_output_fails(tmp_path):
    with Pipeline(tmp_path) as pipeline, pytest.raises(StepFailed, match=r"sample did not write .*nothing"):
        pipeline.run("sample", [sys.executable, "-c", ""], outputs=[tmp_path / "nothing"])


def test_what_a_step_prints_is_in_its_log_and_on_the_terminal(tmp_path, capfd):
    with Pipeline(tmp_path) as pipeline:
        code = "import os, sys; print('out'); print(os.environ['COLOUR'], file=sys.stderr)"
        pipeline.run("say", [sys.executable, "-c", code], outputs=[], environment={"COLOUR": "green"})
    log = (tmp_path / "say" / "log.txt").read_text()
    assert {"out", "green"} <= {*log.splitlines()}
    assert "COLOUR=green" in log
    assert {"out", "green"} <= {*capfd.readouterr().out.splitlines()}


# A step that handles a row of data: it prints it, copies it where `datasets` would, and writes it.
PRIVATE_STEP = """
import os, sys
from pathlib import Path
row, made = "a row of data", Path(sys.argv[1])
print(row)
cache = Path(os.environ["HF_DATASETS_CACHE"])
cache.mkdir(parents=True, exist_ok=True)
(cache / "rows.arrow").write_text(row)
if sys.argv[2:]:
    print(f"FP011 x.jsonl:3 label: {row}", file=sys.stderr)
    raise KeyError(row)
made.write_text(row)
"""


@pytest.fixture
def private_step(tmp_path):
    """Run it; further words make it fail before it has made anything."""
    program, made = tmp_path / "program.py", tmp_path / "run" / "say" / "rows.jsonl"
    program.write_text(PRIVATE_STEP)

    def run(*words):
        with Pipeline(tmp_path / "run") as pipeline:
            command = [sys.executable, program, made, *words]
            pipeline.run("say", command, outputs=[made], private=True)
        return made

    return run


def test_what_a_private_step_prints_is_nowhere_and_its_errors_are_the_users_only(private_step, tmp_path, capfd):
    """An error may quote a row: what is told of it are the codes of problems and the classes of errors."""
    with pytest.raises(StepFailed) as error:
        private_step("and fail")
    kept = tmp_path / "run" / "say" / "private.txt"
    assert f"say ended with code 1 (FP011, KeyError); {kept} has its errors" in str(error.value)
    assert kept.read_text().splitlines()[-1] == "KeyError: 'a row of data'"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    told = str(error.value) + "".join(capfd.readouterr()) + (kept.parent / "log.txt").read_text()
    assert "a row of data" not in told


def test_what_a_private_step_writes_is_the_users_only_and_its_copies_of_rows_go(private_step, capfd):
    private_step()
    made = private_step()
    assert "already done" in capfd.readouterr().out
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    files = {path.name: path.read_text() for path in made.parent.iterdir()}
    assert files.keys() == {"step.json", "log.txt", "private.txt", "rows.jsonl"}
    assert [name for name, text in files.items() if "a row of data" in text] == ["rows.jsonl"]


def test_a_private_step_that_failed_before_it_made_anything_may_be_corrected(private_step):
    with pytest.raises(StepFailed):
        private_step("and fail")
    assert private_step().exists()


def test_a_run_killed_in_a_step_leaves_the_folder_locked_until_the_step_ends(tmp_path):
    program = f"""
import sys
from finepref.pipelines.steps import Pipeline
with Pipeline({str(tmp_path / "run")!r}) as pipeline:
    code = "import time, sys; open(sys.argv[1] + '/begun', 'w'); time.sleep(600)"
    pipeline.run("slow", [sys.executable, "-c", code, pipeline.path("slow")], outputs=[])
"""
    run = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stdout=subprocess.DEVNULL)
    begun = tmp_path / "run" / "slow" / "begun"
    while not begun.exists():
        assert run.poll() is None
        time.sleep(0.02)
    run.kill()
    run.wait()
    with pytest.raises(PipelineBusy, match="a step that it left behind"), Pipeline(tmp_path / "run"):
        pass
    os.killpg(run.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while True:
        try:
            with Pipeline(tmp_path / "run") as pipeline:
                record = json.loads(pipeline.path("slow", "step.json").read_text())
                assert "outputs" not in record, "it was not finished"
                break
        except PipelineBusy:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_told_to_end_ends_all_processes_of_its_step(tmp_path, number):
    """As llamafactory-cli does, the command starts another process, and does not pass the signal on."""
    program = f"""
import sys
from finepref.pipelines.steps import Pipeline
with Pipeline({str(tmp_path / "run")!r}) as pipeline:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[2], sys.argv[1]])"
    slow = "import os, sys, time; open(sys.argv[1] + '/pid.txt', 'w').write(str(os.getpid())); time.sleep(600)"
    pipeline.run("slow", [sys.executable, "-c", code, pipeline.path("slow"), slow], outputs=[])
"""
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    noted = tmp_path / "run" / "slow" / "pid.txt"
    while not (noted.exists() and noted.read_text()):
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(number)
    assert run.wait(timeout=60) == 128 + number
    assert not runs(int(noted.read_text()))
    with Pipeline(tmp_path / "run") as pipeline:
        assert "outputs" not in json.loads(pipeline.path("slow", "step.json").read_text())


def test_the_digest_of_a_folder_depends_on_names_and_bytes_and_not_on_its_place(tmp_path):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "file").write_text("x")
    first, second = map(content_digest, folders)
    assert first == second
    (folders[1] / "sub" / "file").rename(folders[1] / "sub" / "other")
    assert content_digest(folders[1]) != first
    with pytest.raises(FileNotFoundError):
        content_digest(tmp_path / "absent")
