"""`finepref reversegen answer`: what a model answers to instructions."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from finepref.formats.bad_rows import BadRows
from finepref.synth.ask import Job, work_folder
from finepref.synth.data_sources.job_rows import JobRows, Rows, rows_of
from finepref.synth.engines import letters
from finepref.synth.engines.protocol import Engine, Sampling
from finepref.synth.left_out import Ledger, Written
from finepref.synth.reversegen.instructions import (
    INSTRUCTIONS,
    Instruction,
    ask_times,
    asked_text,
    engine_failure,
    options_in,
    read_instructions,
    write,
)
from finepref.synth.reversegen.templates import check_template, version

ANSWERED = ("response", "responses", "letters", "letters_outside", "label", "verdict")
"""Fields of an earlier answer, which a new answer replaces."""


def answer(
    source: Rows,
    output: Path,
    *,
    engine: Engine,
    n: int = 1,
    ask: str = "{prompt}",
    max_new_tokens: int = 1024,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    work_dir: Path | None = None,
    failing: bool = False,
    bad_rows: BadRows | None = None,
) -> Written:
    """Write the rows with the model's `response`, or with n `responses` if n is above 1.

    A row without an answer (the engine failed, or an answer is empty) is left out as unjudged. The new answer replaces
    an older one, with its label and verdict.

    Args:
        source: rows {id?, prompt or messages, ...}, or the prompts of any layout.
        output: the file to write.
        engine: the model that answers.
        n: answers to each row.
        ask: template of the last user turn, with {prompt}.
        max_new_tokens, temperature, top_p, seed: of the answers.
        work_dir: folder of the journal; by default `<stem>.work` beside the output.
        failing: answer only the rows whose label is false.
        bad_rows: see `read_instructions`.

    Raises:
        BadData: the input has problems.
        ValueError: see `ask_each`.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    check_template(ask, "prompt")
    given = rows_of(source, INSTRUCTIONS)
    asked = _asked(given, engine, failing, bad_rows)
    answers = ask_times(
        {each.id: asked_text(each.prompt, ask) for each in asked},
        n,
        engine=engine,
        sampling=Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p),
        job=Job(
            name="reversegen answer",
            source=given,
            folder=work_folder(output, work_dir),
            prompt_version=version(ask),
            settings={"failing": failing},
            seed=seed,
        ),
    )
    rows: list[dict[str, object]] = []
    left_out = Ledger()
    for each in asked:
        texts = [found.text.strip() for found in answers[each.id]]
        row = {name: value for name, value in each.row.items() if name not in ANSWERED} | {"id": each.id}
        if reason := engine_failure(answers[each.id]) or ("" if all(texts) else "empty answer"):
            left_out.add(row, reason, kind="unjudged")
        else:
            rows.append(row | ({"response": texts[0]} if n == 1 else {"responses": texts}))
    return write(output, rows, left_out)


def answer_by_letters(
    source: Rows,
    output: Path,
    *,
    engine: Engine,
    ask: str = "{prompt}",
    work_dir: Path | None = None,
    failing: bool = False,
    bad_rows: BadRows | None = None,
) -> tuple[Written, float | None]:
    """Write multiple-choice questions with the model's distribution over their letters, read in one forward pass.

    A row gets `letters` {"A": 0.4, ...}, the probabilities of the letters of its options as the answer's first token,
    which add up to 1; `letters_outside`, the probability of all other tokens; and as `response` the most probable
    letter. `options` are those of the row, or else of its prompt (`parse_choice`); a row without any is left out as
    unjudged.

    Args:
        source, output, ask, work_dir, failing, bad_rows: see `answer`.
        engine: the engine of letters, see `letters.letters_of`.

    Returns:
        What was written, and the mean of `letters_outside`, None without rows.

    Raises:
        BadData, ValueError, JournalBusy, JournalChanged, JournalDamaged: see `answer`.
    """
    check_template(ask, "prompt")
    given = rows_of(source, INSTRUCTIONS)
    asked = _asked(given, engine, failing, bad_rows)
    options = {each.id: options_in(each) for each in asked}
    answers = ask_times(
        {each.id: asked_text(each.prompt, ask) for each in asked if isinstance(options[each.id], dict)},
        1,
        engine=engine,
        sampling=Sampling(max_new_tokens=1),
        job=Job(
            name="reversegen answer",
            source=given,
            folder=work_folder(output, work_dir),
            prompt_version=version(ask),
            settings={"failing": failing, "by": "letters"},
        ),
    )
    rows: list[dict[str, object]] = []
    outside: list[float] = []
    left_out = Ledger()
    for each in asked:
        row = {name: value for name, value in each.row.items() if name not in ANSWERED} | {"id": each.id}
        own = options[each.id]
        if isinstance(own, str):
            left_out.add(row, f"no multiple-choice question: {own}", kind="unjudged")
        elif reason := engine_failure(answers[each.id]):
            left_out.add(row, reason, kind="unjudged")
        elif isinstance(read := letters.read(answers[each.id][0].text, own), str):
            left_out.add(row, read, kind="unjudged")
        else:
            shares, other = read
            best = max(shares, key=lambda letter: shares[letter])
            rows.append(row | {"options": own, "response": best, "letters": shares, "letters_outside": other})
            outside.append(other)
    return write(output, rows, left_out), fmean(outside) if outside else None


def _asked(given: JobRows, engine: Engine, failing: bool, bad_rows: BadRows | None) -> list[Instruction]:
    """The instructions to ask; with `failing` only those of rows whose label is false."""
    found = read_instructions(given, bad_rows=bad_rows, engine=engine)
    return [each for each in found if not failing or each.row.get("label") is False]
