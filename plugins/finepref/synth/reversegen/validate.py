"""`finepref reversegen validate`: which instructions can be answered, by a parser, a model or a teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finepref.formats.bad_rows import BadRows
from finepref.formats.files import write_json
from finepref.formats.records import Message, Prompt
from finepref.synth.ask import Job, work_folder
from finepref.synth.data_sources.job_rows import Rows, rows_of
from finepref.synth.engines.protocol import Engine, Sampling
from finepref.synth.judges.by_model import read_verdict
from finepref.synth.judges.by_rule import as_math, groups_of_equals
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
    """Pass on the instructions whose answers by a teacher agree; the most frequent gives `answer` and `chosen`.

    This is ReverseGen's relabelling: `answer` is the final answer of the first of the equal responses, where `same`
    finds one, and `chosen` that response. `agreement` is their share. Responses that were cut off are no votes. An
    `answer` that the row had and that differs is kept as `answer_before`, and counted in `<stem>.report.json`.

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
        texts = [found.text.strip() for found in answers[each.id] if found.stop_reason == "stop"]
        groups = sorted(groups_of_equals(filter(None, texts), same), key=len, reverse=True)
        group = groups[0] if groups else []
        if len(group) < share * n:
            left_out.add(each.row, f"{len(group)} of {n} answers of the teacher agree", kind="invalid")
        elif len(groups) > 1 and len(groups[1]) == len(group):
            left_out.add(each.row, f"{len(group)} answers of the teacher agree, and as many others", kind="invalid")
        elif (final := final_answer(group[0], same)) is None:
            left_out.add(each.row, "the teacher's answers have no final answer", kind="invalid")
        else:
            row = {**each.row, "answer": final, "chosen": group[0], "agreement": len(group) / n}
            before = each.row.get("answer")
            if isinstance(before, str) and same(before) != same(final):
                row["answer_before"] = before
            rows.append(row)
    changed = sum("answer_before" in row for row in rows)
    write_json(
        output.with_suffix(".report.json"),
        {"job": "reversegen validate", "by": "agreement", "rows": len(rows), "relabelled": changed},
    )
    return write(output, rows, left_out)


def final_answer(response: str, same: Callable[[str], object]) -> str | None:
    """The final answer of a response: of mathematics the text that math-verify finds, else the response.

    None if `same` is `as_math` and the response holds no mathematics.
    """
    value = same(response)
    if not isinstance(value, as_math):
        return response
    if not value.found:
        return None
    short = f"{value.found[-1]}"
    return next((text for text in (short, f"\\boxed{{{short}}}") if as_math(text) == value), response)


def _text(prompt: Prompt) -> str:
    return "\n\n".join(turn.content for turn in prompt)
