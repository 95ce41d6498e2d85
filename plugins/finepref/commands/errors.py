"""Errors that the user can correct: a short message and exit code 1. All other errors give a traceback.

Exit code 2 is typer's, for a command line that it cannot read. `finepref reversegen run` has two codes of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

NOTHING_TRAINED = 3
"""Neither the proposer nor the target was trained after the warm-up; the report is written."""
TARGET_UNTRAINED = 4
"""The proposer was trained, the target was not; the report is written."""


@contextmanager
def user_errors(needs: str = "") -> Iterator[None]:
    """Report bad data, settings and files, a busy folder, a failed step, a missing package or model.

    Args:
        needs: the extras of finepref that the command needs; shown if a package is missing.
    """
    from finepref.pipelines.steps import PipelineBusy, StepFailed
    from finepref.synth.data_sources.hub import HubUnreachable
    from finepref.synth.journal import JournalBusy
    from finepref.synth.smollm2 import ModelUnavailable

    named = (HubUnreachable, JournalBusy, ModelUnavailable, PipelineBusy, StepFailed)
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError, *named) as error:
        hint = f"; {needs}" if needs and isinstance(error, ModuleNotFoundError) else ""
        typer.echo(f"{error}{hint}", err=True)
        raise typer.Exit(1) from error
