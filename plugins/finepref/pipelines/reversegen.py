"""ReverseGen as one resumable run: find instructions that a target model fails, then train it on them.

    warmup     SFT of the proposer on few-shot prompts
    round_k    propose, dedup, validate, answer, judge, evaluate; pairs; DPO of the proposer, with the proposer at the
               start of the round as reference
    final      proposals of the last proposer, judged in the same way
    before     the target on the held-out file
    improve    SFT of the target on good answers to all instructions that it failed
    after      the improved target on the held-out file
    control    the same training on as many seeds, and that target on the held-out file (`improve: {control: true}`)
    repeat_k   all of this again with other seeds, but for `before`, which no training changes (`repeats`)

The parameters of `reversegen` are the keys of the YAML file; its sections are options of a step's command, or settings
of the host: a recipe with keys on top, or flags.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from finepref.formats.bad_rows import MAX_BAD
from finepref.pipelines import reversegen_report
from finepref.pipelines.reversegen_hosts import Host, LlamaFactory, OpenRLHF
from finepref.pipelines.reversegen_loop import Loop
from finepref.pipelines.reversegen_parts import Run, Section, Solver, Source
from finepref.pipelines.settings import bad_row_options
from finepref.pipelines.steps import Pipeline


class LearntNothing(RuntimeError):  # noqa: N818
    """The report is written, but nothing, or not the target, was trained after the warm-up.

    Attributes:
        proposer: whether a round trained the proposer.
    """

    def __init__(self, told: str, *, proposer: bool) -> None:
        super().__init__(told)
        self.proposer = proposer


def reversegen(
    *,
    pipeline: Pipeline,
    proposer: str,
    target: str,
    rounds: int,
    propose: Section,
    dedup: Section,
    answer: Section,
    judge: Section,
    warmup: Section,
    warmup_training: Section,
    proposer_training: Section,
    target_training: Section,
    export: Section,
    gym: Section | None = None,
    seeds: str | None = None,
    held_out: str | None = None,
    few_shot: Section | None = None,
    validate: Section | None = None,
    teacher: Section | None = None,
    pair: Section | None = None,
    improve: Section | None = None,
    evaluate: Section | None = None,
    ask: str = "{prompt}",
    seed: int = 0,
    repeats: int = 1,
    host: Literal["llamafactory", "openrlhf"] = "llamafactory",
    launcher: str = "",
    private: bool = False,
    bad_rows: Literal["error", "skip"] = "error",
    max_bad: str | float = MAX_BAD,
) -> None:
    """Run all steps that are not done yet, and write report.md.

    Args:
        pipeline: the run's folder.
        proposer, target: model folders or names; smollm2 = SmolLM2-135M-Instruct, which the run makes first. If one of
            them is, `validate` and `teacher` may have `model: smollm2` too.
        rounds: of DPO of the proposer.
        propose, dedup, validate, answer, judge, pair, improve, evaluate: options of the commands with these names;
            without `validate` all instructions are answered. `propose: {ready: FILE}` sends the few-shot prompts of a
            file as they are. `improve: {control: true}` also trains the target on as many seeds, taken without regard
            to failure.
        teacher: options of `finepref reversegen answer` for the model whose answers the target learns if they pass
            the judge; without it, the rows' own `chosen` is used.
        warmup: options of `finepref reversegen warmup`; `warmup: {ready: FILE}` trains on the rows of a file as they
            are.
        warmup_training, proposer_training, target_training, export: `recipe`, and keys of LLaMA-Factory on top of it,
            or OpenRLHF's flags.
        gym: take seeds and held-out questions from reasoning-gym: name, seeds, held_out (number of each), option; and
            choices, the number of options of multiple-choice questions that are made of them.
        seeds, held_out: your own files instead; seeds are not needed if warmup and propose have their own files.
        few_shot: options of both warmup and propose: shots, template, group.
        ask: the question to models, with {prompt} for the instruction.
        seed: random seed; round k uses seed + k, repeat r seeds that are 1000 (r - 1) higher.
        repeats: how often the whole loop runs, with other random seeds (of few-shot prompts, proposals, answers and
            trainings) on the same seed and held-out instructions. It costs so many times as much; the first repeat is
            a run without repeats, so that more can be added later.
        host: the host that trains; it must be installed in the current environment.
        launcher: see `finepref.pipelines.apo.apo`.
        private: never print, log or report an instruction.
        bad_rows, max_bad: --bad-rows and --max-bad of every step that reads rows.

    Raises:
        ValueError: settings contradict each other.
        LearntNothing: see there.
        StepChanged, StepFailed: see `Pipeline`.
    """
    run = Run(pipeline, private, bad_row_options(bad_rows, str(max_bad)))
    trainings = {
        "warmup_training": warmup_training,
        "proposer_training": proposer_training,
        "target_training": target_training,
    }
    trains: Host = (OpenRLHF if host == "openrlhf" else LlamaFactory)(
        pipeline, trainings, export, launcher, private=private
    )
    if repeats < 1:
        raise ValueError("repeats is below 1: there would be no run")
    own_files = "ready" in warmup and "ready" in propose
    with_control = bool((improve or {}).get("control"))
    if gym is None and (held_out is None or (seeds is None and (with_control or not own_files))):
        raise ValueError("give seeds and held_out, or gym")
    if gym is not None and (seeds is not None or held_out is not None):
        raise ValueError("give seeds and held_out, or gym")
    source = Source(run, {"seed": seed, "option": [], "choices": 0, **gym}) if gym is not None else None
    if source is not None:
        first, second = source.slice("data/seeds", "seeds"), source.slice("data/held_out", "held_out")
    else:
        first, second = Path(str(seeds or warmup["ready"])), Path(str(held_out))
    if "smollm2" in (proposer, target):
        made = str(run.smollm2())
        proposer, target = (made if name == "smollm2" else name for name in (proposer, target))
        validate, teacher = (
            section | {"model": made} if section and section.get("model") == "smollm2" else section
            for section in (validate, teacher)
        )
    loop = Loop(
        run,
        trains,
        sections={
            "few_shot": few_shot or {},
            "warmup": warmup,
            "propose": propose,
            "pair": pair or {},
            "improve": {name: value for name, value in (improve or {}).items() if name != "control"},
            **trainings,
        },
        solver=Solver(
            run, validate=validate, judge=judge, dedup=dedup, answer=answer | {"ask": ask}, evaluate=evaluate
        ),
        models=(proposer, target),
        files=(first, second),
        rounds=rounds,
        seed=seed,
        teacher=None if teacher is None else teacher | {"ask": ask},
        ask=ask,
        control=(source or first) if with_control else None,
    )
    done = [loop.repeat(number) for number in range(1, repeats + 1)]
    reversegen_report.write(pipeline, done, private=private)
    said = reversegen_report.lead(done).strip()
    if not any(each.target for each in done):
        raise LearntNothing(said, proposer=any(any(each.rounds) for each in done))
    if said:
        print(said, flush=True)
