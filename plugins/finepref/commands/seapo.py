"""`finepref seapo`: negatives with one known error, and margins over them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finepref.commands.engine_options import (
    EngineName,
    EngineOptions,
    MergeSystem,
    check_models,
    engine_of,
    exit_if_unanswered,
    with_engine_options,
)
from finepref.commands.errors import user_errors
from finepref.commands.input_files import IN_DATASET_INFO, WHAT, Column, DatasetDir, Format, input_of
from finepref.commands.row_options import (
    AllowEmpty,
    BadRowsPolicy,
    MaxBad,
    Policy,
    bad_rows_of,
    exit_if_empty,
)
from finepref.formats.bad_rows import MAX_BAD, rejected_path

if TYPE_CHECKING:
    from finepref.synth.seapo.inject import Injected


class Unit(StrEnum):
    """What a model rewrites."""

    answer = "answer"
    sentence = "sentence"


class Changed(StrEnum):
    """What a rewriting must change."""

    any = "any"
    words = "words"
    facts = "facts"


GATES = "Gates (cost no request)"
NEEDS = 'a local model needs "finepref[model]"; vllm and ray are extras of their own; an adapter needs peft'


@with_engine_options
def inject(
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help=f"Questions with good answers, of any layout: {WHAT}.")
    ],
    output: Annotated[Path, typer.Option(help="The JSON Lines file of negatives to write.")],
    engine: Annotated[EngineName, typer.Option(help="A local model, an endpoint, or rules for worked arithmetic.")] = (
        EngineName.hf
    ),
    model: Annotated[
        str, typer.Option(help="Model folder or name, or the folder of a LoRA adapter.")
    ] = "Qwen/Qwen2.5-7B-Instruct",
    *,
    engine_options: EngineOptions,
    types: Annotated[str, typer.Option(help="Error types, with commas.")] = "correctness,logic,hallucination",
    by: Annotated[
        Unit,
        typer.Option(help="What the model rewrites: the whole answer, or one sentence, which small models manage."),
    ] = Unit.answer,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Random seed of sampling and of the rules.")] = 0,
    variants: Annotated[
        int, typer.Option(min=1, help="Negatives of each type; above 1 whole answers need a temperature.")
    ] = 1,
    retries: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Ask again so often for what a gate rejects (by sentence: the next one); default 0, by sentence 3.",
            show_default=False,
        ),
    ] = None,
    retry_temperature: Annotated[float, typer.Option(min=0.0, help="Temperature of these requests.")] = 0.7,
    check: Annotated[bool, typer.Option("--check", help="Keep only errors that the model confirms.")] = False,
    also: Annotated[str, typer.Option(help="Further formats to write: feedback, pair, span_pair.")] = "",
    work_dir: Annotated[Path | None, typer.Option(help="Folder of the journal; default: beside the output.")] = None,
    min_edit: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Least share of changed words.", rich_help_panel=GATES)
    ] = 0.001,
    max_edit: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Greatest share of changed words.", rich_help_panel=GATES)
    ] = 0.7,
    min_length_ratio: Annotated[
        float, typer.Option(min=0.0, help="Least length / length of the original.", rich_help_panel=GATES)
    ] = 0.5,
    max_length_ratio: Annotated[
        float, typer.Option(min=0.0, help="Greatest length / length of the original.", rich_help_panel=GATES)
    ] = 2.0,
    change: Annotated[
        Changed,
        typer.Option(
            help="What must be changed: any character, a content word, or a number, name or negation.",
            rich_help_panel=GATES,
        ),
    ] = Changed.words,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
    allow_empty: AllowEmpty = False,
) -> None:
    """Rewrite good answers with one error of each type (SeaPO). An interrupted run resumes.

    The API key of an endpoint is read from OPENAI_API_KEY. With other gates (--min-edit to --change) the same command
    judges the answers in the journal again, at no cost; only what it then rejects, and has tries left, is asked for.
    Exit code 1: bad input, no usable negative, or requests that the engine failed on; the same command repeats those.
    """
    from finepref.synth.seapo.inject import inject as run
    from finepref.synth.seapo.inject import outputs

    further = [name.strip() for name in also.split(",") if name.strip()]
    given = input_of(source, layout, dataset_dir, column, *outputs(output, further), rejected_path(output))
    with user_errors(NEEDS), bad_rows_of(output, bad_rows, max_bad) as bad:
        outcome = run(
            given,
            output,
            engine=engine_of(engine, model, engine_options),
            types=[name.strip() for name in types.split(",")],
            work_dir=work_dir,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            count=variants,
            by=by.value,
            retries=retries,
            retry_temperature=retry_temperature,
            check=check,
            also=further,
            bad_rows=bad,
            min_edit=min_edit,
            max_edit=max_edit,
            min_length_ratio=min_length_ratio,
            max_length_ratio=max_length_ratio,
            change=change.value,
        )
    usable = ", ".join(f"{name} {count}" for name, count in outcome.negatives.items())
    typer.echo(f"{output}: {outcome.written} records with {outcome.negatives.total()} negatives ({usable})")
    if outcome.taken_off:
        told = ", ".join(f"{count} with a {what}" for what, count in sorted(outcome.taken_off.items()))
        typer.echo(f"taken off the answers: {told}")
    if len(outcome.tries) > 1:
        told = ", ".join(f"{each['usable']} of {each['asked']}" for each in outcome.tries)
        typer.echo(f"usable by try: {told}")
    if len(outcome.rejected):
        report = output.with_suffix(".report.md")
        typer.echo(f"{report}: {len(outcome.rejected)} rejected, {outcome.failed} records without a negative")
        _print_yield(outcome)
    exit_if_unanswered(outcome.rejected.unanswered)
    exit_if_empty(outcome.written, output, "see the reasons above", allowed=allow_empty)


def _print_yield(outcome: Injected) -> None:
    """Print the table of usable and rejected texts by type and reason, with an example of what a gate measured."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from finepref.synth.left_out import ENGINE

    table = Table("", *outcome.names, "for example", title="Usable negatives, rejected texts", title_justify="left")
    for reason, *counts in outcome.yields():
        table.add_row(reason, *counts, Text(outcome.examples.get(reason, "")[:120]))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
    if outcome.examples.keys() - {ENGINE}:
        console.print("Other gates cost no request: change the option and run the command again.")


def margins(
    model: Annotated[str, typer.Option(help="Model folder or name.")],
    data: Annotated[
        str, typer.Option(help=f"Records with negatives, or feedback, that were not used for training: {WHAT}.")
    ],
    output: Annotated[Path, typer.Option(help="The JSON file to write.")],
    adapter: Annotated[str | None, typer.Option(help="A LoRA adapter to put on the model.")] = None,
    merge_system: MergeSystem = False,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    error_type: Annotated[str, typer.Option(help="Error type of undesirable feedback rows without one.")] = "",
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
) -> None:
    """How much more probable good answers are than answers with an error: mean log-probability per token, by type."""
    from finepref.synth.seapo.margins import margins as run

    given = input_of(data, layout, dataset_dir, column, output, rejected_path(output), error_type=error_type)
    with user_errors(NEEDS), bad_rows_of(output, bad_rows, max_bad) as bad:
        check_models(model, adapter)
        result = run(given, output, model=model, adapter=adapter, merge_system=merge_system, bad_rows=bad)
    for name, summary in {**result["types"], "overall": result["overall"]}.items():
        figures = f"margin {summary['mean']:+.4f}, above 0 in {summary['share_above_zero']:.0%} of {summary['n']}"
        typer.echo(f"{name:14} {figures}")


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    group = typer.Typer(no_args_is_help=True, help="SeaPO: negatives with one known error.")
    group.command("inject")(inject)
    group.command("margins")(margins)
    app.add_typer(group, name="seapo")
