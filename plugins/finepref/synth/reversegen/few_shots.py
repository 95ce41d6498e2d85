"""ReverseGen (arXiv 2410.16736): a proposer learns to write instructions at which a target model fails.

    few-shot prompt  shows the proposer some seeds and asks for one more instruction
    proposal         an instruction that it wrote; the target answers it, a judge says whether it failed
    pair             two proposals for the same few-shot prompt: one that the target failed, above one that it solved
    improvement      a failing instruction with a good answer, for the target

Rows of proposals have `prompt` (the instruction, which is what the target is asked), `few_shot` (the id of the
few-shot prompt), `few_shot_prompt` (its text) and, once judged, `label`. The released code pairs the target's
responses out of independently shuffled lists, merges equal prompts and drops the last batch: nothing here does.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from finepref.formats.records import Message, Pair, content_id
from finepref.synth.engines.protocol import Completion

TEMPLATE = """\
Below are {count} instructions. Write one more of the same kind that differs from all of them. Reply with the new \
instruction and nothing else.

{examples}
"""
"""A few-shot prompt; a template may also have {group}."""

Row = Mapping[str, object]


class Seed(NamedTuple):
    """An instruction to start from; seeds of one group are shown together."""

    prompt: str
    group: str = ""


class FewShot(NamedTuple):
    """A few-shot prompt, the seeds that it shows, and one of the same group that it does not show."""

    id: str
    prompt: str
    examples: tuple[str, ...]
    next: str
    group: str = ""


class Proposal(NamedTuple):
    """What came of one request: a row, and why it is no instruction to go on with (`kind` is "" if it is one)."""

    row: dict[str, object]
    kind: str = ""
    reason: str = ""


def few_shots(seeds: Sequence[Seed], n: int, *, shots: int, seed: int, template: str = TEMPLATE) -> list[FewShot]:
    """Few-shot prompts of `shots` different seeds of one group each; each has an id of its own, even if texts repeat.

    The group is that of a seed drawn by chance, so that groups count by their size.

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
        prompt = _filled(template, count=shots, examples=listed(examples), group=group)
        made.append(FewShot(f"{seed}-{number}", prompt, tuple(examples), left, group))
    return made


def listed(instructions: Sequence[str]) -> str:
    """Instructions as a numbered list."""
    return "\n".join(f"{number}. {text}" for number, text in enumerate(instructions, start=1))


def warmup_row(few_shot: FewShot) -> dict[str, str]:
    """A record for the proposer's warm-up: the response is a seed that the prompt does not show."""
    return {"id": few_shot.id, "prompt": few_shot.prompt, "response": few_shot.next}


def proposal(few_shot: FewShot, number: int, answer: Completion, *, group_field: str = "") -> Proposal:
    """One sample of a few-shot prompt as a row, judged as far as the text itself tells.

    invalid: empty, truncated (it did not end), or a copy of an instruction that the prompt shows. unproposed: the
    engine failed, so there is no text.
    """
    text = answer.text.strip()
    row: dict[str, object] = {"id": f"{few_shot.id}-{number}", "prompt": text}
    row |= {"few_shot": few_shot.id, "few_shot_prompt": few_shot.prompt}
    if group_field:
        row[group_field] = few_shot.group
    if answer.error is not None:
        return Proposal(row, "unproposed", f"engine: {answer.error}")
    if not text:
        return Proposal(row, "invalid", "empty")
    if answer.stop_reason != "stop":
        return Proposal(row, "invalid", "truncated")
    if key(text) in map(key, few_shot.examples):
        return Proposal(row, "invalid", "copy of an example")
    return Proposal(row)


class Pairs(NamedTuple):
    """Pairs for the proposer, and what the few-shot prompts had."""

    pairs: list[Pair]
    prompts: Counter[str]
    """How many few-shot prompts have failing and solved proposals ("both"), one kind only, or neither."""
    contradictory: int
    """Proposals that are in no pair, as the same text was judged both ways for one few-shot prompt."""


def pairs(few_shot_ids: Iterable[str], judged: Iterable[Row], *, per_prompt: int, seed: int) -> Pairs:
    """Failing above solved proposals of each few-shot prompt, each proposal about as often as the others of its kind.

    Args:
        few_shot_ids: of all prompts that were asked, also of those without one judged proposal.
        judged: proposals with `label`: false where the target failed.
        per_prompt: most pairs of one few-shot prompt; it has as many as its greater kind has texts, up to this.
        seed: of the order in which proposals meet.
    """
    found: dict[str, dict[bool, dict[str, str]]] = {each: {False: {}, True: {}} for each in few_shot_ids}
    prompts: dict[str, str] = {}
    for row in judged:
        few_shot, text = str(row["few_shot"]), str(row["prompt"])
        found[few_shot][bool(row["label"])].setdefault(key(text), text)
        prompts[few_shot] = str(row["few_shot_prompt"])
    made, counts, contradictory = [], Counter(dict.fromkeys(("both", "failing only", "solved only", "neither"), 0)), 0
    for few_shot, kinds in found.items():
        both_ways = kinds[False].keys() & kinds[True].keys()
        contradictory += 2 * len(both_ways)
        failing, solved = ([text for k, text in kinds[label].items() if k not in both_ways] for label in (False, True))
        kind = {(1, 1): "both", (1, 0): "failing only", (0, 1): "solved only", (0, 0): "neither"}
        counts[kind[bool(failing), bool(solved)]] += 1
        if failing and solved:
            chance = random.Random(f"{seed}:{few_shot}")
            chance.shuffle(failing)
            chance.shuffle(solved)
            for i in range(min(per_prompt, max(len(failing), len(solved)))):
                better, worse = failing[i % len(failing)], solved[i % len(solved)]
                prompt = (Message("user", prompts[few_shot]),)
                made.append(Pair(f"{few_shot}/{content_id(prompt, better, worse)}", prompt, better, worse))
    return Pairs(made, counts, contradictory)


def improvements(
    judged: Iterable[Row],
    answers: Mapping[str, str],
    *,
    exclude: Iterable[str] = (),
    ask: str = "{prompt}",
    template: str = "{answer}",
    solved_template: str = "",
) -> Iterator[tuple[str, dict[str, object]]]:
    """Per judged proposal its record for the target's training and "", or its row and why it gives none.

    Args:
        judged: proposals with `label`; those that the target solved are used with `solved_template` only.
        answers: good answers by id; where there is none, a row's own `chosen`.
        exclude: instructions that must not be trained on, such as those of the evaluation.
        ask: what the target is asked, with {prompt}.
        template: of the response, with {answer} (the good one) or {majority} (the most frequent of the responses).
        solved_template: of the response to an instruction that the target solved, likewise.
    """
    known, barred = set[str](), {key(text) for text in exclude}
    for row in judged:
        wanted = solved_template if row["label"] else template
        prompt, row_id = str(row["prompt"]), str(row["id"])
        if not wanted:
            yield "solved", dict(row)
            continue
        fields = {"answer": answers.get(row_id, row.get("chosen")), "majority": majority(row.get("responses"))}
        if key(prompt) in barred:
            yield "excluded", dict(row)
        elif any(value is None and f"{{{name}}}" in wanted for name, value in fields.items()):
            yield "without a good answer", dict(row)
        elif key(prompt) in known:
            yield "proposed before", dict(row)
        else:
            known.add(key(prompt))
            yield (
                "",
                {"id": row_id, "prompt": _filled(ask, prompt=prompt), "response": _filled(wanted, **fields)},
            )


def key(text: str) -> str:
    """Equal for texts that are equal but for case and white space."""
    return " ".join(text.casefold().split())


def majority(responses: object) -> str | None:
    """The most frequent of several responses, the first of them on a tie; None where there are none."""
    if not isinstance(responses, list) or not responses:
        return None
    first: dict[str, str] = {}
    counts = Counter(key(each) for each in responses)
    for each in responses:
        first.setdefault(key(each), each)
    return first[counts.most_common(1)[0][0]]


def check_template(template: str, *required: str, optional: Sequence[str] = ()) -> str:
    """The template, if it has the required fields and no unknown ones.

    Raises:
        ValueError: it has not.
    """
    values = {name: f"<{name}>" for name in (*required, *optional)}
    filled = _filled(template, **values)
    if missing := [name for name in required if values[name] not in filled]:
        raise ValueError(f"the template has no {{{missing[0]}}}")
    return template


def version(*texts: str) -> str:
    """The version of a prompt, for the journal."""
    return "reversegen-" + hashlib.blake2b("\0".join(texts).encode(), digest_size=4).hexdigest()


def _filled(template: str, **values: object) -> str:
    try:
        return template.format(**values)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        known = ", ".join(f"{{{name}}}" for name in values)
        raise ValueError(f"the template may have {known} and no other braces: {error!r}") from None
