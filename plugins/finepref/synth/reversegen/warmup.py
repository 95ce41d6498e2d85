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
)


def warmup(
    source: Rows,
    output: Path,
    *,
    n: int,
    shots: int,
    seed: int,
    template: str = TEMPLATE,
    group_field: str = "",
    bad_rows: BadRows | None = None,
) -> int:
    """Write n records {id, prompt, response} for the proposer's warm-up: a few-shot prompt and one further seed.

    Args:
        source: seeds {prompt, ...}, or the questions of any layout.
        output: the JSON Lines file to write.
        n: the number of records.
        shots: seeds in each few-shot prompt.
        seed: random seed.
        template: of the few-shot prompts.
        group_field, bad_rows: see `read_seeds`.

    Raises:
        BadData: the seeds have problems.
        ValueError: see `few_shots`.
    """
    check_few_shot_template(template, shots)
    seeds = read_seeds(rows_of(source, SEEDS), group_field=group_field, bad_rows=bad_rows)
    made = few_shots(seeds, n, shots=shots, seed=seed, template=template)
    return write_jsonl(output, map(warmup_row, made))


def warmup_row(few_shot: FewShot) -> dict[str, str]:
    """A record for the proposer's warm-up: the response is a seed that the prompt does not show."""
    return {"id": few_shot.id, "prompt": few_shot.prompt, "response": few_shot.next}
