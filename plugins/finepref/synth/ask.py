"""Rows with prompts in, n journalled answers to each out; what a step leaves out is told beside its output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from finepref.formats.check import digest
from finepref.formats.identified import read_identified
from finepref.formats.jsonl import read_jsonl, write_aside, write_jsonl
from finepref.formats.records import Prompt, content_id
from finepref.formats.row import RowReader
from finepref.synth.engines.protocol import UNANSWERED, Completion, Engine, Request, ask_all, request_seed
from finepref.synth.journal import Journal


class Asked(NamedTuple):
    """A row, its id (of its content, where the row has none) and its prompt."""

    id: str
    prompt: Prompt
    row: dict[str, object]


class Left(NamedTuple):
    """A row that a step does not hand on: its kind (invalid, unjudged or unproposed) and why."""

    row: Mapping[str, object]
    kind: str
    reason: str


class Outcome(NamedTuple):
    """How many rows a step hands on, and how many it left out by kind and reason."""

    written: int
    left_out: Counter[tuple[str, str]]

    @property
    def unanswered(self) -> int:
        """Rows that the engine failed on; the same command asks those again."""
        return sum(count for (_, reason), count in self.left_out.items() if reason.startswith(UNANSWERED))


def sample(
    prompts: Mapping[str, Prompt],
    n: int,
    /,
    *,
    engine: Engine,
    folder: Path,
    job: str,
    prompt_version: str,
    source: Path,
    seed: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    **more: object,
) -> dict[str, list[Completion]]:
    """n answers to each prompt, by id; those in the journal of `folder` are not asked for again.

    Args:
        prompts: id -> what is asked.
        n: answers to each; above 1 they need a temperature above 0.
        engine: what answers.
        folder, job, prompt_version, seed: of the journal.
        source: the file that the prompts come from.
        max_new_tokens, temperature, top_p: of every request.
        more: further settings on which the prompts depend.

    Raises:
        ValueError: several answers at temperature 0.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    if n > 1 and temperature == 0:
        raise ValueError("several answers to one prompt need a temperature above 0, or they are all the same")
    requests = [
        Request(
            request_id := f"{row_id}/{number}",
            prompt,
            max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=request_seed(seed, request_id),
        )
        for row_id, prompt in prompts.items()
        for number in range(n)
    ]
    sampling = {"n": n, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, **more}
    with Journal(
        folder,
        job=job,
        model=engine.model,
        prompt_version=prompt_version,
        sampling=sampling,
        seed=seed,
        input_digest=digest(source),
    ) as journal:
        found = ask_all(requests, engine=engine, journal=journal)
    return {row_id: [found[f"{row_id}/{number}"] for number in range(n)] for row_id in prompts}


def read_asked(path: Path) -> list[Asked]:
    """The rows of a file {id?, prompt or messages, ...}.

    Raises:
        BadData: with all problems of the file, such as an id that is there twice.
    """
    return read_identified(path, _asked, empty=True)


def _asked(reader: RowReader) -> Asked:
    given, prompt = reader.id(), reader.prompt()
    return Asked(given or content_id(prompt), prompt, {**reader.row})


def write(output: Path, rows: Sequence[Mapping[str, object]], left: Sequence[Left]) -> Outcome:
    """Write the rows that go on, and the others to `left_out_of(output)` with `left_out` {kind, reason}."""
    told = [{**each.row, "left_out": {"kind": each.kind, "reason": each.reason}} for each in left]
    write_aside(left_out_of(output), told)
    write_jsonl(output, rows)
    return Outcome(len(rows), Counter((each.kind, each.reason) for each in left))


def left_out_of(output: Path) -> Path:
    """Where a step tells what it did not hand on."""
    return output.with_suffix(".left_out.jsonl")


def read_dicts(path: Path) -> list[dict[str, object]]:
    """The rows of a file that one of our steps wrote.

    Raises:
        BadData: see `read_jsonl`.
    """
    return [row for _, row in read_jsonl(path, problems=None)]
