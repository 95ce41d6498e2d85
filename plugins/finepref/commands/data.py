"""`finepref data`: data sets to start from, downloaded or generated."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from finepref.commands.errors import user_errors
from finepref.commands.outputs import check_outputs
from finepref.commands.row_options import BadRowsPolicy, MaxBad, Policy, bad_rows_of, exit_if_empty
from finepref.formats.bad_rows import MAX_BAD, rejected_path

HUB_NEEDS = 'the hub needs "finepref[synth]"'


def gsm(
    n: Annotated[int, typer.Option("--n", min=1, help="Number of questions.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file to write.")],
    seed: Annotated[int, typer.Option(help="Seed; each one has its own endless list of questions.")] = 0,
    skip: Annotated[int, typer.Option(min=0, help="Questions to leave out at the start of the list.")] = 0,
) -> None:
    """Questions with worked answers, every step checked: rows {id, prompt, chosen, answer}.

    Two calls with the same seed share no question if one skips the questions of the other.
    """
    from finepref.formats.jsonl import write_jsonl
    from finepref.synth.data_sources.gsm import questions

    check_outputs(output)
    with user_errors():
        made = questions(n, seed=seed, skip=skip)
        write_jsonl(output, made.rows)
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(made.left_out.items())) or "none"
    typer.echo(f"{output}: {len(made.rows)} questions (left out: {left_out})")


def gym(
    name: Annotated[str, typer.Argument(help="A data set of reasoning-gym, such as basic_arithmetic.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Number of questions.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file to write.")],
    seed: Annotated[int, typer.Option(help="Seed; each one has its own endless list of questions.")] = 0,
    skip: Annotated[int, typer.Option(min=0, help="Questions to leave out at the start of the list.")] = 0,
    option: Annotated[list[str], typer.Option(help="Option of the data set, as key=value; repeatable.")] = [],  # noqa: B006
    choices: Annotated[
        int, typer.Option(min=0, max=26, help="Make multiple-choice questions with so many numbers; 0 = do not.")
    ] = 0,
) -> None:
    """Different questions of any data set of reasoning-gym with answers: rows {id, prompt, chosen, answer}.

    With --choices, whose questions need whole numbers for answers: rows {id, prompt, options, answer, chosen}.

    Two calls with the same seed share no question if one skips the questions of the other. `finepref judge --judge
    gym` uses the data set's own verifier.
    """
    from finepref.formats.jsonl import write_jsonl
    from finepref.pipelines.settings import overridden
    from finepref.synth.data_sources.reasoning_gym import questions, with_choices

    check_outputs(output)
    with user_errors():
        rows = questions(name, n, seed=seed, skip=skip, options=overridden({}, option))
        count = write_jsonl(output, with_choices(rows, choices) if choices else rows)
    typer.echo(f"{output}: {count} questions of {name}")


FromFile = Annotated[
    Path | None, typer.Option(help="Read this file (JSON Lines, JSON, parquet, csv, arrow) instead of the hub.")
]


def ultrafeedback(
    output: Annotated[Path, typer.Option(help="The JSON Lines file of pairs to write.")],
    from_file: FromFile = None,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "",
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
) -> None:
    """UltraFeedback binarized as pairs with margins (HuggingFaceH4/ultrafeedback_binarized, train_prefs)."""
    _public("ultrafeedback", output, from_file, split, bad_rows, max_bad)


def hh(
    output: Annotated[Path, typer.Option(help="The JSON Lines file of pairs to write.")],
    from_file: FromFile = None,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "",
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
) -> None:
    """Helpful and harmless as pairs (Anthropic/hh-rlhf, train)."""
    _public("hh", output, from_file, split, bad_rows, max_bad)


def hub(
    name: Annotated[str, typer.Argument(help="Name of a data set on the hub, or a local folder.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file of rows to write.")],
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    config: Annotated[str | None, typer.Option(help="Configuration of the data set.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Most rows to take; 0 = all.")] = 0,
) -> None:
    """The rows of any data set on the hub, unchanged; continue with `finepref convert` or `validate`."""
    from finepref.formats.jsonl import write_jsonl
    from finepref.synth.data_sources.hub import hub_rows

    check_outputs(output)
    with user_errors(HUB_NEEDS):
        rows = islice(hub_rows(name, split=split, config=config), limit or None)
        try:
            count = write_jsonl(output, (row.value for row in rows if row.value is not None))
        except TypeError as error:
            raise ValueError(f"{name}: {error}") from error
    typer.echo(f"{output}: {count} rows of {name}")
    exit_if_empty(count, output, f"{name} has none")


def _public(name: str, output: Path, from_file: Path | None, split: str, policy: Policy, max_bad: str) -> None:
    """Write the pairs of a public data set.

    Args:
        name: one of `SOURCES`.
        output, from_file, split: see the commands.
        policy, max_bad: --bad-rows and --max-bad, for rows that cannot be read.
    """
    from finepref.synth.data_sources.files import rows_of
    from finepref.synth.data_sources.hub import SOURCES, hub_rows, write_pairs
    from finepref.synth.left_out import PROBLEMS

    source = SOURCES[name]
    left_out = PROBLEMS.path(output)
    check_outputs(output, left_out, rejected_path(output), inputs=[from_file])
    with user_errors(HUB_NEEDS), bad_rows_of(output, policy, max_bad) as bad:
        rows = hub_rows(source.name, split=split or source.split) if from_file is None else rows_of(from_file)
        outcome = write_pairs(rows, output, source, name=str(from_file or source.name), bad_rows=bad)
    typer.echo(f"{output}: {outcome.rows} pairs (left out: {outcome.left_out})")
    if not outcome.rows:
        typer.echo(f"no row became a pair: see {left_out}", err=True)
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    data = typer.Typer(no_args_is_help=True, help="Download or generate data to start from.")
    data.command("gsm")(gsm)
    data.command("gym")(gym)
    data.command("ultrafeedback")(ultrafeedback)
    data.command("hh")(hh)
    data.command("hub")(hub)
    app.add_typer(data, name="data")
