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
    path: Path,
    output: Path,
    *,
    proposed: Path,
    checked: Path | None = None,
    above_invalid: bool = False,
    per_prompt: int,
    seed: int,
    bad_rows: BadRows | None = None,
) -> Pairs:
    """Write pairs of judged proposals, and `<stem>.report.json` with statistics of the few-shot prompts.

    Args:
        path: proposals with `label`.
        output: the JSON Lines file to write.
        proposed: the file that `propose` wrote; it also names few-shot prompts without a judged proposal.
        checked: the file that `validate` wrote; the proposals that it left out as invalid are invalid, like those of
            `proposed`.
        above_invalid, per_prompt, seed: see `pairs`.
        bad_rows: see `read_judged`; of `path`, not of `proposed`, which `propose` wrote.

    Raises:
        BadData: a row of `path` is not a judged proposal, or `proposed` is not JSON Lines.
        ValueError: a few-shot prompt of `path` or `checked` is not in `proposed`.
    """
    judged = read_judged(path, ("prompt", "few_shot", "few_shot_prompt"), bad_rows=bad_rows)
    rows = [*read_dicts(proposed), *(each.row for each in read(proposed, LEFT_OUT))]
    known = dict.fromkeys(str(row["few_shot"]) for row in rows)
    left_out = [each for file in (proposed, checked) if file is not None for each in read(file, LEFT_OUT)]
    invalid = [each.row for each in left_out if each.kind == "invalid"]
    for file, found in ((path, judged), (checked or proposed, invalid)):
        if strange := {str(row.get("few_shot")) for row in found} - known.keys():
            raise ValueError(f"{file}: the few-shot prompt {min(strange)} is not in {proposed}")
    made = pairs(known, judged, invalid, above_invalid=above_invalid, per_prompt=per_prompt, seed=seed)
    write_json(
        output.with_suffix(".report.json"),
        {
            "job": "reversegen pair",
            "per_prompt": per_prompt,
            "seed": seed,
            "judged": len(judged),
            "few_shot_prompts": dict(made.prompts),
            "contradictory": made.contradictory,
            "above_invalid": made.above_invalid,
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
    """The number of proposals in no pair because the same text ended in two ways for one few-shot prompt."""
    above_invalid: int
    """The number of pairs with an invalid proposal, always as the worse one."""


FAILING, SOLVED, INVALID = "failing", "solved", "invalid"


def pairs(
    few_shot_ids: Iterable[str],
    judged: Iterable[Row],
    invalid: Iterable[Row] = (),
    *,
    above_invalid: bool = False,
    per_prompt: int,
    seed: int,
) -> Pairs:
    """Failing above solved proposals of each few-shot prompt; proposals of a kind are used about equally often.

    An invalid proposal is above none: a text that was found invalid for a few-shot prompt is in no pair as the better
    one, also where a copy of it got a verdict. The paper has no pairs with invalid proposals.

    Args:
        few_shot_ids: of all few-shot prompts, also those without a judged proposal.
        judged: proposals with `label`, which is false if the target failed.
        invalid: proposals that are not a usable instruction. Empty ones are in no pair.
        above_invalid: also put failing proposals above invalid ones.
        per_prompt: most pairs of one few-shot prompt, and as many again above invalid ones; below that, as many as the
            larger of the two kinds has texts.
        seed: of the random order in which proposals are combined.
    """
    found: dict[str, dict[str, dict[str, str]]] = {
        each: {FAILING: {}, SOLVED: {}, INVALID: {}} for each in few_shot_ids
    }
    prompts: dict[str, str] = {}
    told = [(SOLVED if row["label"] else FAILING, row) for row in judged] + [(INVALID, row) for row in invalid]
    for kind, row in told:
        few_shot, text = str(row["few_shot"]), str(row["prompt"])
        if text:
            found[few_shot][kind].setdefault(normalised(text), text)
            prompts[few_shot] = str(row["few_shot_prompt"])
    made, counts, contradictory = [], Counter(dict.fromkeys(("both", "failing only", "solved only", "neither"), 0)), 0
    above = 0
    for few_shot, kinds in found.items():
        ends = Counter(text for texts in kinds.values() for text in texts)
        failing, solved, bad = ([text for k, text in texts.items() if ends[k] == 1] for texts in kinds.values())
        contradictory += sum(count for count in ends.values() if count > 1)
        name = {(1, 1): "both", (1, 0): "failing only", (0, 1): "solved only", (0, 0): "neither"}
        counts[name[bool(failing), bool(solved)]] += 1
        chance = random.Random(f"{seed}:{few_shot}")
        for texts in (failing, solved, bad):
            chance.shuffle(texts)
        for worse in (solved, bad if above_invalid else []):
            both = failing and worse
            for i in range(min(per_prompt, max(len(failing), len(worse))) if both else 0):
                better, other = failing[i % len(failing)], worse[i % len(worse)]
                prompt = (Message("user", prompts[few_shot]),)
                made.append(Pair(f"{few_shot}/{content_id(prompt, better, other)}", prompt, better, other))
                above += worse is bad
    return Pairs(made, counts, contradictory, above)
