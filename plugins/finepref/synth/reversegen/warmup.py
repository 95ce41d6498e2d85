"""`finepref reversegen warmup`: records for the proposer's warm-up."""

from __future__ import annotations

from pathlib import Path

from finepref.formats.bad_rows import BadRows
from finepref.formats.jsonl import write_jsonl
from finepref.synth.data_sources.job_rows import Rows, rows_of
from finepref.synth.reversegen.few_shots import (
    SEEDS,
    TEMPLATE,
    FewShot,
    check_few_shot_template,
    few_shots,
    read_seeds,
    read_warmup,
)


def warmup(
    source: Rows,
    output: Path,
    *,
    n: int = 0,
    shots: int,
    seed: int,
    template: str = TEMPLATE,
    group_field: str = "",
    ready: bool = False,
    bad_rows: BadRows | None = None,
) -> int:
    """Write n records {id, prompt, response} for the proposer's warm-up: a few-shot prompt and one further seed.

    Args:
        source: seeds {prompt, ...}, or the questions of any layout; with `ready`, warm-up rows, see `read_warmup`.
        output: the JSON Lines file to write.
        n: the number of records; with `ready`, 0 takes all of the file.
        shots: seeds in each few-shot prompt.
        seed: random seed.
        template: of the few-shot prompts.
        group_field: see `read_seeds`.
        ready: take the rows of the file as they are; shots, template and seed are not used.
        bad_rows: see `read_seeds`.

    Raises:
        BadData: the rows have problems.
        ValueError: `n` is 0 and not `ready`; see `few_shots`.
    """
    if ready:
        return write_jsonl(output, map(warmup_row, read_warmup(rows_of(source, SEEDS), limit=n, bad_rows=bad_rows)))
    if not n:
        raise ValueError("the number of records is missing: --n")
    check_few_shot_template(template, shots)
    seeds = read_seeds(rows_of(source, SEEDS), group_field=group_field, bad_rows=bad_rows)
    made = few_shots(seeds, n, shots=shots, seed=seed, template=template)
    return write_jsonl(output, map(warmup_row, made))


def warmup_row(few_shot: FewShot) -> dict[str, str]:
    """A record for the proposer's warm-up: the response is a seed that the prompt does not show."""
    return {"id": few_shot.id, "prompt": few_shot.prompt, "response": few_shot.next}
