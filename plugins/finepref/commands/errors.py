"""What the user can mend is told in a few words and ends a command with exit code 1; all else is a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def told_errors(needs: str = "") -> Iterator[None]:
    """Bad data, settings and files, a busy folder, a failed step, a missing package or model.

    Args:
        needs: which extras of finepref the command needs, for the last of these.
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
