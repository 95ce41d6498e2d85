"""`finepref validate`: a check of data files, without a host."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from finepref.commands.errors import user_errors
from finepref.commands.forecast import RunOptions, SetOption, told_of
from finepref.commands.input_files import (
    IN_DATASET_INFO,
    Column,
    DatasetDir,
    Format,
    MaxBad,
    check_files,
    check_layout,
    columns_of,
    names_of,
    share_of,
)
from finepref.commands.problem_tables import print_reports
from finepref.commands.sequence_options import TEMPLATE_NEEDS, CutoffLen, TemplateName
from finepref.formats.check import BadData, FileReport, Problem
from finepref.formats.jsonl import ArrayLine
from finepref.formats.problems import Group
from finepref.synth.data_sources.inputs import Input, find_inputs

CORES = len(os.sched_getaffinity(0))


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    app.command()(validate)


def validate(
    sources: Annotated[list[str], typer.Argument(help="Data files, folders, or names in dataset_info.json.")],
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    error_type: Annotated[str, typer.Option(help="Error type of undesirable feedback rows without one.")] = "",
    error_types: Annotated[str, typer.Option(help="Allowed error types, with commas.")] = "",
    max_bad: MaxBad = "0",
    rejected: Annotated[Path, typer.Option(help="File for bad rows, with --max-bad.")] = Path("rejected.jsonl"),
    limit: Annotated[int, typer.Option(help="Problems shown per file; the others are only counted.")] = 100,
    jobs: Annotated[int, typer.Option(min=1, help="Processes for a large file.", show_default="all cores")] = CORES,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    stage: Annotated[str, typer.Option(help="Also tell what a run of this stage would cut, skip or refuse.")] = "",
    model: Annotated[str, typer.Option(help="With --stage: folder or name of the model, for its tokenizer.")] = "",
    cutoff_len: CutoffLen = 0,
    template: TemplateName = "",
    set_option: SetOption = [],  # noqa: B006
) -> None:
    """Check data files and report every problem with its code, line and field. Exit code 1 if there is one."""
    asked = RunOptions(stage, set_option, model, template, cutoff_len)
    if any(asked):
        with user_errors():
            asked.check()
    check_layout(layout)
    share, allowed = share_of(max_bad), names_of(error_types)
    inputs: list[Input] = []
    problems: list[Problem] = []
    for name in sources:
        try:
            inputs += find_inputs(name, layout, dataset_dir, columns_of(column), error_type or None, jobs=jobs)
        except BadData as error:
            problems += error.problems
    reports = check_files(inputs, limit, rejected if share else None, jobs=jobs, error_types=allowed, alone=True)
    allowed_codes = ("FP061",) if stage else ()  # a stage that reads feedback trains on one label, with a warning
    passed = not problems and all(report.passes(share, allowed=allowed_codes) for report in reports)
    forecast = None
    if stage and inputs:
        with user_errors(f'a tokenizer needs "finepref[model]"; {TEMPLATE_NEEDS}'):
            forecast = told_of(inputs, asked)
        passed = passed and (forecast.passed or share > 0)
    if as_json:
        found = {"passed": passed, "problems": [*map(as_json_row, problems)], "files": [*map(_as_json, reports)]}
        typer.echo(json.dumps(found | ({"forecast": forecast.content} if forecast else {})))
    else:
        print_reports(reports, problems)
        for line in forecast.lines if forecast else ():
            typer.echo(line)
    raise typer.Exit(0 if passed else 1)


def as_json_row(problem: Problem) -> dict[str, object]:
    """A problem for JSON; a row that shares its line in an array has its index too."""
    row = asdict(problem)
    return row | {"index": problem.line.index} if isinstance(problem.line, ArrayLine) else row


def _as_json(report: FileReport) -> dict[str, object]:
    grouped = {"groups": [*map(_as_json_group, report.groups)], "notes": [*map(_as_json_group, report.notes)]}
    problems = [*map(as_json_row, report.problems)]
    return asdict(replace(report, groups=(), notes=())) | grouped | {"problems": problems}


def _as_json_group(group: Group) -> dict[str, object]:
    first = group.first
    named = {"code": first.code, "field": first.field, "message": first.message}
    return named | {"count": group.count, "places": group.places}
