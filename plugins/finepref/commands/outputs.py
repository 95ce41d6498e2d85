"""A check of the files that a command is going to write, before it does any work."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import typer


def check_outputs(
    *outputs: Path, inputs: Iterable[Path | None] = (), folders: Iterable[Path] = (), hint: str = "--output"
) -> None:
    """Refuse files that cannot or must not be written.

    Args:
        outputs: all files that the command may write or remove, those beside its output included.
        inputs: files that it reads; None is ignored.
        folders: folders all of whose files it reads.
        hint: the option or argument that names the output.

    Raises:
        typer.BadParameter: an output is an input, in a folder of the input or not a file, or cannot be written.
    """
    read = {path.resolve() for path in inputs if path is not None}
    given = [*folders]
    for output in outputs:
        if output.resolve() in read:
            raise typer.BadParameter(f"{output} is also an input", param_hint=hint)
        if folder := next((each for each in given if output.resolve().parent == each.resolve()), None):
            text = f"{output} is in {folder}, all files of which are the input; name a file in another folder"
            raise typer.BadParameter(text, param_hint=hint)
        try:
            if output.is_dir():
                raise typer.BadParameter(f"{output} is a folder; name a file", param_hint=hint)
            if output.exists() and not output.is_file():
                raise typer.BadParameter(f"{output} is not a regular file", param_hint=hint)
            folder = next(parent for parent in output.resolve().parents if parent.exists())
            with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{output.name}.", suffix=".partial"):
                pass
        except OSError as error:
            raise typer.BadParameter(f"{output} cannot be written: {error.strerror}", param_hint=hint) from None
