"""`finepref dedup`: a file without its near-equal rows."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from finepref.commands.errors import user_errors

NEEDS = 'this method needs "finepref[synth]"'

Fields = Annotated[str, typer.Option(help="Fields that form the text of a row, with commas.")]


class Method(StrEnum):
    """How near-equal rows are found."""

    exact = "exact"
    minhash = "minhash"
    semantic = "semantic"


class Keep(StrEnum):
    """Which of several near-equal rows is kept, for semantic."""

    hard = "hard"
    easy = "easy"
    random = "random"


def dedup(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Rows of any format, JSON Lines or an array.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file of kept rows to write.")],
    method: Annotated[Method, typer.Option(help="Equal texts, MinHash of words, or SemDeDup on embeddings.")],
    fields: Fields = "prompt",
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="minhash: least Jaccard similarity.")] = 0.78,
    permutations: Annotated[int, typer.Option(min=2, help="minhash: hash functions.")] = 128,
    ngram: Annotated[int, typer.Option(min=1, help="minhash: words in a shingle.")] = 1,
    embedder: Annotated[str, typer.Option(help="semantic: folder or name for sentence-transformers.")] = "",
    eps: Annotated[float, typer.Option(min=0.0, max=2.0, help="semantic: least cosine distance.")] = 0.04,
    clusters: Annotated[int, typer.Option(min=0, help="semantic: clusters; 0 = square root of the rows.")] = 0,
    keep: Annotated[Keep, typer.Option(help="semantic: keep rows far from the centre, near, or any.")] = Keep.hard,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Leave out near-equal rows. The report beside the output lists every group of them."""
    from finepref.synth import dedup as run

    names = [name.strip() for name in fields.split(",")]
    with user_errors(NEEDS):
        rows, texts = run.read_texts(source, names)
        settings: dict[str, object] = {"method": method.value, "fields": names}
        match method:
            case Method.exact:
                groups = run.exact(texts)
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


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    app.command()(dedup)
