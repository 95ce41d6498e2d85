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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from finepref.formats.bad_rows import MAX_BAD
from finepref.pipelines import reversegen_report
from finepref.pipelines.reversegen_hosts import Host, LlamaFactory, OpenRLHF
from finepref.pipelines.reversegen_report import Repeat
from finepref.pipelines.settings import bad_row_options, options
from finepref.pipelines.steps import Pipeline, folders

MAY_BE_EMPTY = {"propose", "validate", "answer", "pair", "improve"}
"""Steps after which the run goes on without a row, or says itself what is missing."""
APART = 1000
"""How far the seeds of two repeats are apart; each round of a repeat has one of its own."""

Section = dict[str, object]


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
    run = _Run(pipeline, private, bad_row_options(bad_rows, str(max_bad)))
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
    source = _Source(run, {"seed": seed, "option": [], "choices": 0, **gym}) if gym is not None else None
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
    loop = _Loop(
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
        solver=_Solver(
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


class _Loop:
    """The whole loop, which can be run several times with other seeds.

    Args:
        run: the run.
        host: trains.
        sections: options of the steps that the loop runs itself, and settings of the trainings.
        solver: applies a target to instructions.
        models: proposer and target.
        files: seeds and held-out instructions.
        rounds: of DPO of the proposer.
        seed: of the first repeat.
        teacher: options of the model whose answers the target learns; None = the rows' own.
        ask: the question to models.
        control: where the control's seeds are from; None = no control.
    """

    def __init__(
        self,
        run: _Run,
        host: Host,
        *,
        sections: Mapping[str, Section],
        solver: _Solver,
        models: tuple[str, str],
        files: tuple[Path, Path],
        rounds: int,
        seed: int,
        teacher: Section | None,
        ask: str,
        control: _Source | Path | None,
    ) -> None:
        self.run, self.host, self.sections, self.solver = run, host, sections, solver
        (self.proposer, self.target), (self.seeds, self.held_out) = models, files
        self.rounds, self.seed, self.teacher, self.ask, self.control = rounds, seed, teacher, ask, control

    def repeat(self, number: int) -> Repeat:
        """Run the repeat of this number, from 1; returns what it trained."""
        here, more = "" if number == 1 else f"repeat_{number}/", APART * (number - 1)
        writer = self._warmed_up(here, more)
        found, trained = [], []
        for place in range(1, self.rounds + 2):
            name = f"{here}round_{place}" if place <= self.rounds else f"{here}final"
            proposals = self._proposals(name, writer, self.seed + more + place)
            judged = self.solver.judged(name, proposals, self.target, more=more)
            found.append(judged)
            if place <= self.rounds:
                pairs = self._pairs(name, proposals, judged, self.seed + more + place)
                section = self.host.with_seed(self.sections["proposer_training"], more)
                trained.append(self.host.makes_steps(_rows(pairs), section))
                if trained[-1]:
                    writer = self.host.dpo(name, writer, pairs, section)
        if number == 1:
            self.solver.judged("before", self.held_out, self.target, held_out=True)
        records = self._improvements(f"{here}improve", found, more, failing=True)
        better = self._taught(f"{here}improve", f"{here}after", records, more)
        control = None
        if self.control is not None:
            control = better and self._control(f"{here}control", _rows(records), more)
        return Repeat(here, tuple(trained), better, control)

    def _warmed_up(self, here: str, more: int) -> str:
        """The proposer after its warm-up."""
        own = dict(self.sections["warmup"])
        ready = own.pop("ready", None)
        source = self.seeds if ready is None else Path(str(ready))
        section = own | {"ready": True} if ready else self.sections["few_shot"] | own | {"seed": self.seed + more}
        records = self.run.command(
            f"{here}warmup/records", ["warmup", source], section, inputs=[source], output="warmup.jsonl"
        )
        training = self.host.with_seed(self.sections["warmup_training"], more)
        if not self.host.makes_steps(_rows(records), training):
            raise ValueError(f"warmup: {_rows(records)} records are less than a batch of warmup_training")
        return self.host.sft(f"{here}warmup", self.proposer, records, training)

    def _proposals(self, name: str, writer: str, seed: int) -> Path:
        own = dict(self.sections["propose"])
        ready = own.pop("ready", None)
        source = self.seeds if ready is None else Path(str(ready))
        shown = self.sections["few_shot"]
        if ready is not None:
            shown = {"ready": True, **{key: value for key, value in shown.items() if key == "group"}}
        return self.run.command(
            f"{name}/propose",
            ["propose", source],
            shown | own | {"seed": seed, "model": writer},
            inputs=[source, *folders(writer)],
            output="proposals.jsonl",
        )

    def _pairs(self, name: str, proposals: Path, judged: Path, seed: int) -> Path:
        checked = self.solver.checked(name)
        return self.run.command(
            f"{name}/pair",
            ["pair", judged],
            self.sections["pair"] | {"proposed": proposals, "checked": checked, "seed": seed},
            inputs=[judged, proposals, *([] if checked is None else [checked])],
            output="pairs.jsonl",
        )

    def _improvements(
        self, name: str, found: Sequence[Path], more: int, *, failing: bool, count: int | None = None
    ) -> Path:
        """Records for the target from judged instructions.

        Args:
            name: of the part of the run.
            found: files of judged instructions.
            more: is added to seeds.
            failing: ask the teacher for answers to the failing ones only.
            count: draw so many records; None = all.
        """
        good = []
        for number, judged in enumerate(found, start=1):
            if self.teacher is not None:
                answers = self.run.command(
                    f"{name}/answer_{number}",
                    ["answer", judged],
                    _with_seed(self.teacher, more) | {"failing": failing},
                    inputs=[judged],
                    output="answers.jsonl",
                )
                good.append(self.run.judge(f"{name}/judge_{number}", answers, self.solver.verdict))
        section = self.sections["improve"] | {"ask": self.ask, "exclude": self.held_out}
        if count is not None:
            taught = section.get("solved_template") or section.get("template") or "{answer}"
            section |= {"solved_template": taught, "count": count, "seed": self.seed + more}
        return self.run.command(
            f"{name}/records",
            ["improve", *found],
            section,
            inputs=[*found, *good, self.held_out],
            output="improve.jsonl",
            more=[word for path in good for word in ("--answers", path)],
        )

    def _taught(self, name: str, after: str, records: Path, more: int) -> bool:
        """Train the target on records and judge it on the held-out file; returns whether there was a step."""
        section = self.host.with_seed(self.sections["target_training"], more)
        if not self.host.makes_steps(_rows(records), section):
            return False
        better = self.host.sft(name, self.target, records, section)
        self.solver.judged(after, self.held_out, better, held_out=True, more=more)
        return True

    def _control(self, name: str, count: int, more: int) -> bool:
        """Train the target on `count` seeds that went the way of proposals, whatever the target said to them."""
        assert self.control is not None
        seeds = self.control if isinstance(self.control, Path) else self.control.further(f"{name}/data", count)
        judged = self.solver.judged(f"{name}/seeds", seeds, self.target, more=more, evaluated=False)
        records = self._improvements(name, [judged], more, failing=False, count=count)
        return self._taught(name, f"{name}/after", records, more)


def _with_seed(section: Section, more: int) -> Section:
    """Options of a command, with another seed in later repeats."""
    return section | {"seed": int(str(section.get("seed", 0))) + more} if more else section


def _rows(path: Path) -> int:
    with open(path, "rb") as lines:
        return sum(1 for line in lines if line.strip())


class _Run:
    """The steps that occur in several parts of the run."""

    def __init__(self, pipeline: Pipeline, private: bool, rows: Section) -> None:
        self.pipeline = pipeline
        self.private = private
        self.rows = rows
        """Options of every step that reads rows."""

    def command(
        self,
        step: str,
        words: list[object],
        section: Section,
        *,
        inputs: list[Path],
        output: str,
        more: list[object] | None = None,
    ) -> Path:
        """Run a command of `finepref reversegen`; returns the file that it writes.

        Args:
            step: name of the step.
            words: the command and its arguments.
            section: its options.
            inputs: files and folders that it reads.
            output: name of the file in the step's folder.
            more: further words.
        """
        made = self.pipeline.path(step, output)
        section = section | self.rows | ({"allow_empty": True} if words[0] in MAY_BE_EMPTY else {})
        command = ["finepref", "reversegen", *words, *options(section), *(more or []), "--output", made]
        self.pipeline.run(step, command, inputs=inputs, outputs=[made], private=self.private)
        return made

    def judge(self, step: str, answers: Path, section: Section) -> Path:
        """`finepref judge`."""
        made = self.pipeline.path(step, "judged.jsonl")
        section = section | self.rows | {"allow_empty": True}
        command = ["finepref", "judge", answers, *options(section), "--output", made]
        self.pipeline.run(step, command, inputs=[answers], outputs=[made], private=self.private)
        return made

    def smollm2(self) -> Path:
        """SmolLM2-135M-Instruct."""
        made = self.pipeline.path("models/smollm2", "model")
        self.pipeline.run("models/smollm2", ["finepref", "model", "smollm2", "--output", made], outputs=[made])
        return made


class _Source:
    """Questions from one list of reasoning-gym; slices of it share no question.

    Args:
        run: the run.
        section: name of the data set, seeds and held_out (number of questions of each), seed of the list, option
            (key=value of the data set), and choices (options of each question; 0 = none).

    Raises:
        ValueError: an entry is missing or unknown.
    """

    def __init__(self, run: _Run, section: Section) -> None:
        if section.keys() != {"name", "seeds", "held_out", "seed", "option", "choices"}:
            raise ValueError(f"gym has name, seeds, held_out, seed, option and choices, and not {', '.join(section)}")
        self.run, self.section = run, section
        self.counts = {name: int(str(section[name])) for name in ("seeds", "held_out")}

    def slice(self, step: str, name: str) -> Path:
        """The seeds, or the held-out questions."""
        return self._made(step, self.counts[name], 0 if name == "seeds" else self.counts["seeds"])

    def further(self, step: str, count: int) -> Path:
        """Questions after the held-out ones."""
        return self._made(step, count, sum(self.counts.values()))

    def _made(self, step: str, count: int, skip: int) -> Path:
        made = self.run.pipeline.path(step, "questions.jsonl")
        section = {"n": count, "skip": skip, "seed": self.section["seed"]}
        section |= {"choices": self.section["choices"]} if self.section["choices"] else {}
        words = ["finepref", "data", "gym", self.section["name"], *options(section)]
        chosen = self.section["option"]
        assert isinstance(chosen, list)
        words += [word for each in chosen for word in ("--option", each)]
        self.run.pipeline.run(step, [*words, "--output", made], outputs=[made])
        return made


class _Solver:
    """The steps that apply a target to instructions: answer, judge and evaluate.

    Args:
        run: the run.
        dedup, validate, answer, judge, evaluate: options of these commands; None = no validation, or no options.
    """

    def __init__(
        self,
        run: _Run,
        *,
        dedup: Section,
        validate: Section | None,
        answer: Section,
        judge: Section,
        evaluate: Section | None,
    ) -> None:
        self.run = run
        self.sections = {"dedup": dedup, "validate": validate or {}, "answer": answer, "evaluate": evaluate or {}}
        self.verdict = judge

    def checked(self, name: str) -> Path | None:
        """The file of the validator in a part of the run; None without one."""
        return self.run.pipeline.path(f"{name}/validate", "validate.jsonl") if self.sections["validate"] else None

    def judged(
        self, name: str, rows: Path, target: str, *, held_out: bool = False, more: int = 0, evaluated: bool = True
    ) -> Path:
        """The judged rows of a file of instructions; held-out rows are neither deduplicated nor validated.

        Args:
            name: of the part of the run.
            rows: the instructions.
            target: model folder or name.
            held_out: see above.
            more: is added to the seed of the answers.
            evaluated: measure them too, for which rows need ids.
        """
        files = [rows]
        if not held_out:
            kept = self.run.pipeline.path(f"{name}/dedup", "kept.jsonl")
            section = self.sections["dedup"] | self.run.rows | {"allow_empty": True}
            words = ["finepref", "dedup", rows, *options(section), "--output", kept]
            self.run.pipeline.run(f"{name}/dedup", words, inputs=[rows], outputs=[kept], private=self.run.private)
            files.append(kept)
        if self.sections["validate"] and not held_out:
            files.append(self._step(name, "validate", files[-1], _with_seed(self.sections["validate"], more)))
        files.append(
            self._step(name, "answer", files[-1], _with_seed(self.sections["answer"], more) | {"model": target})
        )
        files.append(self.run.judge(f"{name}/judge", files[-1], self.verdict))
        if evaluated:
            self.run.command(
                f"{name}/eval", ["eval", *files], self.sections["evaluate"], inputs=files, output="eval.json"
            )
        return files[-1]

    def _step(self, name: str, step: str, source: Path, more: Section) -> Path:
        inputs = [source, *folders(str(more.get("model", "")))]
        section = self.sections[step] | more
        return self.run.command(f"{name}/{step}", [step, source], section, inputs=inputs, output=f"{step}.jsonl")
