"""`finepref reversegen pair`: pairs of judged proposals, for training the proposer."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from finepref.formats.bad_rows import BadRows
from finepref.formats.files import write_json
from finepref.formats.jsonl import write_jsonl
from finepref.formats.records import Message, Pair, content_id, to_row
from finepref.synth.dedup import normalised
from finepref.synth.left_out import LEFT_OUT, read
from finepref.synth.reversegen.instructions import Row, read_dicts, read_judged


def pair(
    path: Path, output: Path, *, proposed: Path, per_prompt: int, seed: int, bad_rows: BadRows | None = None
) -> Pairs:
    """Write pairs of judged proposals, and `<stem>.report.json` with statistics of the few-shot prompts.

    Args:
        path: proposals with `label`.
        output: the JSON Lines file to write.
        proposed: the file that `propose` wrote; it also names few-shot prompts without a judged proposal.
        per_prompt: most pairs of one few-shot prompt.
        seed: see `pairs`.
        bad_rows: see `read_judged`; of `path`, not of `proposed`, which `propose` wrote.

    Raises:
        BadData: a row of `path` is not a judged proposal, or `proposed` is not JSON Lines.
        ValueError: a few-shot prompt is not in `proposed`.
    """
    judged = read_judged(path, ("prompt", "few_shot", "few_shot_prompt"), bad_rows=bad_rows)
    rows = [*read_dicts(proposed), *(each.row for each in read(proposed, LEFT_OUT))]
    known = dict.fromkeys(str(row["few_shot"]) for row in rows)
    if strange := {str(row["few_shot"]) for row in judged} - known.keys():
        raise ValueError(f"{path}: the few-shot prompt {min(strange)} is not in {proposed}")
    made = pairs(known, judged, per_prompt=per_prompt, seed=seed)
    write_json(
        output.with_suffix(".report.json"),
        {
            "job": "reversegen pair",
            "per_prompt": per_prompt,
            "seed": seed,
            "judged": len(judged),
            "few_shot_prompts": dict(made.prompts),
            "contradictory": made.contradictory,
            "pairs": len(made.pairs),
        },
    )
    write_jsonl(output, map(to_row, made.pairs))
    return made


class Pairs(NamedTuple):
    """Pairs for the proposer, and statistics of the few-shot prompts."""

    pairs: list[Pair]
    prompts: Counter[str]
    """The number of few-shot prompts with failing and solved proposals ("both"), one kind only, or neither."""
    contradictory: int
    """The number of proposals in no pair because the same text was judged both ways for one few-shot prompt."""


def pairs(few_shot_ids: Iterable[str], judged: Iterable[Row], *, per_prompt: int, seed: int) -> Pairs:
    """Failing above solved proposals of each few-shot prompt; proposals of a kind are used about equally often.

    Args:
        few_shot_ids: of all few-shot prompts, also those without a judged proposal.
        judged: proposals with `label`, which is false if the target failed.
        per_prompt: most pairs of one few-shot prompt; below that, as many as its larger kind has texts.
        seed: of the random order in which proposals are combined.
    """
    found: dict[str, dict[bool, dict[str, str]]] = {each: {False: {}, True: {}} for each in few_shot_ids}
    prompts: dict[str, str] = {}
    for row in judged:
        few_shot, text = str(row["few_shot"]), str(row["prompt"])
        found[few_shot][bool(row["label"])].setdefault(normalised(text), text)
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
