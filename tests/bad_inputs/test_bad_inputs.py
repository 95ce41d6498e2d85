"""Every bad input gives its codes with line and field; no row is lost, none is let through, nothing is a traceback."""

from __future__ import annotations

import base64
import json

import pytest
from bad_input_table import CASES
from finepref.cli import app
from finepref.formats.check import CODES, check_file
from finepref.formats.records import FORMATS
from typer.testing import CliRunner

# On the command line an unknown format is a usage error, and a column can only be a text.
TYPEABLE = [case for case in CASES if case.formatting in FORMATS and case.name != "a column name that is a number"]
by_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@by_case
def test_a_bad_file_gives_exactly_its_problems_and_accounts_for_every_row(case, tmp_path):
    path, rejected = tmp_path / "data.jsonl", tmp_path / "rejected.jsonl"
    path.write_bytes(case.content)
    report = check_file(path, case.formatting, rejected_path=rejected, **case.options)
    assert [(problem.code, problem.line, problem.field) for problem in report.problems] == case.found
    assert all(problem.file == str(path) and problem.message for problem in report.problems)
    assert (report.rows, report.rows - report.rejected) == (case.rows, case.good)
    assert report.total_problems == len(case.found)
    assert not report.passes()


@by_case
def test_the_rejected_rows_are_written_with_their_bytes_and_problems(case, tmp_path):
    path, rejected = tmp_path / "data.jsonl", tmp_path / "rejected.jsonl"
    path.write_bytes(case.content)
    report = check_file(path, case.formatting, rejected_path=rejected, **case.options)
    rows = [json.loads(line) for line in rejected.read_text().splitlines()] if rejected.exists() else []
    assert len(rows) == report.rejected
    for row in rows:
        text = base64.b64decode(row["row_base64"]) if "row_base64" in row else row["row"].encode()
        assert text in case.content
        assert row["file"] == str(path)
        expected = [(code, field) for code, line, field in case.found if line == row["line"]]
        assert [(problem["code"], problem["field"]) for problem in row["problems"]] == expected


@pytest.mark.parametrize("case", TYPEABLE, ids=[case.name for case in TYPEABLE])
def test_finepref_validate_exits_with_1_and_prints_each_code_with_its_place(case, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(case.content)
    arguments = ["validate", str(path), "--format", case.formatting, "--json"]
    for name, column in case.options.get("columns", {}).items():
        arguments += ["--column", f"{name}={column}"]
    if "error_types" in case.options:
        arguments += ["--error-types", ",".join(case.options["error_types"])]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    (found,) = json.loads(result.stdout)["files"]
    assert [(p["code"], p["line"], p["field"]) for p in found["problems"]] == case.found


def test_the_catalogue_has_sixty_cases_and_covers_every_code_that_a_file_can_have():
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    of_files = {code for code in CODES if code < "FP062"} - {"FP001", "FP047"}
    assert of_files <= {code for case in CASES for code, _, _ in case.found}
