"""`finepref apo sample`: the LLM's answers to queries (APO, adversarial preference optimization, arXiv 2311.08045)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from finepref.formats.apo_samples import read_items
from finepref.formats.bad_rows import BadRows
from finepref.formats.jsonl import write_jsonl
from finepref.synth.ask import Job, ask_each, work_folder
from finepref.synth.data_sources.job_rows import ALL, Rows, Wants, ends_in_question, question, rows_of
from finepref.synth.engines.protocol import Engine, Sampling
from finepref.synth.left_out import FAILED, Ledger, unanswered

PRESETS = {
    "paper": Sampling(temperature=1.2, top_p=1.0, max_new_tokens=256),
    "paper_test": Sampling(temperature=0.3, top_p=0.85, top_k=5, repetition_penalty=1.05, max_new_tokens=512),
}
"""The paper's sampling: for training, and for tests."""


class Sampled(NamedTuple):
    """Number of queries = written + failed; the failed ones are in `<stem>.failed.jsonl`."""

    written: int
    failed: int


def is_query(row: Mapping[str, object]) -> bool:
    """Whether a row is {query_id, query, ...}, or {prompt or messages, ...}."""
    return type(row.get("query")) is str or ends_in_question(row)


WANTS = Wants("apo sample", "questions", is_query, None, ALL, question)


def sample(
    source: Rows,
    output: Path,
    *,
    engine: Engine,
    sampling: Sampling,
    n: int = 4,
    golden: bool = False,
    seed: int = 0,
    bad_rows: BadRows | None = None,
    work_dir: Path | None = None,
) -> Sampled:
    """Answer every query n times: rows {query_id, query, sample_0, ...} in the order of the queries.

    Rows of dialogues that no query can hold have `messages` in its place, see `formats.apo_samples`.

    Args:
        source: rows {query_id, query}, or {id?, prompt or messages}, see `formats.apo_samples`; or the prompts of any
            layout, each once.
        output: the JSON Lines file to write.
        engine: the LLM.
        sampling: used for all answers.
        n: answers to each query.
        golden: write them as golden answers, {query_id, query, golden}; n must be 1.
        seed: each answer has its own seed, which depends on this one and the answer's id.
        bad_rows: collects rows with a problem; None = each is an error.
        work_dir: folder of the journal; by default `<stem>.work` beside the output.

    Raises:
        BadData: the input has problems.
        ValueError: several golden answers to a query, or several answers at temperature 0.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    if golden and n != 1:
        raise ValueError("a query has one golden answer: give n = 1")
    names = ["golden"] if golden else [f"sample_{i}" for i in range(n)]
    given = rows_of(source, WANTS)
    items = read_items(given, "query", bad_rows=bad_rows)
    job = Job(
        name="apo sample",
        source=given,
        folder=work_folder(output, work_dir),
        prompt_version="query",
        settings=asdict(sampling) | {"names": names},
        seed=seed,
    )
    prompts = {key: item.prompt for key, item in items.items()}
    answers = ask_each(prompts, names, engine=engine, sampling=sampling, job=job)
    written, failed = [], Ledger()
    for key, item in items.items():
        asked = {"messages": [turn._asdict() for turn in item.turns]} if item.turns else {"query": item.query}
        row: dict[str, object] = {"query_id": key, **asked}
        errors = {name: answer.error for name, answer in answers[key].items() if answer.error is not None}
        if errors:
            failed.add(row | {"errors": errors}, unanswered(next(iter(errors.values()))))
        else:
            written.append(row | {name: answer.text for name, answer in answers[key].items()})
    write_jsonl(output, written)
    failed.write(output, FAILED)
    return Sampled(len(written), len(failed))
