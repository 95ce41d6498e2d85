"""docs/compatibility.md is what scripts/compatibility.py makes of the records, the locks and the patch cards."""

from __future__ import annotations

import json
from pathlib import Path

import own_scripts
import pytest

ROOT = Path(__file__).parents[2]
RECORDS = json.loads((ROOT / "docs" / "compatibility.json").read_text())


@pytest.fixture(scope="module")
def script():
    return own_scripts.loaded("compatibility")


def test_the_page_is_the_one_that_the_script_writes(script):
    """If not: .venvs/core/bin/python scripts/compatibility.py page."""
    assert (ROOT / "docs" / "compatibility.md").read_text() == script.page(RECORDS)


@pytest.mark.parametrize("name", [name for name, record in RECORDS.items() if record["lock"]])
def test_a_record_that_names_a_lock_ran_with_its_versions(name):
    """If not, the lock has changed since: record the tests anew."""
    lines = (ROOT / RECORDS[name]["lock"]).read_text().splitlines()
    lock = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    ran = RECORDS[name]["packages"]
    assert {package: found.partition("+")[0] for package, found in ran.items()} == {
        package: lock[package] for package in ran
    }


@pytest.mark.parametrize("name", RECORDS)
def test_every_recorded_run_passed_on_sources_that_the_patch_cards_know(name):
    record = RECORDS[name]
    assert record["outcomes"].keys() == {"passed"}
    states = {state for found in record["cards"].values() for state in found}
    assert states <= {"in place, source tested"}


def test_every_python_that_pyproject_names_has_a_record():
    found = {record["python"].rpartition(".")[0] for record in RECORDS.values()}
    assert {"3.11", "3.12", "3.13"} <= found


def test_the_script_counts_each_test_once(script):
    class Report:
        def __init__(self, when, outcome):
            self.when, self.outcome = when, outcome

    counts = script.Counts()
    for when, outcome in (
        ("setup", "passed"), ("call", "passed"), ("teardown", "passed"),
        ("setup", "passed"), ("call", "failed"), ("teardown", "passed"),
        ("setup", "skipped"), ("teardown", "passed"),
        ("setup", "failed"), ("teardown", "passed"),
    ):  # fmt: skip
        counts.pytest_runtest_logreport(Report(when, outcome))
    assert counts.found == {"passed": 1, "failed": 2, "skipped": 1}
