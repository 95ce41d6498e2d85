"""The jobs of ReverseGen after the judge: pairs for the proposer, records for the target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from finepref.formats.files import write_json
from finepref.formats.jsonl import write_jsonl
from finepref.formats.records import to_row
from finepref.synth.ask import left_out_of, read_asked, read_dicts
from finepref.synth.reversegen.few_shots import Pairs, check_template, improvements, pairs


class Improved(NamedTuple):
    """Judged rows = written + left out, and the latter by reason."""

    written: int
    left_out: Counter[str]


def pair(path: Path, output: Path, *, proposed: Path, per_prompt: int, seed: int) -> Pairs:
    """Write pairs of judged proposals, and beside them `<stem>.report.json` with the statistics of few-shot prompts.

    Raises:
        BadData: a file is not JSON Lines.
        ValueError: a row is no judged proposal.
    """
    judged = read_dicts(path)
    for row in judged:
        if type(row.get("label")) is not bool or not {"prompt", "few_shot", "few_shot_prompt"} <= row.keys():
            raise ValueError(f"{path}: {row.get('id')} has no label, or is no proposal (few_shot, few_shot_prompt)")
    aside = left_out_of(proposed)
    rows = read_dicts(proposed) + (read_dicts(aside) if aside.exists() else [])
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


def improve(
    paths: Sequence[Path],
    output: Path,
    *,
    answers: Sequence[Path] = (),
    exclude: Path | None = None,
    ask: str = "{prompt}",
    template: str = "{answer}",
    solved_template: str = "",
) -> Improved:
    """Write the target's training records {id, prompt, response}, and a report that counts what gives none.

    Args:
        paths: judged proposals, a file per round.
        output: the JSON Lines file to write; the report is `<stem>.report.json`.
        answers: judged rows of a better model; a row's response is a good answer where its label is true.
        exclude: rows whose prompts must not be trained on.
        ask, template, solved_template: see `improvements`.

    Raises:
        BadData: a file is not JSON Lines.
        ValueError: a template has unknown fields, or an id is there twice.
    """
    check_template(ask, "prompt")
    for text in filter(None, (template, solved_template)):
        check_template(text, optional=("answer", "majority"))
    judged = [row for path in paths for row in read_dicts(path)]
    if len({row["id"] for row in judged}) < len(judged):
        raise ValueError("an id is there twice: each round needs its own seed")
    good = {
        str(row["id"]): str(row["response"]) for path in answers for row in read_dicts(path) if row["label"] is True
    }
    barred = [each.prompt[-1].content for each in read_asked(exclude)] if exclude is not None else []
    made = [*improvements(judged, good, exclude=barred, ask=ask, template=template, solved_template=solved_template)]
    left_out = Counter(reason for reason, _ in made if reason)
    write_json(
        output.with_suffix(".report.json"),
        {"job": "reversegen improve", "judged": len(judged), "left_out": dict(left_out)},
    )
    return Improved(write_jsonl(output, (row for reason, row in made if not reason)), left_out)
