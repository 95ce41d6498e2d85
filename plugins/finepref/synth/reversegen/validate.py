"""`finepref reversegen validate`: which instructions can be answered, by a parser, a model or a teacher.

The parsers are of arithmetic exercises and of multiple-choice questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from finepref.formats import choices
from finepref.formats.bad_rows import BadRows
from finepref.formats.choice_text import Asked, parse_choice
from finepref.formats.records import Message, Prompt
from finepref.synth.ask import Job, work_folder
from finepref.synth.data_sources.job_rows import Rows, rows_of
from finepref.synth.engines.protocol import Completion, Engine, Sampling
from finepref.synth.judges.by_model import read_verdict
from finepref.synth.judges.by_rule import groups_of_equals
from finepref.synth.judges.letters import letter_of
from finepref.synth.left_out import Ledger, Written
from finepref.synth.reversegen.arithmetic_exercise import exercise, value_of
from finepref.synth.reversegen.instructions import (
    INSTRUCTIONS,
    Instruction,
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


def validate_choice(
    source: Rows,
    output: Path,
    *,
    options: int = 0,
    computed: bool = False,
    engine: Engine | None = None,
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
    """Pass on multiple-choice questions: a question with two or more different options, see `parse_choice`.

    `prompt` is the question with its options as "A. ..." in a line each, without an answer line, so that the target is
    not shown the answer; a text that this changes is kept as `proposed`, and a letter in its answer line as
    `proposed_answer`. The row gets its `options`, and if the right one is known `answer`, its letter, and `chosen`,
    the letter with the option's text.

    Args:
        source, output, ask, max_new_tokens, temperature, top_p, seed, work_dir, bad_rows: see `answer`.
        options: the number that a question must have; 0 = any from 2.
        computed: the question is an arithmetic exercise (`exercise`), and exactly one option has its value: that is
            the right one.
        engine: a teacher; an option is right if a share of its answers name it. None = the row's own `answer`, if it
            has one.
        n: answers of the teacher to each question.
        share: the share of them that must name the same option.

    Raises:
        BadData, ValueError, JournalBusy, JournalChanged, JournalDamaged: see `answer`.
    """
    check_template(ask, "prompt")
    given = rows_of(source, INSTRUCTIONS)
    found = read_instructions(given, bad_rows=bad_rows, engine=engine)
    questions: dict[str, Asked | str] = {each.id: _question(each, options, computed) for each in found}
    answers: dict[str, list[Completion]] = {}
    if engine is not None:
        asked = {each.id: question for each in found if isinstance(question := questions[each.id], Asked)}
        answers = ask_times(
            {
                key: asked_text((Message("user", choices.text(each.question, each.options)),), ask)
                for key, each in asked.items()
            },
            n,
            engine=engine,
            sampling=Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p),
            job=Job(
                name="reversegen validate",
                source=given,
                folder=work_folder(output, work_dir),
                prompt_version=version(ask),
                settings={"by": "choice"},
                seed=seed,
            ),
        )
    rows: list[dict[str, object]] = []
    left_out = Ledger()
    for each in found:
        question = questions[each.id]
        if isinstance(question, str):
            left_out.add(each.row, question, kind="invalid")
            continue
        lettered = choices.lettered(question.options)
        letter = question.answer
        if engine is not None:
            if reason := engine_failure(answers[each.id]):
                left_out.add(each.row, reason, kind="unjudged")
                continue
            letter, reason = _agreed([answer.text for answer in answers[each.id]], lettered, share)
            if reason:
                left_out.add(each.row, reason, kind="invalid")
                continue
        row = {**each.row, "prompt": choices.text(question.question, question.options), "options": lettered}
        row |= {"answer": letter, "chosen": f"{letter}. {lettered[letter]}"} if letter else {}
        text = each.prompt[-1].content
        if row["prompt"] != text:
            row["proposed"] = text
            parsed = parse_choice(text)
            if isinstance(parsed, Asked) and parsed.answer:
                row["proposed_answer"] = parsed.answer
        rows.append(row)
    return write(output, rows, left_out)


def _question(each: Instruction, options: int, computed: bool) -> Asked | str:
    """The multiple-choice question of a row, with its right answer if that needs no model; or why it is none.

    Args:
        each: the row.
        options, computed: see `validate_choice`.
    """
    if len(each.prompt) != 1 or each.prompt[0].role != "user":
        return "more than one turn"
    found = _of_row(each)
    if isinstance(found, str):
        return found
    if options and len(found.options) != options:
        return f"{len(found.options)} options and not {options}"
    gold = each.row.get("answer")
    given = letter_of(gold, choices.lettered(found.options)).letter if isinstance(gold, str) else ""
    if not computed:
        return found._replace(answer=given)
    known = exercise(found.question)
    if isinstance(known, str):
        return f"the question is no exercise: {known}"
    right = [letter for letter, option in choices.lettered(found.options).items() if value_of(option) == known.value]
    if len(right) != 1:
        return f"{len(right)} options have the value of the exercise" if right else "no option is right"
    return found._replace(answer=right[0])


def _of_row(each: Instruction) -> Asked | str:
    """The question of a row: its text without the options that the row gives, or else as `parse_choice` reads it."""
    text = each.prompt[-1].content
    if (given := choices.options_of(each.row)) is not None:
        options = tuple(given.values())
        shown = choices.text("", options)
        if text.endswith(shown) and text != shown:
            return Asked(text.removesuffix(shown), options)
    return parse_choice(text)


def _agreed(texts: Sequence[str], options: Mapping[str, str], share: float) -> tuple[str, str]:
    """The letter that enough answers name, or "" and why there is none."""
    counts = Counter(filter(None, (letter_of(text, options).letter for text in texts)))
    letter, count = counts.most_common(1)[0] if counts else ("", 0)
    tied = sum(other == count for other in counts.values()) > 1
    if not letter or tied or count < share * len(texts):
        return "", f"{count} of {len(texts)} answers of the teacher name the same option"
    return letter, ""


def _text(prompt: Prompt) -> str:
    return "\n\n".join(turn.content for turn in prompt)
