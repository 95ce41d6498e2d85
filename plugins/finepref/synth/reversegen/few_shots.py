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
"""The default template of a few-shot prompt. Another one may also have {group}, and {example_1}, {example_2}, ... in
place of {examples}: the release's is "Ask math questions:", "Q1. {example_1}", ..., "Q4." with empty lines between."""

_NUMBER = re.compile(r"^[ \t]*Q?\d+[.):](?=\s|$)", re.MULTILINE)
_OPEN_END = re.compile(r"^[ \t]*Q?\d+[.):]\s*\Z", re.MULTILINE)
"""A text that ends in the number of an instruction that is still to be written, such as "Q4."."""


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

    The warm-up files of the release are rows {prompt: a few-shot prompt, target: an instruction}; the instruction is
    the seed.

    Args:
        source: a file, or rows of `SEEDS`.
        group_field: the field with a seed's group, such as subject; "" puts all seeds into one group.
        bad_rows: see `read_each`.

    Raises:
        BadData: see `read_each`.
    """

    def read(reader: RowReader) -> Seed:
        text = reader.required_text("prompt")
        if _OPEN_END.search(text):
            if "target" in reader.row and reader.row["target"] != "":
                text = reader.required_text("target")
            else:
                told = "this is a few-shot prompt and no instruction; `propose --ready` sends such prompts as they are"
                reader.note("prompt", "FP015", told)
        return Seed(text, reader.required_text(group_field) if group_field else "")

    return read_each(source, read, empty=False, bad_rows=bad_rows)


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
        text = reader.required_text("attacker_prompt" if "attacker_prompt" in reader.row else "prompt")
        group = reader.required_text(group_field) if group_field else ""
        examples = (part.strip() for part in _NUMBER.split(text)[1:])
        return FewShot(reader.id() or str(reader.line), text, tuple(filter(None, examples)), "", group)

    found = read_identified(source, read, bad_rows=bad_rows)
    return found[: limit or None]


def check_few_shot_template(template: str, shots: int) -> str:
    """The template, if it shows all examples: with {examples}, or with each of {example_1}, {example_2}, ...

    Raises:
        ValueError: a field is missing, or there is an unknown one.
    """
    own = [f"example_{number}" for number in range(1, shots + 1)]
    if any(f"{{{name}}}" in template for name in own):
        return check_template(template, *own, optional=("examples", "count", "group"))
    return check_template(template, "examples", optional=("count", "group"))


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
    check_few_shot_template(template, shots)
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
        prompt = filled(template, count=shots, examples=listed(examples), group=group, **own)
        made.append(FewShot(f"{seed}-{number}", prompt, tuple(examples), left, group))
    return made


def listed(instructions: Sequence[str]) -> str:
    """Instructions as a numbered list."""
    return "\n".join(f"{number}. {text}" for number, text in enumerate(instructions, start=1))
