"""Few-shot prompts of ReverseGen (arXiv 2410.16736), in which a proposer learns to write hard instructions.

    few-shot prompt  shows the proposer some seeds and asks for one more instruction
    proposal         an instruction that it wrote; the target answers it, and a judge says whether it failed
    pair             two proposals for the same few-shot prompt: one that the target failed, above one that it solved
    improvement      an instruction that the target failed, with a good answer, for training the target

Rows of proposals have `prompt` (the instruction that the target is asked), `few_shot` (the id of the few-shot prompt),
`few_shot_prompt` (its text) and, once judged, `label`. The released code takes the target's responses for a pair from
independently shuffled lists, merges equal prompts and drops the last batch; this implementation does none of that.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from finepref.formats.bad_rows import BadRows
from finepref.formats.identified import read_each, read_identified
from finepref.formats.problems import BadData, Problem
from finepref.formats.records import Choice, Record, content_id
from finepref.formats.row import RowReader
from finepref.formats.row_source import RowSource
from finepref.synth.data_sources.job_rows import ALL, Row, Wants
from finepref.synth.reversegen.templates import check_template, filled

TEMPLATE = """\
Below are {count} instructions. Write one more of the same kind that differs from all of them. Reply with the new \
instruction and nothing else.

{examples}
"""
"""The default template of a few-shot prompt. Another one may also have {group}, and in place of {examples} either
{questions} (Q1. to Q3. with empty lines between, and at the end the open Q4.) or {example_1}, {example_2}, ... The
release's is "Ask math questions:", an empty line, and {questions}. Line ends at its end are no part of a template."""

_NUMBER = re.compile(r"^[ \t]*Q?\d+[.):](?=\s|$)", re.MULTILINE)
_OPEN_END = re.compile(r"^[ \t]*(Q?)(\d+)([.):])\s*\Z", re.MULTILINE)
"""A text that ends in the number of an instruction that is still to be written, such as "Q4."."""

_ANSWERS = ("target", "response")
"""Names of the further instruction of a warm-up row: the release's, and ours."""
_WARM_UP = (
    "a few-shot prompt, and no instruction to start from: `warmup --ready` trains on such rows as they are, `propose "
    "--ready` sends such prompts, and `--column prompt=target` reads the instructions beside them"
)
_SEED = (
    "an instruction, and no few-shot prompt: without --ready few-shot prompts are made of such rows; a field "
    "attacker_prompt is sent whatever it looks like"
)


class Seed(NamedTuple):
    """An instruction to start from; only seeds of the same group are shown together."""

    prompt: str
    group: str = ""


class FewShot(NamedTuple):
    """A few-shot prompt, the seeds that it shows, and one seed of the same group that it does not show."""

    id: str
    prompt: str
    examples: tuple[str, ...]
    next: str
    group: str = ""


def is_seed(row: Mapping[str, object]) -> bool:
    """Whether a row has an instruction, or a few-shot prompt, as a text."""
    return type(row.get("prompt")) is str or "attacker_prompt" in row


def seed_of(record: Record, told: Counter[str]) -> Row | None:
    """The only question of a record; each once."""
    *before, last = record.prompt
    if any(turn.role != "system" for turn in before):
        told["dialogues of several turns left out"] += 1
        return None
    told["system turns not kept"] += len(before)
    fields: dict[str, object] = {"prompt": last.content}
    if isinstance(record, Choice) and record.subject:
        fields["subject"] = record.subject
    return Row(fields, content_id((last,)))


SEEDS = Wants("reversegen", "instructions", is_seed, None, ALL, seed_of)


def read_seeds(source: RowSource | Path, *, group_field: str = "", bad_rows: BadRows | None = None) -> list[Seed]:
    """The instructions of rows {prompt, ...}.

    A warm-up file, with rows {prompt: few-shot prompt, target or response: instruction}, is refused: a prompt that
    ends in an open number ("Q4."), or prompts that all begin alike, have as many examples and a response.

    Args:
        source: a file, or rows of `SEEDS`.
        group_field: the field with a seed's group, such as subject; "" puts all seeds into one group.
        bad_rows: see `read_each`.

    Raises:
        BadData: see `read_each`.
    """

    shapes: list[tuple[tuple[str, int], str] | None] = []
    files: list[str] = []

    def read(reader: RowReader) -> Seed:
        text = reader.required_text("prompt")
        if open_number(text):
            reader.note("prompt", "FP290", _WARM_UP)
        shapes.append(_shape(text) if any(name in reader.row for name in _ANSWERS) else None)
        files.append(reader.file)
        return Seed(text, reader.required_text(group_field) if group_field else "")

    found = read_each(source, read, empty=False, bad_rows=bad_rows)
    alike = {each and each[0] for each in shapes}
    if len({*shapes}) > 1 and len(alike) == 1 and None not in alike:
        raise BadData([Problem(files[0], 0, "prompt", "FP290", f"all rows have {_WARM_UP}")])
    return found


def _shape(text: str) -> tuple[tuple[str, int], str] | None:
    """What comes before the first of several numbered examples, how many there are, and the first; None without these.

    Prompts with the same first example are a question with numbered choices, and no few-shot prompts.
    """
    head, *examples = _NUMBER.split(text)
    return ((head, len(examples)), examples[0]) if len(examples) > 1 else None


def open_number(text: str) -> tuple[str, str] | None:
    """The number that a few-shot prompt leaves open at its end, and the one after it, such as "Q4." and "Q5."."""
    found = _OPEN_END.search(text)
    return None if found is None else (found[1] + found[2] + found[3], f"{found[1]}{int(found[2]) + 1}{found[3]}")


def _ready_prompt(reader: RowReader) -> str:
    """A few-shot prompt that is given ready-made."""
    if "attacker_prompt" in reader.row:
        return reader.required_text("attacker_prompt")
    text = reader.required_text("prompt")
    if text and not _NUMBER.search(text) and len(text.split("\n")) == 1:
        reader.note("prompt", "FP291", _SEED)
    return text


def read_warmup(source: RowSource | Path, *, limit: int = 0, bad_rows: BadRows | None = None) -> list[FewShot]:
    """Ready warm-up rows {id?, attacker_prompt or prompt, target or response}, in their order; `next` is the response.

    Args:
        source: a file, or rows of `SEEDS`.
        limit: most rows to take, 0 = all.
        bad_rows: see `read_identified`.

    Raises:
        BadData: see `read_identified`.
    """

    def read(reader: RowReader) -> FewShot:
        text = _ready_prompt(reader)
        name = next((name for name in _ANSWERS if name in reader.row), None)
        if name is None:
            told = "the instruction that follows the few-shot prompt is missing; without --ready the rows are seeds"
            reader.note("target", "FP291", told)
            return FewShot("", text, (), "")
        return FewShot(reader.id() or str(reader.line), text, (), reader.required_text(name))

    return read_identified(source, read, bad_rows=bad_rows)[: limit or None]


def read_few_shots(
    source: RowSource | Path, *, limit: int = 0, group_field: str = "", bad_rows: BadRows | None = None
) -> list[FewShot]:
    """Ready few-shot prompts: rows {id?, attacker_prompt or prompt, ...}, in their order.

    Args:
        source: a file, or rows of `SEEDS`.
        limit: most prompts to take, 0 = all.
        group_field: the field with the group of a prompt's examples; "" = none.
        bad_rows: see `read_identified`.

    Raises:
        BadData: see `read_identified`.
    """

    def read(reader: RowReader) -> FewShot:
        text = _ready_prompt(reader)
        group = reader.required_text(group_field) if group_field else ""
        examples = (part.strip() for part in _NUMBER.split(text)[1:])
        return FewShot(reader.id() or str(reader.line), text, tuple(filter(None, examples)), "", group)

    found = read_identified(source, read, bad_rows=bad_rows)
    return found[: limit or None]


def check_few_shot_template(template: str, shots: int) -> str:
    """The template without line ends at its end, if it shows all examples: see `TEMPLATE`.

    Raises:
        ValueError: a field is missing, or there is an unknown one.
    """
    template = template.rstrip("\r\n")
    own = [f"example_{number}" for number in range(1, shots + 1)]
    if any(f"{{{name}}}" in template for name in own):
        return check_template(template, *own, optional=("examples", "questions", "count", "group"))
    shown = "questions" if "{questions}" in template else "examples"
    return check_template(template, shown, optional=("examples", "questions", "count", "group"))


def few_shots(seeds: Sequence[Seed], n: int, *, shots: int, seed: int, template: str = TEMPLATE) -> list[FewShot]:
    """Few-shot prompts, each with `shots` different seeds of one group; each has its own id, even if texts repeat.

    The group is that of a random seed, so that a group is chosen in proportion to its size.

    Args:
        seeds: instructions to show.
        n: the number of few-shot prompts.
        shots: seeds in each of them.
        seed: random seed.
        template: see `check_few_shot_template`.

    Raises:
        ValueError: a group has too few different seeds, or the template lacks an example or has an unknown field.
    """
    template = check_few_shot_template(template, shots)
    groups: dict[str, list[str]] = {}
    for each in seeds:
        members = groups.setdefault(each.group, [])
        if each.prompt not in members:
            members.append(each.prompt)
    if not groups:
        raise ValueError("there is no seed")
    if small := [group for group, members in groups.items() if len(members) <= shots]:
        told = f"the group {small[0]!r} has" if small[0] else "there are"
        raise ValueError(f"{told} {len(groups[small[0]])} different seeds: more than {shots} shots are needed")
    made = []
    for number in range(n):
        chance = random.Random(f"{seed}:{number}")
        group = chance.choice(seeds).group
        *examples, left = chance.sample(groups[group], shots + 1)
        own = {f"example_{place}": text for place, text in enumerate(examples, start=1)}
        lists = {"examples": listed(examples), "questions": questions(examples)}
        prompt = filled(template, count=shots, group=group, **lists, **own)
        made.append(FewShot(f"{seed}-{number}", prompt, tuple(examples), left, group))
    return made


def listed(instructions: Sequence[str]) -> str:
    """Instructions as a numbered list."""
    return "\n".join(f"{number}. {text}" for number, text in enumerate(instructions, start=1))


def questions(instructions: Sequence[str]) -> str:
    """Instructions as Q1. to Qn. with empty lines between, and the number of the next, as in the release."""
    shown = (f"Q{number}. {text}" for number, text in enumerate(instructions, start=1))
    return "\n\n".join([*shown, f"Q{len(instructions) + 1}."])
