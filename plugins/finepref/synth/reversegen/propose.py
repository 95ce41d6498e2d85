"""`finepref reversegen propose`: instructions that the proposer writes after few-shot prompts."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from finepref.formats.bad_rows import BadRows
from finepref.formats.records import Message
from finepref.synth.ask import Job, work_folder
from finepref.synth.data_sources.job_rows import Rows, rows_of
from finepref.synth.dedup import normalised
from finepref.synth.engines.protocol import Completion, Engine, Sampling
from finepref.synth.left_out import Ledger, Written, unanswered
from finepref.synth.reversegen.few_shots import (
    SEEDS,
    TEMPLATE,
    FewShot,
    check_few_shot_template,
    few_shots,
    open_number,
    read_few_shots,
    read_seeds,
)
from finepref.synth.reversegen.instructions import ask_times, write
from finepref.synth.reversegen.templates import version


def propose(
    source: Rows,
    output: Path,
    *,
    prompts: int = 0,
    n: int,
    shots: int,
    seed: int,
    engine: Engine,
    template: str = TEMPLATE,
    group_field: str = "",
    max_new_tokens: int = 512,
    temperature: float = 1.0,
    top_p: float = 0.98,
    work_dir: Path | None = None,
    ready: bool = False,
    bad_rows: BadRows | None = None,
) -> Written:
    """Write n proposals for each of `prompts` few-shot prompts.

    Args:
        source: seeds {prompt, ...}, or the questions of any layout; with `ready`, few-shot prompts, see
            `read_few_shots`.
        output: the JSON Lines file to write.
        prompts: the number of few-shot prompts; with `ready`, 0 takes all of the file.
        n: proposals for each of them.
        shots: seeds in each of them.
        seed: random seed of the prompts and the proposals.
        engine: the proposer.
        template: of the few-shot prompts.
        group_field: see `read_seeds`.
        max_new_tokens, temperature, top_p: of the proposals.
        work_dir: folder of the journal; by default `<stem>.work` beside the output.
        ready: send the few-shot prompts of the file as they are; shots and template are not used. Their ids get the
            seed before them, so that those of several rounds differ.
        bad_rows: see `read_seeds`.

    Raises:
        BadData: the seeds have problems.
        ValueError: `prompts` is 0 and not `ready`; see `few_shots` and `ask_each`.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    given = rows_of(source, SEEDS)
    settings: dict[str, object] = {"prompts": prompts, "shots": shots, "group_field": group_field}
    if ready:
        settings["ready"] = True
        found = read_few_shots(given, limit=prompts, group_field=group_field, bad_rows=bad_rows)
        made = [each._replace(id=f"{seed}-{each.id}") for each in found]
    else:
        if not prompts:
            raise ValueError("the number of few-shot prompts is missing: --prompts")
        check_few_shot_template(template, shots)
        seeds = read_seeds(given, group_field=group_field, bad_rows=bad_rows)
        made = few_shots(seeds, prompts, shots=shots, seed=seed, template=template)
    answers = ask_times(
        {each.id: (Message("user", each.prompt),) for each in made},
        n,
        engine=engine,
        sampling=Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p),
        job=Job(
            name="reversegen propose",
            source=given,
            folder=work_folder(output, work_dir),
            prompt_version=version(template),
            settings=settings,
            seed=seed,
        ),
    )
    rows, left_out = [], Ledger()
    for each in made:
        for number, answer in enumerate(answers[each.id]):
            found = proposal(each, number, answer, group_field=group_field)
            if found.kind:
                left_out.add(found.row, found.reason, kind=found.kind)
            else:
                rows.append(found.row)
    return write(output, rows, left_out)


class Proposal(NamedTuple):
    """The row for one request, and the class and reason if it is not a usable instruction (`kind` is "" if it is)."""

    row: dict[str, object]
    kind: str = ""
    reason: str = ""


def proposal(few_shot: FewShot, number: int, answer: Completion, *, group_field: str = "") -> Proposal:
    """One sample of a few-shot prompt as a row.

    invalid: empty, truncated (cut off by the limit), a copy of an instruction in the prompt, or more than one
    instruction (the prompt ends in "Q4." and the text goes on with "Q5."). unproposed: the engine failed, so there is
    no text. A text that repeats the number at the end of the prompt is used without it.
    """
    text = answer.text.strip()
    own, further = open_number(few_shot.prompt) or ("", "")
    text = text.removeprefix(own).strip()
    row: dict[str, object] = {"id": f"{few_shot.id}-{number}", "prompt": text}
    row |= {"few_shot": few_shot.id, "few_shot_prompt": few_shot.prompt}
    if group_field:
        row[group_field] = few_shot.group
    if answer.error is not None:
        return Proposal(row, "unproposed", unanswered(answer.error))
    if not text:
        return Proposal(row, "invalid", "empty")
    if answer.stop_reason != "stop":
        return Proposal(row, "invalid", "truncated")
    if further and any(line.lstrip().startswith(f"{further} ") for line in text.splitlines()):
        return Proposal(row, "invalid", "more than one instruction")
    if normalised(text) in map(normalised, few_shot.examples):
        return Proposal(row, "invalid", "copy of an example")
    return Proposal(row)
