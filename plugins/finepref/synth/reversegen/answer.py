"""The jobs of ReverseGen that ask about instructions: are they answerable (validate), and what does a model answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from finepref.formats.records import Message, Prompt
from finepref.synth.ask import Asked, Left, Outcome, read_asked, sample, write
from finepref.synth.engines.protocol import UNANSWERED, Completion, Engine
from finepref.synth.judges.by_rule import read_verdict
from finepref.synth.reversegen.arithmetic_exercise import exercise
from finepref.synth.reversegen.few_shots import check_template, version

VALID = """\
Judge an instruction by this rubric:
{rubric}

### Instruction
{instruction}

### Verdict
Reply with one JSON object and nothing else: {{"pass": true or false, "reason": "one short sentence"}}
"""
ANSWERED = ("response", "responses", "label", "verdict")
RUBRIC = "It is clear, complete and answerable as it stands, and it asks for one thing."


def answer(
    path: Path,
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
) -> Outcome:
    """Write the rows with the model's `response`, or with n `responses` where n is above 1.

    A row without an answer to show (the engine failed, an answer is empty) is left out as unjudged. An older answer
    with its label and verdict gives way to the new one.

    Args:
        path: rows {id?, prompt or messages, ...}.
        output: the file to write.
        engine: what answers.
        n: answers to each row.
        ask: the text that the last user turn becomes, with {prompt}.
        max_new_tokens, temperature, top_p, seed: of the answers.
        work_dir: where the journal is; by default `<stem>.work` beside the output.
        failing: answer only the rows whose label is false.

    Raises:
        BadData: the input has problems.
        ValueError: see `sample`.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    check_template(ask, "prompt")
    asked = [each for each in read_asked(path) if not failing or each.row.get("label") is False]
    answers = sample(
        {each.id: _put(each.prompt, ask) for each in asked},
        n,
        engine=engine,
        folder=work_dir or output.with_suffix(".work"),
        job="reversegen answer",
        prompt_version=version(ask),
        source=path,
        seed=seed,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        failing=failing,
    )
    rows: list[dict[str, object]] = []
    left: list[Left] = []
    for each in asked:
        texts = [found.text.strip() for found in answers[each.id]]
        row = {name: value for name, value in each.row.items() if name not in ANSWERED} | {"id": each.id}
        if reason := _failed(answers[each.id]) or ("" if all(texts) else "empty answer"):
            left.append(Left(row, "unjudged", reason))
        else:
            rows.append(row | ({"response": texts[0]} if n == 1 else {"responses": texts}))
    return write(output, rows, left)


def validate_arithmetic(path: Path, output: Path, *, max_numbers: int = 3, max_digits: int = 4) -> Outcome:
    """Hand on the arithmetic exercises, each with its right `answer` and it written out as `chosen`.

    Raises:
        BadData: the input has problems.
    """
    rows: list[dict[str, object]] = []
    left: list[Left] = []
    for each in read_asked(path):
        found = exercise(each.prompt[-1].content, max_numbers=max_numbers, max_digits=max_digits)
        if isinstance(found, str):
            left.append(Left(each.row, "invalid", found))
        else:
            rows.append({**each.row, "answer": found.answer, "chosen": f"{found.expression} = {found.answer}"})
    return write(output, rows, left)


def validate_llm(
    path: Path,
    output: Path,
    *,
    engine: Engine,
    rubric: str = RUBRIC,
    max_new_tokens: int = 256,
    seed: int = 0,
    work_dir: Path | None = None,
) -> Outcome:
    """Hand on what a model finds to pass a rubric; an answer that is no verdict leaves the row unjudged.

    Raises:
        BadData: the input has problems.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    asked = read_asked(path)
    answers = sample(
        {each.id: (Message("user", VALID.format(rubric=rubric, instruction=_text(each.prompt))),) for each in asked},
        1,
        engine=engine,
        folder=work_dir or output.with_suffix(".work"),
        job="reversegen validate",
        prompt_version=version(VALID, rubric),
        source=path,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )

    def left(each: Asked) -> Left | None:
        if reason := _failed(answers[each.id]):
            return Left(each.row, "unjudged", reason)
        verdict = read_verdict(answers[each.id][0].text)
        if verdict.passed is None:
            return Left(each.row, "unjudged", f"validity: {verdict.reason}")
        return None if verdict.passed else Left(each.row, "invalid", "not answerable, says the judge")

    found = [(each, left(each)) for each in asked]
    return write(
        output, [each.row for each, out in found if out is None], [out for _, out in found if out is not None]
    )


def validate_agreement(
    path: Path,
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
) -> Outcome:
    """Hand on what a teacher answers alike: the most frequent of its n answers becomes `answer` and `chosen`.

    Args:
        path, output, engine, ask, max_new_tokens, temperature, top_p, seed, work_dir: see `answer`.
        same: gives equal values for answers that count as equal, such as `judges.as_math`.
        n: answers of the teacher to each instruction.
        share: of them that must agree.

    Raises:
        BadData, ValueError, JournalBusy, JournalChanged, JournalDamaged: see `answer`.
    """
    check_template(ask, "prompt")
    asked = read_asked(path)
    answers = sample(
        {each.id: _put(each.prompt, ask) for each in asked},
        n,
        engine=engine,
        folder=work_dir or output.with_suffix(".work"),
        job="reversegen validate",
        prompt_version=version(ask),
        source=path,
        seed=seed,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
    )
    rows: list[dict[str, object]] = []
    left: list[Left] = []
    for each in asked:
        if reason := _failed(answers[each.id]):
            left.append(Left(each.row, "unjudged", reason))
            continue
        group = _largest([found.text.strip() for found in answers[each.id]], same)
        if len(group) < share * n:
            left.append(Left(each.row, "invalid", f"{len(group)} of {n} answers of the teacher agree"))
        else:
            rows.append({**each.row, "answer": group[0], "chosen": group[0]})
    return write(output, rows, left)


def _largest(texts: Sequence[str], same: Callable[[str], object]) -> list[str]:
    groups: list[tuple[object, list[str]]] = []
    for text in filter(None, texts):
        value = same(text)
        group = next((members for known, members in groups if known == value), None)
        (groups.append((value, [text])) if group is None else group.append(text))
    return max((members for _, members in groups), key=len, default=[])


def _failed(answers: Sequence[Completion]) -> str:
    return next((f"{UNANSWERED}{each.error}" for each in answers if each.error is not None), "")


def _put(prompt: Prompt, ask: str) -> Prompt:
    return (*prompt[:-1], Message(prompt[-1].role, ask.format(prompt=prompt[-1].content)))


def _text(prompt: Prompt) -> str:
    return "\n\n".join(turn.content for turn in prompt)
