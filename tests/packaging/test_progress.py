"""What a quiet installation shows on a terminal, elsewhere, under make, and when it fails. pip is a script here."""

from __future__ import annotations

import io
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import own_scripts
import pytest

ROOT = Path(__file__).parents[2]
PROGRESS = ROOT / "scripts" / "progress.py"
LOCK = "# a comment\nPyYAML==6.0.3\nantlr4_python3_runtime==4.11\ntorch==2.13.0\nmissing==1\n"
# As pip prints it; the second package is in the lock by another spelling, the third is in no lock.
PIP = r"""
echo "WARNING: Location 'file:///somewhere/pyyaml/' is ignored: it is neither a file nor a directory."
echo "Collecting PyYAML==6.0.3"
echo "  Downloading PyYAML-6.0.3-cp311-none-any.whl.metadata (2.4 kB)"
echo "  Downloading PyYAML-6.0.3-cp311-none-any.whl (800 kB)"
echo "  Using cached https://example.org/antlr4_python3_runtime-4.11-py3-none-any.whl (1.2 MB)"
echo "  Downloading other-1-py3-none-any.whl (1.0 MB)"
echo "WARNING: The candidate selected for download or install is a yanked version: PyYAML"
echo "Requirement already satisfied: torch==2.13.0 in somewhere"
"""
INSTALLED = r"""
echo "Installing collected packages: pyyaml, antlr4-python3-runtime, other"
for name in pyyaml-6.0.3 antlr4_python3_runtime-4.11 other-1; do
    mkdir -p "$SITE/$name.dist-info"
    printf 'a.py,sha256=x,1000000\nb.py,,500000\n%s.dist-info/RECORD,,\n' $name >"$SITE/$name.dist-info/RECORD"
done
"""
YANKED = "WARNING: The candidate selected for download or install is a yanked version: PyYAML\n"


@pytest.fixture
def site(tmp_path) -> Path:
    folder = tmp_path / "venv" / "lib" / "python3.11" / "site-packages"
    folder.mkdir(parents=True)
    (tmp_path / "lock.txt").write_text(LOCK)
    return folder


def words(site: Path, script: str) -> list[str]:
    """The command line of progress.py around a script in place of pip."""
    folder = site.parents[3]
    options = ["--log", folder / "log", "--lock", folder / "lock.txt", "--into", folder / "venv"]
    return [sys.executable, *map(str, (PROGRESS, *options)), "core: packages", "--", "sh", "-c", script]


def environment(site: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"MAKE_TERMOUT", "MAKE_TERMERR"}}
    return {**kept, "SITE": str(site), "TERM": "xterm", **more}


def run(site: Path, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words(site, script), capture_output=True, text=True, env=environment(site))


def on_terminal(site: Path, script: str, awaited: str = "", go: Path | None = None, width: int = 100) -> str:
    """What a terminal is sent; the file `go` is made once the awaited text is there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(words(site, script), stdout=theirs, env=environment(site, COLUMNS=str(width)))
    os.close(theirs)
    sent = b""
    try:
        while part := os.read(ours, 4096):
            sent += part
            if go and awaited in sent.decode(errors="ignore"):
                go.touch()
    except OSError:
        pass  # Linux reports the other end's closing so
    os.close(ours)
    assert process.wait() == 0
    return sent.decode()


def test_elsewhere_than_on_a_terminal_a_step_is_one_line_with_packages_of_the_lock_size_and_time(site):
    """4.5 MB: three packages of 1.5 MB, of which one is not in the lock."""
    shown = run(site, PIP + INSTALLED)
    line = r"core: packages: installed 2 of 4 packages, 4\.5 MB, \d+:\d\d\n"
    assert re.fullmatch(re.escape(YANKED) + line, shown.stdout)
    assert (shown.returncode, shown.stderr) == (0, "")


def test_the_log_has_the_command_and_every_line_also_those_that_are_not_shown(site):
    run(site, PIP + INSTALLED)
    lines = (site.parents[3] / "log").read_text().splitlines()
    assert lines[0].startswith("$ sh -c ")
    printed = [line for line in (PIP + INSTALLED).splitlines() if line.startswith("echo ")]
    assert [f'echo "{line}"' for line in lines[-len(printed) :]] == printed


def test_a_failure_tells_the_code_the_end_of_the_log_and_where_the_log_is(site):
    shown = run(site, PIP + 'echo "ERROR: No matching distribution found for missing==1"; exit 3')
    assert shown.returncode == 3
    assert "ERROR: No matching distribution found for missing==1\n" in shown.stdout
    assert "is ignored" not in shown.stdout
    end = r"core: packages: failed with code 3 after \d+:\d\d; log: (.*)\n"
    assert Path(re.search(end + r"\Z", shown.stdout)[1]).read_text().count("\n") > 5


def test_a_terminal_has_a_bar_of_what_is_fetched_and_then_of_what_is_installed(site):
    """Fetched: two of the lock, another one and one that is there: 4, and 0.8 + 1.2 + 1 MB."""
    go = site.parents[3] / "go"
    wait = f'for i in $(seq 200); do [ -e "{go}" ] && break; sleep 0.1; done'
    sent = on_terminal(site, PIP + wait + INSTALLED, "fetched 4 of 4", go)
    assert re.search(r"\rcore: packages: \[#{20}\] fetched 4 of 4 packages, 3\.0 MB, other, 0:\d\d\x1b\[K", sent)
    last = re.sub(r"\x1b\[K", "", sent.rstrip("\r\n").rpartition("\r")[2])
    assert re.fullmatch(r"core: packages: installed 2 of 4 packages, 4\.5 MB, 0:\d\d", last)


def test_a_bar_is_no_longer_than_a_line_of_the_terminal(site):
    go = site.parents[3] / "go"
    wait = f'for i in $(seq 200); do [ -e "{go}" ] && break; sleep 0.1; done'
    sent = on_terminal(site, PIP + wait, "] fetched 4", go, width=60)
    assert max(len(part) for part in sent.replace("\x1b[K", "").split("\r") if "#" in part) == 59


def test_the_yanked_warning_does_not_stand_on_the_line_of_the_bar(site):
    assert "\r\x1b[K" + YANKED.rstrip("\n") in on_terminal(site, PIP + INSTALLED)


def test_a_warning_is_shown_even_if_the_command_has_ended_before_anybody_looks(site, monkeypatch):
    progress = own_scripts.loaded("progress")

    class AtOnce:
        """A thread that has ended when it was started."""

        def __init__(self, target, daemon):
            self.start = target

        def join(self, timeout):
            pass

        def is_alive(self):
            return False

    monkeypatch.setattr(progress, "threading", SimpleNamespace(Thread=AtOnce))
    shown = io.StringIO()
    state = progress.State(set(), None)
    screen = progress.Screen(shown, "core: packages")
    assert progress.run(["sh", "-c", f'echo "{YANKED.strip()}"'], state, screen, site.parents[3] / "log") == 0
    assert shown.getvalue() == YANKED


def test_under_make_that_keeps_output_back_lines_go_to_the_terminal_itself(site, tmp_path):
    terminal = tmp_path / "terminal"
    terminal.touch()
    shown = subprocess.run(
        words(site, INSTALLED),
        capture_output=True,
        text=True,
        env=environment(site, MAKE_TERMOUT=str(terminal)),
    )
    assert (shown.returncode, shown.stdout) == (0, "")
    assert terminal.read_text().startswith("core: packages: installed 2 of 4 packages, 4.5 MB, ")


def test_packages_of_apt_get_are_counted_from_its_own_lines(tmp_path):
    script = """
echo "0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded."
echo "Get:1 http://example.org/debian stable/main amd64 chromium amd64 1.2 [70.5 MB]"
echo "Get:2 http://example.org/debian stable/main amd64 chromium-driver amd64 1.2 [5,500 kB]"
echo "Setting up chromium (1.2) ..."
echo "Setting up chromium-driver (1.2) ..."
"""
    command = [sys.executable, str(PROGRESS), "--log", str(tmp_path / "log"), "chromium", "--", "sh", "-c", script]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(tmp_path))
    assert re.fullmatch(r"chromium: installed 2 of 2 packages, 76\.0 MB, 0:\d\d\n", shown.stdout)


def test_make_env_counts_its_lock_keeps_the_log_and_leaves_no_stamp_when_pip_fails(tmp_path):
    """python3.11 is a script: it makes an environment whose pip installs torch and fails at the others."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "small.txt").write_text("torch==2.13.0\nnumpy==2.0\nflash-attn==2.8.3\n")
    pip = """#!/bin/sh
SITE=.venvs/small/lib/python3.11/site-packages
case "$*" in
*torch==2.13.0)
    echo "Installing collected packages: torch"
    mkdir "$SITE/torch-2.13.0.dist-info" && echo "torch/a.py,,700000000" >"$SITE/torch-2.13.0.dist-info/RECORD" ;;
*) echo "ERROR: no room"; exit 1 ;;
esac
"""
    python = f"""#!/bin/sh
case "$1 $2" in
-c*) exit 0 ;;
"-m venv") mkdir -p "$3/bin" "$3/lib/python3.11/site-packages" && cp pip "$3/bin" ;;
*) exec "{sys.executable}" "$@" ;;
esac
"""
    (tmp_path / "pip").write_text(pip)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3.11").write_text(python)
    for path in (tmp_path / "pip", tmp_path / "bin" / "python3.11"):
        path.chmod(0o755)
    made = subprocess.run(
        ["bash", str(tmp_path / "scripts" / "make_env.sh"), "small"],
        capture_output=True,
        text=True,
        env=environment(tmp_path, PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin"),
    )
    assert made.returncode == 1
    lines = made.stdout.splitlines()
    assert lines[:2] == [
        "making .venvs/small from locks/small.txt",
        "    2 packages; log: .venvs/small/install.log",
    ]
    assert re.fullmatch(r"small: torch and what it needs: installed 1 of 2 packages, 700\.0 MB, 0:\d\d", lines[2])
    assert lines[-2] == "ERROR: no room"
    failed = r"small: the other packages: failed with code 1 after 0:\d\d; log: \.venvs/small/install\.log"
    assert re.fullmatch(failed, lines[-1])
    assert not (tmp_path / ".venvs" / "small" / ".stamp").exists()


def browser(folder: Path, apt: str) -> subprocess.CompletedProcess[str]:
    """scripts/make_browser.sh for root on a machine without Chromium, where apt-get is a script."""
    (folder / "bin").mkdir()
    for name in ("bash", "dirname", "env", "mktemp", "rm", "sh"):
        (folder / "bin" / name).symlink_to(shutil.which(name))
    (folder / "bin" / "python3").symlink_to(sys.executable)
    for name, text in (("id", "echo 0"), ("apt-get", apt)):
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "make_browser.sh")],
        capture_output=True,
        text=True,
        env=environment(folder, PATH=str(folder / "bin"), TMPDIR=str(folder)),
    )


def test_the_browser_is_installed_in_two_steps_and_the_log_of_a_success_is_removed(tmp_path):
    apt = """[ "$1" = update ] && exit 0
echo "0 upgraded, 2 newly installed, 0 to remove and 3 not upgraded."
echo "Get:1 http://example.org/debian stable/main amd64 chromium amd64 1.2 [70.5 MB]"
echo "Setting up chromium (1.2) ..."
echo "Setting up chromium-driver (1.2) ..."
"""
    made = browser(tmp_path, apt)
    begin, update, install = made.stdout.splitlines()
    assert re.fullmatch(rf"installing chromium chromium-driver; log: {tmp_path}/\S+\.log", begin)
    assert re.fullmatch(r"list of packages: done, 0:\d\d", update)
    assert re.fullmatch(r"chromium chromium-driver: installed 2 of 2 packages, 70\.5 MB, 0:\d\d", install)
    assert (made.returncode, made.stderr, list(tmp_path.glob("*.log"))) == (0, "", [])


def test_a_browser_that_cannot_be_installed_is_told_with_the_end_of_the_log_which_is_kept(tmp_path):
    made = browser(tmp_path, """echo "E: Unable to locate package chromium"; [ "$1" = update ] || exit 100""")
    assert made.returncode == 100
    (log,) = tmp_path.glob("*.log")
    assert "\nE: Unable to locate package chromium\n" in made.stdout
    failed = f"chromium chromium-driver: failed with code 100 after 0:\\d\\d; log: {re.escape(str(log))}"
    assert re.fullmatch(failed, made.stdout.splitlines()[-1])
