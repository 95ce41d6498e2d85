"""What lands in an environment, what it costs there, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STARTUP = {"finepref.pth", "finepref.start"}


def pip(*arguments: str, python: Path | None = None) -> None:
    target = ["--python", str(python)] if python else []
    subprocess.run(
        [sys.executable, "-m", "pip", *target, "--quiet", "--disable-pip-version-check", *arguments],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # setuptools would ship files of an older tree from it
    pip("wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder))
    (built,) = folder.glob("finepref-*.whl")
    return built


@pytest.fixture
def empty_environment(tmp_path) -> Path:
    """The Python of a fresh virtual environment that borrows setuptools for editable builds from nobody."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    return tmp_path / "venv" / "bin" / "python"


def contents(python: Path) -> set[str]:
    """Files below site-packages; pip removes the folder itself when it becomes empty."""
    folders = (python.parent.parent / "lib").glob("python3*/site-packages")
    return {str(file.relative_to(folder)) for folder in folders for file in folder.rglob("*")}


def attached(python: Path, **environment: str) -> bool:
    code = (
        "import sys; names = [(f.__module__, f.__name__) for f in sys.meta_path if isinstance(f, type)]\n"
        "print(('finepref.attach', '_Finder') in names)"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "FINEPREF"))}
    shown = subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=True, env={**clean, **environment}, cwd="/"
    )
    assert shown.stderr == ""
    return shown.stdout.strip() == "True"


def test_the_wheel_holds_every_module_of_the_source_tree(wheel):
    """A folder that pyproject.toml does not list would be missing, and only in environments of users."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("finepref/")}
    plugins = ROOT / "plugins"
    assert {path.relative_to(plugins).as_posix() for path in (plugins / "finepref").rglob("*.py")} <= held


def test_the_wheel_holds_start_up_files_cards_and_data_sets(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= STARTUP
    assert "finepref/patches/llamafactory/run-kto.toml" in names
    assert {"finepref/dataset_info/dataset_info.json", "finepref/dataset_info/samples/seapo_demo.jsonl"} <= names
    pages = {f"finepref/hosts/{name}" for name in ("view.html", "annotate.html", "page.css", "page.js")}
    assert {*pages, "finepref/hosts/llamafactory/webui/texts.toml"} <= names
    assert not [name for name in names if name.startswith(("tests", "examples"))]


def test_a_wheel_made_from_the_sdist_holds_the_same_files(wheel, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (again,) = tmp_path.glob("finepref-*.whl")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_an_install_attaches_can_be_switched_off_and_uninstalls_without_a_trace(kind, wheel, empty_environment):
    before = contents(empty_environment)
    if kind == "wheel":
        pip("install", "--no-deps", str(wheel), python=empty_environment)
    else:  # pip builds with this environment's setuptools, then installs into the empty one
        folder = wheel.parent / "editable"
        build_editable = (
            f"import os; os.chdir({str(ROOT)!r})\n"
            "from setuptools import build_meta\n"
            f"os.makedirs({str(folder)!r}, exist_ok=True)\n"
            f"build_meta.build_editable({str(folder)!r})\n"
        )
        subprocess.run([sys.executable, "-c", build_editable], check=True, capture_output=True)
        (built,) = folder.glob("*.whl")
        pip("install", "--no-deps", str(built), python=empty_environment)
    assert contents(empty_environment) >= STARTUP
    assert attached(empty_environment)
    assert not attached(empty_environment, FINEPREF_DISABLE="1")
    pip("uninstall", "--yes", "finepref", python=empty_environment)
    assert contents(empty_environment) == before
    assert not attached(empty_environment)


def test_an_unrelated_process_loads_two_small_modules_of_ours_and_nothing_else(wheel, empty_environment):
    """The cost in milliseconds is printed by benchmarks/startup.py; here is its cause, which does not jitter."""
    code = "import sys, json; print(json.dumps(sorted(sys.modules)))"

    def loaded() -> set[str]:
        shown = subprocess.run(
            [str(empty_environment), "-c", code], capture_output=True, text=True, check=True, cwd="/"
        )
        return set(json.loads(shown.stdout))

    before = loaded()
    pip("install", "--no-deps", str(wheel), python=empty_environment)
    assert loaded() - before == {"finepref", "finepref.attach"}
