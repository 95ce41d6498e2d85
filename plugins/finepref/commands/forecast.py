"""What a run would do with data: the forecast behind `finepref filter` and `finepref validate --stage`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from finepref.commands.sequence_options import template_of
from finepref.formats.bad_rows import BadRows
from finepref.formats.check import rejected_row
from finepref.formats.jsonl import RawRow
from finepref.formats.problems import BadData, Problem
from finepref.formats.records import FORMATS, Feedback, Prompt
from finepref.synth.data_sources.inputs import Input, file_check, read_file

if TYPE_CHECKING:
    from finepref.hosts.forecast import Forecast, Tokeniser, Verdict
    from finepref.hosts.reading import Sourced
    from finepref.methods.options import Options
    from finepref.methods.stage import Stage

SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="An option of the stage as in the YAML of the run, repeatable."),
]
SHOWN = 3
"""Examples of each reason."""


class Judged(NamedTuple):
    """A record with the rows (file, row) that it was made from, and what a run would do with it."""

    source: Sourced
    rows: list[tuple[str, RawRow]]
    verdict: Verdict


def stage_and_options(
    name: str, given: Iterable[str], overlong: str | None, *, flag: str = "--set "
) -> tuple[Stage, Options]:
    """A stage and its options as a run on LLaMA-Factory would have them.

    Args:
        name: of the stage.
        given: KEY=VALUE, values in YAML.
        overlong: the value of finepref_overlong; None = the stage's default.
        flag: what stands before KEY=VALUE on the command line, for messages.

    Raises:
        ValueError: finepref has no such stage, or it has no such option or value.
    """
    import yaml

    from finepref import stages
    from finepref.methods.options import in_yaml

    stage = stages.find(name)
    if stage is None:
        raise ValueError(f"finepref has no stage {name}; it has {', '.join(sorted(stages.all_stages()))}")
    values: dict[str, Any] = {} if overlong is None else {"finepref_overlong": overlong}
    known = stage.options.described("llamafactory")
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or key not in known:
            raise ValueError(f"{flag}{pair}: stage {name} has the options {', '.join(sorted(known))}")
        values[key] = yaml.safe_load(value)
    return stage, stage.options.read("llamafactory", values, in_yaml)


def tokeniser_of(model: str, template: str, cutoff_len: int) -> Tokeniser:
    """What makes the tokens of a run with a model.

    Args:
        model: folder or hub name; only its tokenizer is loaded.
        template: LLaMA-Factory's template; "" = the tokenizer's chat template.
        cutoff_len: most tokens of a sequence.
    """
    from finepref.hosts.forecast import Tokeniser
    from finepref.methods import host_rules
    from finepref.methods.pair_rows import CHAT_TEMPLATE
    from finepref.synth.engines.checkpoint import load_tokenizer

    made = template_of(template)
    tokenizer = load_tokenizer(model, chat_template=made.name == CHAT_TEMPLATE)
    encode = made.encoder(tokenizer)
    return Tokeniser(tokenizer, made.name, encode, cutoff_len, "--cutoff-len", host_rules.llamafactory)


def judged(
    inputs: Sequence[Input], stage: Stage, options: Options, tokeniser: Tokeniser, bad_rows: BadRows
) -> tuple[Forecast, list[Judged]]:
    """Read files and decide about each record. Rows with a problem of their own go to `bad_rows`.

    Raises:
        BadData: FP201, a file is of a format that the stage does not train on.
    """
    from finepref.hosts.forecast import forecast
    from finepref.hosts.reading import join_feedback

    singles = stage.shape == "unpaired"
    found = list(_read(inputs, stage, bad_rows))
    groups: dict[Prompt, list[tuple[Sourced, RawRow]]] = {}
    for source, raw in found:
        if isinstance(source.record, Feedback):
            groups.setdefault(source.record.prompt, []).append((source, raw))
    joined = join_feedback((source for group in groups.values() for source, _ in group), singles=singles)
    whole, bad = joined.records, joined.wrong
    for prompt, problems in bad.items():
        refuse(bad_rows, [(source.file, raw) for source, raw in groups[prompt]], problems)
    made: dict[Prompt, list[Sourced]] = {}
    for source in whole:
        made.setdefault(source.record.prompt, []).append(source)
    pieces: list[tuple[Sourced, list[tuple[str, RawRow]]]] = []
    for source, raw in found:
        if not isinstance(source.record, Feedback):
            pieces.append((source, [(source.file, raw)]))
            continue
        group = groups[source.record.prompt]
        rows = [(each.file, part) for each, part in group]
        for number, each in enumerate(made.pop(source.record.prompt, [])):
            pieces.append((each, [rows[number]] if isinstance(each.record, Feedback) else rows))
    told = forecast((source for source, _ in pieces), stage, options, tokeniser)
    told.rows.read = bad_rows.read
    told.rows.rejected.update(bad_rows.codes)
    return told, [Judged(*piece, verdict) for piece, verdict in zip(pieces, told.verdicts, strict=True)]


def refuse(bad_rows: BadRows, rows: Sequence[tuple[str, RawRow]], problems: Sequence[Problem]) -> None:
    """Collect the rows (file, row) of one record as bad; its problems are told once."""
    for number, (file, raw) in enumerate(rows):
        told = list(problems)
        if number == 0:
            bad_rows.refuse(file, raw, told)
        else:
            bad_rows.add(rejected_row(file, raw._replace(problems=told)), told)


def _read(inputs: Sequence[Input], stage: Stage, bad_rows: BadRows) -> Iterator[tuple[Sourced, RawRow]]:
    from finepref.hosts.reading import Sourced, of_whole_file

    for file in inputs:
        name, check = str(file.path), file_check(file, repeats=True)
        for row in bad_rows.good(name, check.walk(read_file(file))):
            for number, record in enumerate(row.records):
                formatting = next(each for each, kind in FORMATS.items() if type(record) is kind)
                if formatting not in stage.formats:
                    text = f"stage {stage.name} trains on {' or '.join(stage.formats)}, this file is {formatting}"
                    raise BadData([Problem(name, 0, "formatting", "FP201", text)])
                yield Sourced(name, row.raw.line, record, int(number == 0)), row.raw
        bad_rows.problems += [each for each in of_whole_file(check.of_file) if each not in bad_rows.problems]


def report(found: Sequence[Judged], told: Forecast, cutoff_len: int, problems: Sequence[Problem] = ()) -> list[str]:
    """Lines about a forecast: how many rows are trained on, cut, skipped and refused, with examples of each reason.

    Args:
        found: the records.
        told: the forecast about them.
        cutoff_len: of the run.
        problems: of rows that are no records.
    """
    rows = told.rows
    skipped, refused = rows.skipped.total(), rows.rejected.total()
    lines = [f"{rows.read} rows: {rows.training} trained on, {skipped} skipped, {refused} refused"]
    kept = [each.source.record for each in found if each.verdict.trained]
    labels = Counter(record.label for record in kept if isinstance(record, Feedback))
    if labels:
        lines.append(f"single rows, by their own label: {labels[True]} desirable, {labels[False]} undesirable")
    if len(labels) == 1 and labels.total() == len(kept):
        lines.append("warning: all have the same label (FP061); KTO is meant for both kinds")
    for part, count in sorted(rows.cut.items()):
        names = [each.source for each in found if each.verdict.trained and part in each.verdict.cut.split(",")]
        lines.append(f"cut: {count} rows, the {part}, to fit cutoff_len {cutoff_len}{_examples(names)}")
    for reason, count in sorted(rows.skipped.items()):
        names = [each.source for each in found if each.verdict.skipped == reason and not each.verdict.problems]
        lines.append(f"skipped: {count} rows, {reason}{_examples(names)}")
    dropped = Counter(chain.from_iterable(each.verdict.dropped.values() for each in found if each.verdict.trained))
    for reason, count in sorted(dropped.items()):
        names = [each.source for each in found if reason in each.verdict.dropped.values()]
        lines.append(f"skipped: {count} responses of records that are trained on, {reason}{_examples(names)}")
    named = [*problems, *(each.verdict.problems[0] for each in found if each.verdict.problems)]
    for code, count in sorted(rows.rejected.items()):
        shown = [each for each in named if each.code == code][:SHOWN]
        lines += [f"refused: {count} rows, {code}", *(f"  {each}" for each in shown)]
    return [*lines, *(f"refused: the data as a whole: {problem}" for problem in told.problems)]


def _examples(sources: Sequence[Sourced]) -> str:
    shown = ", ".join(f"{source.record.id} ({source.place})" for source in sources[:SHOWN])
    return f", such as {shown}" if shown else ""


class RunOptions(NamedTuple):
    """What a forecast is asked for: the stage, its options (KEY=VALUE), the model, its template and cutoff_len."""

    stage: str
    set_options: Sequence[str]
    model: str
    template: str
    cutoff_len: int

    def check(self) -> None:
        """Refuse half of the options.

        Raises:
            ValueError: one line.
        """
        if not (self.stage and self.model and self.cutoff_len):
            raise ValueError("a forecast needs --stage, --model and --cutoff-len together")


class Told(NamedTuple):
    """A forecast: lines for the terminal, its JSON form, and whether a run would refuse nothing."""

    lines: list[str]
    content: Mapping[str, object]
    passed: bool


def told_of(inputs: Sequence[Input], asked: RunOptions) -> Told:
    """The forecast for files, with all problems and nothing written.

    Raises:
        ValueError: see `stage_and_options`; or BadData, FP201.
    """
    asked.check()
    stage, options = stage_and_options(asked.stage, asked.set_options, None)
    tokeniser = tokeniser_of(asked.model, asked.template, asked.cutoff_len)
    bad_rows = BadRows(skip=True, max_bad=1.0)
    told, found = judged(inputs, stage, options, tokeniser, bad_rows)
    own = f"stage {stage.name}, {asked.model}, {tokeniser.template}, cutoff_len {asked.cutoff_len}"
    lines = [f"forecast for {own}", *report(found, told, asked.cutoff_len, bad_rows.problems)]
    refused = [
        {"id": each.source.record.id, "place": each.source.place, "problems": [*map(str, each.verdict.problems)]}
        for each in found
        if each.verdict.problems
    ]
    content = {
        **told.rows.content(),
        "skipped_records": told.rows.named,
        "rejected_records": refused,
        "problems": [*map(str, told.problems)],
    }
    return Told(lines, content, not (told.rows.rejected or told.problems))
