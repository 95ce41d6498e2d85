"""`finepref diversity`: how much the texts of a file repeat each other."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from finepref.commands.dedup import NEEDS, Fields
from finepref.commands.errors import user_errors
from finepref.commands.input_files import IN_DATASET_INFO, WHAT, Column, DatasetDir, Format, input_of
from finepref.commands.row_options import BadRowsPolicy, MaxBad, Policy, bad_rows_of
from finepref.formats.bad_rows import MAX_BAD


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    app.command()(diversity)


def diversity(
    source: Annotated[str, typer.Argument(metavar="INPUT", help=f"Rows of any layout: {WHAT}.")],
    fields: Fields = "prompt",
    sample: Annotated[int, typer.Option(min=0, help="Size of a random sample; 0 = all texts.")] = 0,
    seed: Annotated[int, typer.Option(help="Random seed of the sample.")] = 0,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
) -> None:
    """Self-BLEU of the texts (mean of BLEU-2 to 5 against all others) as one line of JSON. Lower = more diverse."""
    from finepref.synth.dedup import read_texts
    from finepref.synth.diversity import self_bleu

    with user_errors(NEEDS), bad_rows_of(None, bad_rows, max_bad) as bad:
        given = input_of(source, layout, dataset_dir, column)
        _, texts = read_texts(given, [name.strip() for name in fields.split(",")], bad_rows=bad)
        typer.echo(json.dumps({"texts": len(texts), "sample": sample, **self_bleu(texts, sample=sample, seed=seed)}))
