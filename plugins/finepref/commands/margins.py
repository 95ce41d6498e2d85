"""`finepref margins`: how much more probable better responses are to models, side by side."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from finepref.commands.engine_options import MergeSystem, check_models
from finepref.commands.errors import user_errors
from finepref.commands.input_files import IN_DATASET_INFO, WHAT, Column, DatasetDir, Format, input_of
from finepref.commands.row_options import BadRowsPolicy, MaxBad, Policy, bad_rows_of
from finepref.commands.sepo import Dtype
from finepref.commands.sequence_options import OWN, TEMPLATE_NEEDS, TemplateName, template_of
from finepref.formats.bad_rows import MAX_BAD, rejected_path

NEEDS = f'a model needs "finepref[model]"; an adapter needs peft; {TEMPLATE_NEEDS}'


class Measure(StrEnum):
    """What the table shows; the JSON file has all."""

    mean = "mean"
    sum = "sum"
    span_mean = "span_mean"
    span_sum = "span_sum"


def margins(
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help=f"Pairs, negatives or feedback, not used in training: {WHAT}.")
    ],
    model: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]PATH", help="A model, or an adapter that names its base. Repeat to compare with the first."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The JSON file to write.")],
    reference: Annotated[
        str, typer.Option(metavar="PATH", help="A model or adapter whose margins are taken off, as in DPO's reward.")
    ] = "",
    measure: Annotated[
        Measure, typer.Option(help="What the table shows: log-probability per token, its sum, or over spans.")
    ] = Measure.mean,
    template: TemplateName = "",
    merge_system: MergeSystem = False,
    dtype: Annotated[Dtype, typer.Option(help="Number format of the models; auto: each checkpoint's.")] = Dtype.auto,
    batch_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens in a batch; default: 16384 on a GPU, else 2048.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the bootstrap.")] = 0,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    error_type: Annotated[str, typer.Option(help="Error type of undesirable feedback rows without one.")] = "",
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
    work_dir: Annotated[Path | None, typer.Option(help="Folder of the journals; default: beside the output.")] = None,
) -> None:
    """Margins of better over worse responses, by error type, of several models with paired bootstrap intervals.

    A margin is the log-probability of the chosen response minus that of the other. Only one model is in memory at a
    time. An interrupted run resumes, and a further model reads only what is new.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    receipt = output.with_suffix(".receipt.json")
    outputs = (output, receipt, rejected_path(output))
    given = input_of(source, layout, dataset_dir, column, *outputs, error_type=error_type)
    with user_errors(NEEDS), bad_rows_of(output, bad_rows, max_bad) as bad:
        from finepref.formats.files import write_json
        from finepref.synth.ask import work_folder
        from finepref.synth.margins import MEANING, compared, model_at
        from finepref.synth.margins import measure as run

        models = [model_at(each) for each in model]
        before = model_at(f"reference={reference}") if reference else None
        every = [*models, *([before] if before else [])]
        check_models(*(path for each in every for path in (each.path, each.adapter)))
        started = _now()
        values = run(
            given,
            every,
            template=None if template in ("", OWN) else template_of(template),
            merge_system=merge_system,
            dtype=dtype.value,
            batch_tokens=batch_tokens,
            bad_rows=bad,
            work_dir=work_folder(output, work_dir),
        )
        found = compared(models, values, reference=before.name if before else "", seed=seed)
        named = {each.name: {"path": each.path, "adapter": each.adapter} for each in every}
        write_json(
            output,
            {"job": "margins", "data": given.name, "measure": MEANING, "models": named}
            | {"reference": before.name if before else None, "seed": seed, **found},
        )
        write_json(receipt, _receipt(started, given.paths, every, values, template=template or OWN))
    _print(found, measure.value, over=reference)
    typer.echo(f"{output}: {len(next(iter(values.values())))} records")


def _now() -> str:
    from finepref.hosts.receipt import now

    return now()


def _receipt(
    started: str, data: Sequence[Path], models: Sequence[Any], values: Mapping[str, Any], *, template: str
) -> dict[str, Any]:
    """What was measured, with what: command line, versions, digests of data and models."""
    from finepref.formats.check import digest
    from finepref.hosts.model_identity import identity
    from finepref.hosts.receipt import now, versions

    return {
        "job": "margins",
        "command": shlex.join(["finepref", *sys.argv[1:]]),
        "started": started,
        "finished": now(),
        "versions": versions(),
        "template": template,
        "data": {str(path): digest(path) for path in data},
        "models": {
            each.name: identity(each.path) | ({"adapter": identity(each.adapter)} if each.adapter else {})
            for each in models
        },
        "records": {name: len(found) for name, found in values.items()},
    }


def _print(found: Mapping[str, Any], measure: str, *, over: str) -> None:
    """A table of models and error types, and a line for each comparison of the models."""
    from rich.console import Console
    from rich.table import Table

    rows = {name: table.get(measure) for name, table in found["summary"].items()}
    if not any(rows.values()):
        typer.echo(f"no record has the measure {measure}: it needs spans", err=True)
        raise typer.Exit(1)
    kinds = list(dict.fromkeys(kind for table in rows.values() for kind in table or {}))
    if len(kinds) == 2:  # one error type and "overall" are the same
        kinds = kinds[1:]
    what = f"Margins ({measure}, in nats{f', over {over}' if over else ''}), 95 % intervals, share above 0"
    table = Table("model", *kinds, title=what, title_justify="left")
    for name, own in rows.items():
        table.add_row(name, *(_cell((own or {}).get(kind)) for kind in kinds))
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(120, 30 * (len(kinds) + 1)))
    console.print(table)
    for each in found["differences"]:
        if each["measure"] == measure and each["type"] == "overall":
            typer.echo(_told(each))


def _cell(own: Mapping[str, Any] | None) -> str:
    if own is None:
        return "-"
    interval = "(one record)" if own["interval"] is None else "({:+.3f} to {:+.3f})".format(*own["interval"])
    return f"{own['mean']:+.4f} {interval}\n{own['share_above_zero']:.0%} of {own['n']}"


def _told(each: Mapping[str, Any]) -> str:
    words = {
        "higher": "the margin is higher",
        "lower": "the margin is lower",
        "not shown": "a difference of the margins is not shown",
    }
    interval = "one record" if each["interval"] is None else "{:+.4f} to {:+.4f}".format(*each["interval"])
    return (
        f"{each['model']} against {each['against']}: {words[each['verdict']]}: "
        f"{each['difference']:+.4f} ({interval}, {each['n']} pairs)"
    )


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    app.command("margins")(margins)
