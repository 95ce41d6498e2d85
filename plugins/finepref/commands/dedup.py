"""`finepref dedup`: a file without its near-equal rows."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

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

NEEDS = 'this method needs "finepref[synth]"'

Fields = Annotated[str, typer.Option(help="Fields that form the text of a row, with commas.")]


class Method(StrEnum):
    """How near-equal rows are found."""

    exact = "exact"
    normalized = "normalized"
    minhash = "minhash"
    semantic = "semantic"


class Keep(StrEnum):
    """Which of several near-equal rows is kept, for semantic."""

    hard = "hard"
    easy = "easy"
    random = "random"


def dedup(
    source: Annotated[str, typer.Argument(metavar="INPUT", help=f"Rows of any layout: {WHAT}.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file of kept rows to write.")],
    method: Annotated[
        Method, typer.Option(help="Equal texts (normalized: but for case and space), MinHash, SemDeDup.")
    ],
    fields: Fields = "prompt",
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="minhash: least Jaccard similarity.")] = 0.78,
    permutations: Annotated[int, typer.Option(min=2, help="minhash: hash functions.")] = 128,
    ngram: Annotated[int, typer.Option(min=1, help="minhash: words in a shingle.")] = 1,
    embedder: Annotated[str, typer.Option(help="semantic: folder or name for sentence-transformers.")] = "",
    eps: Annotated[float, typer.Option(min=0.0, max=2.0, help="semantic: least cosine distance.")] = 0.04,
    clusters: Annotated[int, typer.Option(min=0, help="semantic: clusters; 0 = square root of the rows.")] = 0,
    keep: Annotated[Keep, typer.Option(help="semantic: keep rows far from the centre, near, or any.")] = Keep.hard,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
    allow_empty: AllowEmpty = False,
) -> None:
    """Leave out near-equal rows. The report beside the output lists every group of them."""
    from finepref.synth import dedup as run

    names = [name.strip() for name in fields.split(",")]
    beside = (output.with_suffix(".report.json"), rejected_path(output))
    given = input_of(source, layout, dataset_dir, column, output, *beside)
    with user_errors(NEEDS), bad_rows_of(output, bad_rows, max_bad) as bad:
        joint = "\0" if method is Method.exact else "\n"
        rows, texts = run.read_texts(given, names, joint=joint, bad_rows=bad)
        settings: dict[str, object] = {"method": method.value, "fields": names}
        match method:
            case Method.exact:
                groups = run.exact(texts)
            case Method.normalized:
                groups = run.normalized(texts)
            case Method.minhash:
                own = {"threshold": threshold, "permutations": permutations, "ngram": ngram, "seed": seed + 1}
                groups = run.minhash(texts, threshold=threshold, permutations=permutations, ngram=ngram, seed=seed + 1)
                settings |= own
            case Method.semantic:
                if not embedder:
                    raise ValueError(
                        "--method semantic needs --embedder, such as sentence-transformers/all-MiniLM-L6-v2"
                    )
                vectors = run.embeddings(texts, embedder=embedder)
                groups = run.semantic(vectors, eps=eps, clusters=clusters, keep=keep.value, seed=seed)
                settings |= {"embedder": embedder, "eps": eps, "clusters": clusters, "keep": keep.value, "seed": seed}
        outcome = run.dedup(source, output, groups, rows, settings)
    typer.echo(f"{output}: {outcome.kept} of {outcome.rows} rows kept; the largest group has {outcome.largest}")
    exit_if_empty(outcome.kept, output, f"{source} has no good row", allowed=allow_empty)


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    app.command()(dedup)
