"""`finepref filter`: the records that a run would train on, before anything is paid for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finepref.commands.errors import user_errors
from finepref.commands.forecast import Judged, SetOption, judged, refuse, report, stage_and_options, tokeniser_of
from finepref.commands.input_files import (
    IN_DATASET_INFO,
    Column,
    DatasetDir,
    Format,
    check_layout,
    columns_of,
    folders_of,
)
from finepref.commands.outputs import check_outputs
from finepref.commands.row_options import (
    MAX_BAD,
    AllowEmpty,
    BadRowsPolicy,
    MaxBad,
    Policy,
    bad_rows_of,
    exit_if_empty,
    rejected_path,
)
from finepref.commands.sequence_options import TEMPLATE_NEEDS, OverlongPolicy, TemplateName
from finepref.synth.data_sources.inputs import find_inputs

if TYPE_CHECKING:
    from finepref.synth.left_out import Ledger


def filter_rows(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A file, a folder, or a name in dataset_info.json.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file to write: the rows as they are, not cut.")],
    stage: Annotated[str, typer.Option(help="The stage of the run.")],
    model: Annotated[str, typer.Option(help="Folder or name of the model; only its tokenizer is read.")],
    cutoff_len: Annotated[int, typer.Option(min=2, help="cutoff_len of the run.")],
    template: TemplateName = "",
    overlong: Annotated[
        OverlongPolicy, typer.Option(help="finepref_overlong: skip keeps only what fits; others also what they cut.")
    ] = OverlongPolicy.skip,
    set_option: SetOption = [],  # noqa: B006 (typer copies defaults)
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    error_type: Annotated[str, typer.Option(help="Error type of undesirable feedback rows without one.")] = "",
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
    allow_empty: AllowEmpty = False,
) -> None:
    """Keep the rows that a run would train on; the others go to <stem>.left_out.jsonl, with reasons.

    The policy is that of a run: the same tokens, cuts and selections, by LLaMA-Factory's rule for host. Without
    --template the tokens are those of the tokenizer's chat template.
    """
    from finepref.formats.jsonl import write_jsonl
    from finepref.synth.left_out import LEFT_OUT

    check_layout(layout)
    with user_errors(f'a tokenizer needs "finepref[model]"; {TEMPLATE_NEEDS}'):
        inputs = find_inputs(source, layout, dataset_dir, columns_of(column), error_type or None)
        files = [file.path for file in inputs]
        outputs = (output, LEFT_OUT.path(output), rejected_path(output))
        check_outputs(*outputs, inputs=files, folders=folders_of(source))
        row, options = stage_and_options(stage, set_option, overlong.value)
        tokeniser = tokeniser_of(model, template, cutoff_len)
        with bad_rows_of(output, bad_rows, max_bad) as collected:
            told, found = judged(inputs, row, options, tokeniser, collected)
            own = [*collected.problems]
            for each in found:
                if each.verdict.problems:
                    refuse(collected, each.rows, each.verdict.problems)
            collected.settle()
        written = write_jsonl(output, _kept(found))
        left_out = _left_out(found)
        left_out.write(output, LEFT_OUT)
    for line in report(found, told, cutoff_len, own):
        typer.echo(line)
    typer.echo(f"{output}: {written} rows (left out: {left_out})")
    exit_if_empty(written, output, f"left out: {left_out}", allowed=allow_empty)


def _kept(found: list[Judged]) -> Iterator[dict[str, object]]:
    """The rows of the records that are trained on; a row that gives several records needs all of them."""
    done = {id(raw) for each in found if not each.verdict.trained for _, raw in each.rows}
    for each in found:
        for _, raw in each.rows:
            if id(raw) not in done:
                done.add(id(raw))
                yield json.loads(raw.raw)


def _left_out(found: list[Judged]) -> Ledger:
    from finepref.synth.left_out import Ledger

    ledger = Ledger()
    for each in found:
        if each.verdict.skipped and not each.verdict.problems:
            for _, raw in each.rows:
                ledger.add(json.loads(raw.raw), each.verdict.skipped, kind="skipped")
    return ledger


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    app.command("filter")(filter_rows)
