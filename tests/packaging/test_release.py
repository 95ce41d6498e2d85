"""What a release is made of: sdist, GitHub's workflow, pre-commit hooks, citation, changelog, the Chinese README."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from finepref.methods import BUILT_IN
from packaging.version import Version

ROOT = Path(__file__).parents[2]
FOLDERS = (
    ".ci",
    ".github",
    "benchmarks",
    "dataset_info",
    "docs",
    "examples",
    "locks",
    "patches",
    "reproduce",
    "plugins",
    "scripts",
)
MAKEFILE = (ROOT / "Makefile").read_text()
# Targets with their prerequisites and recipes.
TARGETS = {
    name: (needs.split(), recipe)
    for name, needs, recipe in re.findall(r"^([\w%-]+):(?!=)([^\n]*)\n((?:\t[^\n]*\n)*)", MAKEFILE, re.M)
}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def files(folder: Path) -> set[str]:
    """The files below a folder, but for what Python and its tools leave there."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    names = (path.relative_to(folder).as_posix() for path in found)
    return {name for name in names if not re.search(r"(^|/)(__pycache__|\.\w+_cache|[\w.]+\.egg-info)/", name)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The repository without what Git ignores: setuptools would take files that an older build listed."""
    folder = tmp_path_factory.mktemp("release") / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info", ".*_cache", ".hypothesis")
    for name in (*FOLDERS, "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    kept = {".md", ".yml", ".yaml", ".cff", ".toml", ".py", ".in"}
    for path in ROOT.iterdir():
        if path.is_file() and (path.suffix in kept or path.name in {"LICENSE", "Makefile", ".gitignore"}):
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def built(tree) -> Path:
    """A folder with a wheel and an sdist, made as `make dist` makes them."""
    folder = tree.parent / "dist"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(tree)]
    expected = files(tree)
    subprocess.run(command, check=True, capture_output=True)
    (folder / "tree.txt").write_text("\n".join(sorted(expected)))
    return folder


def test_the_sdist_is_the_repository_so_that_its_readme_is_true(built):
    """Recipes with their data, locks, scripts, tests: `make demo` and `make test` work in it too."""
    with tarfile.open(next(built.glob("finepref-*.tar.gz"))) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {"PKG-INFO", "setup.cfg", *(name for name in names if name.startswith("plugins/finepref.egg-info/"))}
    assert names - made == set((built / "tree.txt").read_text().split("\n"))


def test_the_wheel_that_the_sdist_gives_attaches_and_has_the_web_ui_and_the_pages(built):
    with zipfile.ZipFile(next(built.glob("finepref-*.whl"))) as archive:
        names = set(archive.namelist())
        assert archive.read("finepref.pth").decode() == (ROOT / "plugins" / "finepref.pth").read_text()
        record = archive.read(f"finepref-{VERSION}.dist-info/RECORD").decode()
    package = ROOT / "plugins" / "finepref"
    data = {f"finepref/{name}" for name in files(package) if not name.endswith(".py")}
    assert {"finepref/hosts/llamafactory/webui/texts.toml", "finepref/hosts/view.html"} <= data
    assert data <= names
    assert {f"finepref/patches/{name}" for name in files(ROOT / "patches")} <= names
    samples = files(ROOT / "dataset_info") - {"README.md"}
    assert {f"finepref/dataset_info/{name}" for name in samples} <= names
    assert {line.split(",")[0] for line in record.splitlines()} == names


def test_what_ci_runs_is_make_test_and_the_workflow_has_the_same_parts():
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"
    needs, recipe = TARGETS["test"]
    parts = re.findall(r"\btest-[\w-]+", recipe)
    jobs = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    assert [f"test-{each['part']}" for each in jobs["test"]["strategy"]["matrix"]["include"]] != []
    assert sorted(f"test-{each['part']}" for each in jobs["test"]["strategy"]["matrix"]["include"]) == sorted(parts)
    assert jobs["test"]["steps"][-1]["run"] == "make test-${{ matrix.part }}"
    assert [f"make {each}" for each in needs] == [step["run"] for step in jobs["lint"]["steps"] if "run" in step]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_every_make_target_of_a_workflow_exists(workflow):
    content = read(workflow)
    assert {"name", "jobs", "permissions"} <= content.keys()
    runs = [step["run"] for job in content["jobs"].values() for step in job["steps"] if "run" in step]
    parts = [each["part"] for each in content["jobs"]["test"]["strategy"]["matrix"]["include"]]
    shown = " ".join(run.replace("${{ matrix.part }}", part) for run in runs for part in parts)
    targets = set(re.findall(r"\bmake ([\w-]+)", shown))
    assert {"lint", "dist", "test-core"} <= targets <= TARGETS.keys()


def test_the_cache_of_a_part_is_that_of_its_environments_and_their_locks():
    """An environment is kept as long as what scripts/make_env.sh compares is the same."""
    stamp = re.search(r"^stamp=\$\(cat (.*?) \|", (ROOT / "scripts/make_env.sh").read_text(), re.M)[1]
    compared = stamp.replace('"$0"', "scripts/make_env.sh").split()[1:]
    test = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]
    for step in test["steps"]:
        if step.get("uses", "").startswith("actions/cache@"):
            hashed = re.search(r"hashFiles\(matrix\.(?:other_)?lock, (.*)\)", step["with"]["key"])[1]
            assert hashed.replace("'", "").split(", ") == compared
    for part in test["strategy"]["matrix"]["include"]:
        environments = [part["env"], *([part["other"]] if "other" in part else [])]
        locks = [part["lock"], *([part["other_lock"]] if "other" in part else [])]
        assert TARGETS[f"test-{part['part']}"][0] == [f"env-{name}" for name in environments]
        for name, lock in zip(environments, locks, strict=True):
            assert lock in {f"locks/{name}.txt", f"locks/{name}-cpu.txt"}
            assert (ROOT / lock).is_file()


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_a_form_for_issues_has_what_github_asks_for(form):
    content = read(form)
    assert {"name", "description", "body"} <= content.keys()
    asked = [element for element in content["body"] if element["type"] != "markdown"]
    assert {element["type"] for element in asked} <= {"input", "textarea", "dropdown", "checkboxes"}
    assert all(element["attributes"]["label"] for element in asked)
    assert len({element["id"] for element in asked}) == len(asked) > 0
    assert any(element.get("validations", {}).get("required") for element in asked)


def test_files_and_commands_that_the_templates_name_exist():
    texts = [path.read_text() for path in (*FORMS, ROOT / ".github" / "pull_request_template.md")]
    paths = set(re.findall(r"\b(?:scripts|examples|docs)/[\w./-]*\w|\b[A-Z]+\.md\b", " ".join(texts)))
    assert {"SECURITY.md", "CHANGELOG.md", "examples/own_stage", "scripts/compare_with_record.py"} <= paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
    targets = set(re.findall(r"`make ([\w-]+)`", " ".join(texts)))
    assert {"test", "format"} <= targets <= TARGETS.keys()


def test_the_hooks_of_pre_commit_are_those_of_make_lint_in_the_versions_of_the_lock():
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    pins = {pin for hook in repository["hooks"] for pin in hook["additional_dependencies"]}
    assert {pin.partition("==")[0] for pin in pins} == {"ruff", "mypy", "types-PyYAML"}
    assert pins <= set((ROOT / "locks" / "core.txt").read_text().split())
    entries = [hook["entry"].replace("check --fix", "check") for hook in repository["hooks"]]
    linted = re.findall(r"\$\(CORE\)/(.*)", TARGETS["lint"][1])
    assert entries == [line.replace("format --check", "format") for line in linted]


def test_the_citation_has_the_version_and_papers_that_the_readme_links():
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == VERSION
    assert citation["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    linked = set(re.findall(r"https://arxiv\.org/abs/[\d.]+\d", (ROOT / "README.md").read_text()))
    linked |= {
        f"https://arxiv.org/abs/{found}" for found in re.findall(r"arXiv ([\d.]+\d)", (ROOT / "README.md").read_text())
    }
    assert {paper["url"] for paper in citation["references"]} <= linked
    assert len(citation["references"]) == 5  # SePO, SeaPO, TDPO, APO, ReverseGen


def test_the_changelog_has_the_newest_version_first_and_that_of_the_package():
    headings = re.findall(r"^## (\S+) \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    versions = [Version(version) for version, _ in headings]
    assert versions == sorted(versions, reverse=True)
    assert Version(VERSION) in versions
    unreleased = [version for version, when in headings if when == "unreleased"]
    assert unreleased in ([], [headings[0][0]])
    assert all(re.fullmatch(r"unreleased|\d{4}-\d\d-\d\d.*", when) for _, when in headings)


def commands(page: str) -> list[list[list[str]]]:
    """The words of each command in each block of a page, without comments, which are translated."""
    blocks = re.findall(r"^```(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    lines = ([*block.replace("\\\n", " ").splitlines()] for block in blocks)
    return [[words for line in block if (words := shlex.split(line, comments=True))] for block in lines]


def test_the_chinese_readme_has_the_commands_of_the_english_one():
    assert commands("README_zh.md") == commands("README.md")
    assert ["make", "demo"] in commands("README.md")[0]


def test_the_readmes_link_each_other_and_have_the_same_picture():
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh.md"))
    assert "](README_zh.md)" in english
    assert "](README.md)" in chinese
    pictures = [re.findall(r"!\[.*?\]\((.*?)\)", text) for text in (english, chinese)]
    assert pictures[0] == pictures[1] != []


@pytest.mark.parametrize("stage", BUILT_IN, ids=lambda stage: stage.name)
def test_the_chinese_readme_has_every_stage_with_its_papers_as_the_english_one_and_a_recipe(stage):
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh.md"))
    (row,) = (line for line in chinese.splitlines() if line.startswith(f"| `{stage.name}` |"))
    assert f"]({stage.recipe})" in row
    (original,) = (line for line in english.splitlines() if re.match(rf"\| \[.*\]\(.*{stage.name}(\.md)?\) \|", line))
    papers = [re.findall(r"https://arxiv\.org/abs/[\d.]+", line) for line in (row, original)]
    assert papers[0] == papers[1]
