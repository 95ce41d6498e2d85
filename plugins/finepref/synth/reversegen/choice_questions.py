"""`finepref reversegen validate --by choice`: which instructions are multiple-choice questions, and their answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from finepref.formats import choices
from finepref.formats.bad_rows import BadRows
from finepref.formats.choice_text import Asked, parse_choice
from finepref.formats.records import Message
from finepref.synth.ask import Job, work_folder
from finepref.synth.data_sources.job_rows import Rows, rows_of
from finepref.synth.engines import letters
from finepref.synth.engines.protocol import Completion, Engine, Sampling
from finepref.synth.judges.letters import letter_of
from finepref.synth.left_out import Ledger, Written
from finepref.synth.reversegen.arithmetic_exercise import exercise, value_of
from finepref.synth.reversegen.instructions import (
    INSTRUCTIONS,
    Instruction,
    ask_letters,
    ask_times,
    asked_text,
    engine_failure,
    read_instructions,
    write,
)
from finepref.synth.reversegen.templates import check_ask, version


def validate_choice(
    source: Rows,
    output: Path,
    *,
    options: int = 0,
    computed: bool = False,
    engine: Engine | None = None,
    read: Literal["text", "letters", "options"] = "text",
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
        read: sample the teacher's answers, or read the probabilities of the options, see `answer_by_letters`; the
            engine is then one of letters.
        n: answers of the teacher to each question.
        share: the share of them that must name the same option, or the least probability of it.

    Raises:
        BadData, ValueError, JournalBusy, JournalChanged, JournalDamaged: see `answer`.
    """
    check_ask(ask)
    given = rows_of(source, INSTRUCTIONS)
    found = read_instructions(given, bad_rows=bad_rows, engine=engine)
    questions: dict[str, Asked | str] = {each.id: _question(each, options, computed) for each in found}
    answers: dict[str, list[Completion]] = {}
    if engine is not None:
        asked = {each.id: question for each in found if isinstance(question := questions[each.id], Asked)}
        texts = {key: choices.text(each.question, each.options) for key, each in asked.items()}
        prompts = {key: asked_text((Message("user", text),), ask) for key, text in texts.items()}
        job = Job(
            name="reversegen validate",
            source=given,
            folder=work_folder(output, work_dir),
            prompt_version=version(ask),
            settings={"by": "choice", "read": read},
            seed=seed,
        )
        if read == "text":
            sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
            answers = ask_times(prompts, n, engine=engine, sampling=sampling, job=job)
        else:
            own = {key: choices.lettered(each.options) for key, each in asked.items()}
            told = ask_letters(prompts, own, by=read, engine=engine, job=job)
            answers = {key: [answer] for key, answer in told.items()}
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
            said = [answer.text for answer in answers[each.id]]
            letter, reason = (_agreed if read == "text" else _probable)(said, lettered, share)
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


def _probable(texts: Sequence[str], options: Mapping[str, str], share: float) -> tuple[str, str]:
    """The letter that is probable enough, or "" and why there is none."""
    found = letters.read(texts[0], options)
    if isinstance(found, str):
        return "", found
    shares, _ = found
    best = max(shares, key=lambda letter: shares[letter])
    if shares[best] < share:
        return "", "the teacher gives no option the probability that is asked for"
    return best, ""
