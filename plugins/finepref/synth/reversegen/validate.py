"""`finepref reversegen validate`: which instructions can be answered, by a parser, a model or a teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finepref.formats.bad_rows import BadRows
from finepref.formats.records import Message, Prompt
from finepref.synth.ask import Job, work_folder
from finepref.synth.data_sources.job_rows import Rows, rows_of
from finepref.synth.engines.protocol import Engine, Sampling
from finepref.synth.judges.by_model import read_verdict
from finepref.synth.judges.by_rule import groups_of_equals
from finepref.synth.left_out import Ledger, Written
from finepref.synth.reversegen.arithmetic_exercise import exercise
from finepref.synth.reversegen.instructions import (
    INSTRUCTIONS,
    ask_times,
    asked_text,
    engine_failure,
    read_instructions,
    write,
)
from finepref.synth.reversegen.templates import check_template, version

VALID = """\
Judge an instruction by this rubric:
{rubric}

### Instruction
{instruction}

### Verdict
Reply with one JSON object and nothing else: {{"pass": true or false, "reason": "one short sentence"}}
"""
RUBRIC = "It is clear, complete and answerable as it stands, and it asks for one thing."


def validate_arithmetic(
    source: Rows, output: Path, *, max_numbers: int = 3, max_digits: int = 4, bad_rows: BadRows | None = None
) -> Written:
    """Pass on arithmetic exercises, each with its right `answer`, and with the whole equation as `chosen`.

    Args:
        source: rows {id?, prompt or messages, ...}, or the prompts of any layout.
        output: the file to write.
        max_numbers, max_digits: see `exercise`.
        bad_rows: see `read_instructions`.

    Raises:
        BadData: the input has problems.
    """
    rows: list[dict[str, object]] = []
    left_out = Ledger()
    for each in read_instructions(rows_of(source, INSTRUCTIONS), bad_rows=bad_rows):
        found = exercise(each.prompt[-1].content, max_numbers=max_numbers, max_digits=max_digits)
        if isinstance(found, str):
            left_out.add(each.row, found, kind="invalid")
        else:
            rows.append({**each.row, "answer": found.answer, "chosen": f"{found.expression} = {found.answer}"})
    return write(output, rows, left_out)


def validate_llm(
    source: Rows,
    output: Path,
    *,
    engine: Engine,
    rubric: str = RUBRIC,
    max_new_tokens: int = 256,
    seed: int = 0,
    work_dir: Path | None = None,
    bad_rows: BadRows | None = None,
) -> Written:
    """Pass on the instructions that a model finds to fulfil a rubric; a row without a clear verdict is unjudged.

    Args:
        source: rows {id?, prompt or messages, ...}, or the prompts of any layout.
        output: the file to write.
        engine: the model that judges.
        rubric: what makes an instruction answerable.
        max_new_tokens: longest verdict.
        seed: of the requests, for the journal.
        work_dir: folder of the journal; by default `<stem>.work` beside the output.
        bad_rows: see `read_instructions`.

    Raises:
        BadData: the input has problems.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    given = rows_of(source, INSTRUCTIONS)
    asked = read_instructions(given, bad_rows=bad_rows)
    answers = ask_times(
        {each.id: (Message("user", VALID.format(rubric=rubric, instruction=_text(each.prompt))),) for each in asked},
        1,
        engine=engine,
        sampling=Sampling(max_new_tokens=max_new_tokens),
        job=Job(
            name="reversegen validate",
            source=given,
            folder=work_folder(output, work_dir),
            prompt_version=version(VALID, rubric),
            settings={},
            seed=seed,
        ),
    )
    rows: list[dict[str, object]] = []
    left_out = Ledger()
    for each in asked:
        if reason := engine_failure(answers[each.id]):
            left_out.add(each.row, reason, kind="unjudged")
            continue
        verdict = read_verdict(answers[each.id][0].text)
        if verdict.passed is None:
            left_out.add(each.row, f"validity: {verdict.reason}", kind="unjudged")
        elif verdict.passed:
            rows.append(each.row)
        else:
            left_out.add(each.row, "not answerable, says the judge", kind="invalid")
    return write(output, rows, left_out)


def validate_agreement(
    source: Rows,
    output: Path,
    *,
    engine: Engine,
    same: Callable[[str], object],
    n: int = 5,
    share: float = 0.6,
    ask: str = "{prompt}",
    max_new_tokens: int = 1024,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    work_dir: Path | None = None,
    bad_rows: BadRows | None = None,
) -> Written:
    """Pass on the instructions whose answers by a teacher agree; the most frequent is `answer` and `chosen`.

    Args:
        source, output, engine, ask, max_new_tokens, temperature, top_p, seed, work_dir, bad_rows: see `answer`.
        same: gives equal values for answers that count as equal, such as `judges.as_math`.
        n: answers of the teacher to each instruction.
        share: the share of them that must agree.

    Raises:
        BadData, ValueError, JournalBusy, JournalChanged, JournalDamaged: see `answer`.
    """
    check_template(ask, "prompt")
    given = rows_of(source, INSTRUCTIONS)
    asked = read_instructions(given, bad_rows=bad_rows, engine=engine)
    answers = ask_times(
        {each.id: asked_text(each.prompt, ask) for each in asked},
        n,
        engine=engine,
        sampling=Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p),
        job=Job(
            name="reversegen validate",
            source=given,
            folder=work_folder(output, work_dir),
            prompt_version=version(ask),
            settings={},
            seed=seed,
        ),
    )
    rows: list[dict[str, object]] = []
    left_out = Ledger()
    for each in asked:
        if reason := engine_failure(answers[each.id]):
            left_out.add(each.row, reason, kind="unjudged")
            continue
        texts = filter(None, (found.text.strip() for found in answers[each.id]))
        group: list[str] = max(groups_of_equals(texts, same), key=len, default=[])
        if len(group) < share * n:
            left_out.add(each.row, f"{len(group)} of {n} answers of the teacher agree", kind="invalid")
        else:
            rows.append({**each.row, "answer": group[0], "chosen": group[0]})
    return write(output, rows, left_out)


def _text(prompt: Prompt) -> str:
    return "\n\n".join(turn.content for turn in prompt)
