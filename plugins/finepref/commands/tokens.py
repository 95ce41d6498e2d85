"""`finepref tokens`: the tokens of a record that a stage would train on, with their weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finepref.commands.errors import user_errors
from finepref.commands.input_files import IN_DATASET_INFO, Column, DatasetDir, Format, check_layout, columns_of
from finepref.commands.outputs import check_outputs
from finepref.commands.sequence_options import CutoffLen, TemplateName
from finepref.commands.token_pages import (
    NEEDS,
    Asked,
    First,
    Model,
    Options,
    Seed,
    StageName,
    entries_of,
    first_and_last,
    write_page,
)

if TYPE_CHECKING:
    from rich.text import Text

    from finepref.hosts.token_view import Entry, Response


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    app.command()(tokens)


def tokens(
    source: Annotated[
        str, typer.Argument(metavar="DATASET", help="A name in dataset_info.json, a file or a folder of files.")
    ],
    options: Options = None,
    stage: StageName = "",
    model: Model = "",
    template: TemplateName = "",
    cutoff_len: CutoffLen = 0,
    first: First = 1,
    count: Annotated[int, typer.Option(min=1, help="How many records, from --record on.")] = 1,
    seed: Seed = 42,
    output: Annotated[
        Path | None, typer.Option(help="Write an HTML page, see `finepref view`.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per record.")] = False,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
) -> None:
    """The tokens that a stage would train on, with their weights, by the code that trains. No model is loaded.

    Tokens with a weight are coloured in a terminal, else in brackets; a weight other than 1 stands behind the token.
    Without --model a pair is shown by characters. Exit code 1: bad input, or a record that would not be trained on.
    """
    check_layout(layout)
    if not stage:
        raise typer.BadParameter("give the stage; `finepref view` shows data without one", param_hint="--stage")
    asked = Asked(stage, options or [], model, template, cutoff_len, seed)
    with user_errors(NEEDS):
        from finepref.synth.data_sources.inputs import find_inputs

        view = asked.view()
        inputs = find_inputs(source, layout, dataset_dir, columns_of(column), None)
        if output is not None:
            check_outputs(output, inputs=[path for each in inputs for path in each.paths])
        shown = entries_of(inputs, view, first, count)
        if not shown.entries:
            raise ValueError(f"{source} has no record {first}")
    told = asked.about()
    if count > 1:
        told += first_and_last(first, shown, Path(source).name, "--count")
    if output is not None:
        from finepref.hosts.view_page import page

        write_page(output, page(shown.entries, title=Path(source).name, about=told, colour="weight"))
        typer.echo(f"{output}: {len(shown.entries)} records")
    elif as_json:
        for entry in shown.entries:
            typer.echo(json.dumps(_content(entry), ensure_ascii=False))
    else:
        _print(shown.entries, told)
    raise typer.Exit(1 if any(not _trained(entry) for entry in shown.entries) else 0)


def _trained(entry: Entry) -> bool:
    """Whether the record is trained on: it has weights and no problem."""
    return not entry.problems and any("weight" in response.values for response in entry.responses)


def _content(entry: Entry) -> dict[str, Any]:
    """An entry for JSON; a value that a token does not have is null."""
    return {
        "id": entry.id,
        "place": entry.place,
        "notes": [*entry.notes],
        "problems": [*map(str, entry.problems)],
        "responses": [
            {"name": each.name, "about": each.about, "unit": each.unit, "texts": each.texts}
            | {
                name: [None if math.isnan(value) else value for value in values]
                for name, values in each.values.items()
            }
            for each in entry.responses
        ],
    }


def _print(entries: list[Entry], told: list[str]) -> None:
    """Print entries to the terminal, or as plain text elsewhere."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for line in told:
        console.print(Text(line, "dim"))
    for entry in entries:
        console.print(Text(f"\n{entry.id}  {entry.place}", "bold"))
        for note in entry.notes:
            console.print(Text(note))
        for problem in entry.problems:
            console.print(Text(str(problem), "bold magenta"))
        for role, text in entry.prompt:
            console.print(Text(f"{role}: {text}", "dim"))
        for response in entry.responses:
            console.print(Text(_heading(response), "bold"))
            shades = console.color_system in ("256", "truecolor")
            console.print(_coloured(response, shades) if console.is_terminal else Text(_plain(response)))


def _heading(response: Response) -> str:
    some, count = response.counts
    about = f"; {response.about}" if response.about else ""
    if "weight" not in response.values:
        return f"{response.name}: {count} {response.unit}, without weights{about}"
    share = f" ({some / count:.0%})" if count else ""
    return f"{response.name}: {some} of {count} {response.unit} have a weight{share}{about}"


def _runs(response: Response) -> Iterator[tuple[str, float]]:
    """(text, weight) of the pieces, neighbours of weight 0 joined."""
    weights = response.values.get("weight") or [0.0] * len(response.texts)
    joined = ""
    for text, weight in zip(response.texts, weights, strict=True):
        if weight:
            if joined:
                yield joined, 0.0
            yield text, weight
            joined = ""
        else:
            joined += text
    if joined:
        yield joined, 0.0


def _plain(response: Response) -> str:
    """Each token with a weight in brackets, with its weight if that is not 1."""
    return "".join(
        text if not weight else f"⟦{text}⟧" if weight == 1 else f"⟦{text}⟧{weight:.3g}"
        for text, weight in _runs(response)
    )


_UP = ("#003b5c", "#005a8c", "#0072b2")
_DOWN = ("#5c2a00", "#8c4000", "#b25200")


def _coloured(response: Response, shades: bool) -> Text:
    """Tokens on blue (positive weight) or on orange and underlined twice (negative), darker if it is small.

    Without `shades`, on terminals of few colours, orange is yellow and both have one shade.
    """
    from rich.text import Text

    found = [*_runs(response)]
    most = max((abs(weight) for _, weight in found), default=1.0) or 1.0
    made = Text()
    for text, weight in found:
        if not weight:
            made.append(text)
            continue
        shade = min(2, int(3 * abs(weight) / most))
        up, down = (_UP[shade], _DOWN[shade]) if shades else ("blue", "yellow")
        made.append(text, f"bright_white on {up}" if weight > 0 else f"bright_white underline2 on {down}")
        if weight != 1 and abs(weight) != most:
            made.append(f"{weight:.2g}", "dim")
    return made
