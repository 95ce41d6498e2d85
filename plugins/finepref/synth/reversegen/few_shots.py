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
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from finepref.formats.jsonl import read_rows
from finepref.formats.problems import BadData, Problem
from finepref.formats.row import RowReader
from finepref.synth.reversegen.templates import filled

TEMPLATE = """\
Below are {count} instructions. Write one more of the same kind that differs from all of them. Reply with the new \
instruction and nothing else.

{examples}
"""
"""The default template of a few-shot prompt; another template may also have {group}."""

FIELDS = ("examples",), ("count", "group")
"""The fields that a template must have, and those that it may have."""


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


def read_seeds(path: Path, *, group_field: str = "") -> list[Seed]:
    """The instructions of a file {prompt, ...}.

    Args:
        path: of the file.
        group_field: the field with a seed's group, such as subject; "" puts all seeds into one group.

    Raises:
        BadData: with all problems of the file.
    """
    seeds: list[Seed] = []
    problems: list[Problem] = []
    for raw in read_rows(path):
        problems += raw.problems
        if raw.value is not None:
            reader = RowReader(raw.value, columns={}, file=str(path), line=raw.line, nulls_absent=False)
            seeds.append(
                Seed(reader.required_text("prompt"), reader.required_text(group_field) if group_field else "")
            )
            problems += reader.problems
    if problems:
        raise BadData(problems)
    return seeds


def few_shots(seeds: Sequence[Seed], n: int, *, shots: int, seed: int, template: str = TEMPLATE) -> list[FewShot]:
    """Few-shot prompts, each with `shots` different seeds of one group; each has its own id, even if texts repeat.

    The group is that of a random seed, so that a group is chosen in proportion to its size.

    Args:
        seeds: instructions to show.
        n: the number of few-shot prompts.
        shots: seeds in each of them.
        seed: random seed.
        template: with {examples}, and possibly {count} and {group}.

    Raises:
        ValueError: a group has too few different seeds, or the template has no {examples} or an unknown field.
    """
    groups: dict[str, list[str]] = {}
    for each in seeds:
        members = groups.setdefault(each.group, [])
        if each.prompt not in members:
            members.append(each.prompt)
    if small := [group for group, members in groups.items() if len(members) <= shots]:
        told = f"the group {small[0]!r} has" if small[0] else "there are"
        raise ValueError(f"{told} {len(groups[small[0]])} different seeds: more than {shots} shots are needed")
    made = []
    for number in range(n):
        chance = random.Random(f"{seed}:{number}")
        group = chance.choice(seeds).group
        *examples, left = chance.sample(groups[group], shots + 1)
        prompt = filled(template, count=shots, examples=listed(examples), group=group)
        made.append(FewShot(f"{seed}-{number}", prompt, tuple(examples), left, group))
    return made


def listed(instructions: Sequence[str]) -> str:
    """Instructions as a numbered list."""
    return "\n".join(f"{number}. {text}" for number, text in enumerate(instructions, start=1))
