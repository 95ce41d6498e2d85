"""Sub-command of `finepref reversegen`: run, the whole loop from one YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A YAML such as examples/pipelines/reversegen_*.yaml.")],
    output: Annotated[Path, typer.Option(help="The folder of the run; the report is in it.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...")] = None,
) -> None:
    """Warm-up, rounds of {propose, judge, train the proposer}, improve the target, evaluate, report.

    Runs in an environment with LLaMA-Factory. Killed at any point, the same command goes on where it was.
    """
    from finepref.formats.problems import BadData
    from finepref.pipelines.reversegen import reversegen
    from finepref.pipelines.settings import call, load
    from finepref.pipelines.steps import Pipeline, PipelineBusy, StepChanged, StepFailed

    try:
        settings = load(file, overrides or ())
        with Pipeline(output) as pipeline:
            call(reversegen, settings, file=file, pipeline=pipeline)
    except (BadData, PipelineBusy, StepChanged, StepFailed, ValueError, OSError, ModuleNotFoundError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    typer.echo(f"report: {output / 'report.md'}")
