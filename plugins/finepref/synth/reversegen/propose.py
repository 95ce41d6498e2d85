"""The jobs of ReverseGen that read seeds: warm-up records, and proposals by an engine."""

from __future__ import annotations

from pathlib import Path

from finepref.formats.jsonl import read_rows, write_jsonl
from finepref.formats.problems import BadData, Problem
from finepref.formats.records import Message
from finepref.formats.row import RowReader
from finepref.synth.ask import Left, Outcome, sample, write
from finepref.synth.engines.protocol import Engine
from finepref.synth.reversegen.few_shots import (
    TEMPLATE,
    Seed,
    check_template,
    few_shots,
    proposal,
    version,
    warmup_row,
)

FIELDS = ("examples",), ("count", "group")


def read_seeds(path: Path, *, group_field: str = "") -> list[Seed]:
    """The instructions of a file {prompt, ...}.

    Args:
        path: of the file.
        group_field: the field that tells a seed's group, such as subject; "" puts all into one.

    Raises:
        BadData: with all problems of the file.
    """
    seeds: list[Seed] = []
    problems: list[Problem] = []
    for raw in read_rows(path):
        problems += raw.problems
        if raw.value is not None:
            reader = RowReader(raw.value, columns={}, file=str(path), line=raw.line, nulls_absent=False)
            seeds.append(
                Seed(reader.required_text("prompt"), reader.required_text(group_field) if group_field else "")
            )
            problems += reader.problems
    if problems:
        raise BadData(problems)
    return seeds


def warmup(
    path: Path, output: Path, *, n: int, shots: int, seed: int, template: str = TEMPLATE, group_field: str = ""
) -> int:
    """Write n records {id, prompt, response} for the proposer's warm-up: a few-shot prompt and one further seed.

    Raises:
        BadData: the seeds have problems.
        ValueError: see `few_shots`.
    """
    check_template(template, *FIELDS[0], optional=FIELDS[1])
    seeds = read_seeds(path, group_field=group_field)
    made = few_shots(seeds, n, shots=shots, seed=seed, template=template)
    return write_jsonl(output, map(warmup_row, made))


def propose(
    path: Path,
    output: Path,
    *,
    prompts: int,
    n: int,
    shots: int,
    seed: int,
    engine: Engine,
    template: str = TEMPLATE,
    group_field: str = "",
    max_new_tokens: int = 512,
    temperature: float = 1.0,
    top_p: float = 0.98,
    work_dir: Path | None = None,
) -> Outcome:
    """Write what the proposer makes of n samples for each of `prompts` few-shot prompts.

    Raises:
        BadData: the seeds have problems.
        ValueError: see `few_shots` and `sample`.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    check_template(template, *FIELDS[0], optional=FIELDS[1])
    seeds = read_seeds(path, group_field=group_field)
    made = few_shots(seeds, prompts, shots=shots, seed=seed, template=template)
    answers = sample(
        {each.id: (Message("user", each.prompt),) for each in made},
        n,
        engine=engine,
        folder=work_dir or output.with_suffix(".work"),
        job="reversegen propose",
        prompt_version=version(template),
        source=path,
        seed=seed,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        prompts=prompts,
        shots=shots,
        group_field=group_field,
    )
    proposals = [
        proposal(each, number, answer, group_field=group_field)
        for each in made
        for number, answer in enumerate(answers[each.id])
    ]
    left = [Left(each.row, each.kind, each.reason) for each in proposals if each.kind]
    return write(output, [each.row for each in proposals if not each.kind], left)
