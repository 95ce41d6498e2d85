"""Rows with instructions, and what the steps of ReverseGen do with them: read, ask several times, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from finepref.formats.bad_rows import BadRows
from finepref.formats.choice_text import parse_choice
from finepref.formats.choices import lettered, options_of
from finepref.formats.identified import read_each, read_identified
from finepref.formats.jsonl import write_jsonl
from finepref.formats.records import Message, Prompt, content_id
from finepref.formats.row import RowReader, kind_of
from finepref.formats.row_source import RowSource
from finepref.synth.ask import Job, ask_each
from finepref.synth.data_sources.job_rows import ALL, Wants, ends_in_question, question
from finepref.synth.engines.protocol import Completion, Engine, Sampling, prompt_problems
from finepref.synth.left_out import LEFT_OUT, Ledger, Written, unanswered

Row = Mapping[str, object]


class Instruction(NamedTuple):
    """A row, its prompt and its id (of its content, if the row has none)."""

    id: str
    prompt: Prompt
    row: dict[str, object]


INSTRUCTIONS = Wants("reversegen", "instructions", ends_in_question, None, ALL, question)


def read_instructions(
    source: RowSource | Path, *, bad_rows: BadRows | None = None, engine: Engine | None = None
) -> list[Instruction]:
    """Rows {id?, prompt or messages, ...}.

    Args:
        source: a file, or rows of `INSTRUCTIONS`.
        bad_rows: see `read_each`.
        engine: is going to be asked the prompts; a row with a prompt that its chat template refuses is bad.

    Raises:
        BadData: see `read_identified`.
    """

    def read(reader: RowReader) -> Instruction:
        given, prompt = reader.id(), reader.prompt()
        if not reader.problems:
            reader.problems += prompt_problems(engine, prompt, file=reader.file, line=reader.line)
        return Instruction(given or content_id(prompt), prompt, {**reader.row})

    return read_identified(source, read, empty=True, bad_rows=bad_rows)


def options_in(asked: Instruction) -> dict[str, str] | str:
    """The options of a multiple-choice question, those of its row or else of its text; or why it has none."""
    if (given := options_of(asked.row)) is not None:
        return given
    found = parse_choice(asked.prompt[-1].content)
    return found if isinstance(found, str) else lettered(found.options)


def asked_text(prompt: Prompt, template: str) -> Prompt:
    """The prompt with its last turn put into a template with {prompt}."""
    return (*prompt[:-1], Message(prompt[-1].role, template.format(prompt=prompt[-1].content)))


def ask_times(
    prompts: Mapping[str, Prompt], n: int, *, engine: Engine, sampling: Sampling, job: Job
) -> dict[str, list[Completion]]:
    """n answers to each prompt, by id.

    Args:
        prompts: id -> what is asked.
        n: answers to each; several answers need a temperature above 0.
        engine: the model that answers.
        sampling: temperature, top_p and max_new_tokens; the journal's settings get them too.
        job: see `Job`.

    Raises:
        ValueError, JournalBusy, JournalChanged, JournalDamaged: see `ask_each`.
    """
    own = {
        "n": n,
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    whole = replace(job, settings=own | dict(job.settings))
    found = ask_each(prompts, [str(number) for number in range(n)], engine=engine, sampling=sampling, job=whole)
    return {key: [*by_name.values()] for key, by_name in found.items()}


def engine_failure(answers: Sequence[Completion]) -> str:
    """The reason to leave out a row that the engine failed on; "" if all answers are there."""
    return next((unanswered(each.error) for each in answers if each.error is not None), "")


def write(output: Path, rows: Sequence[Row], left_out: Ledger) -> Written:
    """Write the rows that a step passes on, and the others to `<stem>.left_out.jsonl`."""
    left_out.write(output, LEFT_OUT)
    write_jsonl(output, rows)
    return Written(len(rows), left_out)


def read_dicts(path: Path, *, bad_rows: BadRows | None = None) -> list[dict[str, object]]:
    """The rows of a file that one of our steps wrote.

    Raises:
        BadData: see `read_each`.
    """
    return read_each(path, lambda reader: {**reader.row}, bad_rows=bad_rows)


def read_judged(path: Path, texts: Sequence[str], *, bad_rows: BadRows | None = None) -> list[dict[str, object]]:
    """Rows with a boolean `label`.

    Args:
        path: of the file.
        texts: fields that must be texts, such as id and prompt.
        bad_rows: see `read_each`.

    Raises:
        BadData: see `read_each`.
    """

    def read(reader: RowReader) -> dict[str, object]:
        for name in texts:
            reader.required_text(name)
        if "label" not in reader.row:
            reader.missing("label")
        elif type(reader.row["label"]) is not bool:
            reader.note("label", "FP011", f"expected a boolean, got {kind_of(reader.row['label'])}")
        return {**reader.row}

    return read_each(path, read, bad_rows=bad_rows)
