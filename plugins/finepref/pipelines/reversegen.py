"""ReverseGen as one resumable run: find instructions that a target model fails, then train it on them.

    warmup     SFT of the proposer on few-shot prompts
    round_k    propose, dedup, validate, answer, judge, evaluate; pairs; DPO of the proposer, with the proposer at the
               start of the round as reference
    final      proposals of the last proposer, judged in the same way
    before     the target on the held-out file
    improve    SFT of the target on good answers to all instructions that it failed
    after      the improved target on the held-out file

The parameters of `reversegen` are the keys of the YAML file; its sections are options of a step's command, or a recipe
of the host with keys on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from finepref.formats.bad_rows import MAX_BAD
from finepref.pipelines import llamafactory, reversegen_report
from finepref.pipelines.settings import bad_row_options, options
from finepref.pipelines.steps import Pipeline, folders

SFT = {"columns": {"prompt": "prompt", "response": "response"}}
PAIRS = {"ranking": True, "columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}}
"""The dataset entries of our rows for the host's own stages sft and dpo."""

MAY_BE_EMPTY = {"propose", "validate", "answer", "pair", "improve"}
"""Steps after which the run goes on without a row, or says itself what is missing."""

Section = dict[str, object]


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
    private: bool = False,
    bad_rows: Literal["error", "skip"] = "error",
    max_bad: str | float = MAX_BAD,
) -> None:
    """Run all steps that are not done yet, and write report.md.

    Args:
        pipeline: the run's folder.
        proposer, target: model folders or names; smollm2 = SmolLM2-135M-Instruct, which the run makes first.
        rounds: of DPO of the proposer.
        propose, dedup, validate, answer, judge, pair, improve, evaluate: options of the commands with these names;
            without `validate` all instructions are answered.
        teacher: options of `finepref reversegen answer` for the model whose answers the target learns if they pass
            the judge; without it, the rows' own `chosen` is used.
        warmup: options of `finepref reversegen warmup`.
        warmup_training, proposer_training, target_training, export: `recipe`, and keys of the host on top of it.
        gym: take seeds and held-out questions from reasoning-gym: name, seeds, held_out (number of each), option.
        seeds, held_out: your own files instead.
        few_shot: options of both warmup and propose: shots, template, group.
        ask: the question to models, with {prompt} for the instruction.
        seed: random seed; round k uses seed + k.
        private: never print, log or report an instruction.
        bad_rows, max_bad: --bad-rows and --max-bad of every step that reads rows.

    Raises:
        ValueError: settings contradict each other.
        StepChanged, StepFailed: see `Pipeline`.
    """
    run = _Run(pipeline, private, bad_row_options(bad_rows, str(max_bad)))
    if (gym is None) == (seeds is None):
        raise ValueError("give seeds and held_out, or gym")
    if gym is not None:
        first, second = run.gym(**{"seed": seed, "option": [], **gym})  # type: ignore[arg-type]
    elif seeds is not None and held_out is not None:
        first, second = Path(seeds), Path(held_out)
    else:
        raise ValueError("give seeds and held_out, or gym")
    if "smollm2" in (proposer, target):
        made = str(run.smollm2())
        proposer, target = (made if name == "smollm2" else name for name in (proposer, target))
    shown = few_shot or {}
    solver = _Solver(run, validate=validate, judge=judge, dedup=dedup, answer=answer | {"ask": ask}, evaluate=evaluate)

    records = run.command(
        "warmup/records", ["warmup", first], shown | warmup | {"seed": seed}, inputs=[first], output="warmup.jsonl"
    )
    writer = run.train("warmup", proposer, records, SFT, warmup_training, export)
    found: list[Path] = []
    for number in range(1, rounds + 2):
        name = f"round_{number}" if number <= rounds else "final"
        proposals = run.command(
            f"{name}/propose",
            ["propose", first],
            shown | propose | {"seed": seed + number, "model": writer},
            inputs=[first, *folders(writer)],
            output="proposals.jsonl",
        )
        judged = solver.judged(name, proposals, target)
        found.append(judged)
        if number <= rounds:
            pairs = run.command(
                f"{name}/pair",
                ["pair", judged],
                (pair or {}) | {"proposed": proposals, "seed": seed + number},
                inputs=[judged, proposals],
                output="pairs.jsonl",
            )
            if pairs.stat().st_size:
                writer = run.train(name, writer, pairs, PAIRS, proposer_training, export)
    solver.judged("before", second, target, held_out=True)
    good = []
    if teacher is not None:
        for number, judged in enumerate(found, start=1):
            answers = run.command(
                f"improve/answer_{number}",
                ["answer", judged],
                teacher | {"ask": ask, "failing": True},
                inputs=[judged],
                output="answers.jsonl",
            )
            good.append(run.judge(f"improve/judge_{number}", answers, judge))
    learnt = run.command(
        "improve/records",
        ["improve", *found],
        (improve or {}) | {"ask": ask, "exclude": second},
        inputs=[*found, *good, second],
        output="improve.jsonl",
        more=[word for path in good for word in ("--answers", path)],
    )
    if not learnt.stat().st_size:
        raise ValueError(f"{learnt} is empty: there is no good answer to an instruction that the target failed")
    better = run.train("improve", target, learnt, SFT, target_training, export)
    solver.judged("after", second, better, held_out=True)
    reversegen_report.write(pipeline, rounds=rounds, private=private)


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

    def gym(self, *, name: str, seeds: int, held_out: int, seed: int, option: list[str]) -> tuple[Path, Path]:
        """Seeds and a held-out file from one list of reasoning-gym; they share no question.

        Args:
            name: of the data set.
            seeds, held_out: number of questions of each.
            seed: of the list.
            option: of the data set, as key=value.
        """
        files = []
        for step, count, skip in (("data/seeds", seeds, 0), ("data/held_out", held_out, seeds)):
            made = self.pipeline.path(step, "questions.jsonl")
            words = ["finepref", "data", "gym", name, *options({"n": count, "skip": skip, "seed": seed})]
            words += [word for each in option for word in ("--option", each)]
            self.pipeline.run(step, [*words, "--output", made], outputs=[made])
            files.append(made)
        return files[0], files[1]

    def smollm2(self) -> Path:
        """SmolLM2-135M-Instruct."""
        made = self.pipeline.path("models/smollm2", "model")
        self.pipeline.run("models/smollm2", ["finepref", "model", "smollm2", "--output", made], outputs=[made])
        return made

    def train(
        self,
        name: str,
        model: str,
        data: Path,
        entry: Mapping[str, object],
        section: Section,
        export: Section,
    ) -> str:
        """Train with the host and merge a LoRA adapter, so that the next training can use the result as reference.

        Args:
            name: of the part of the run, such as round_1.
            model: to train.
            data: the records.
            entry: of the host for the records.
            section: recipe of the training, and keys.
            export: recipe of the merge, and keys.
        """
        folder = llamafactory.dataset(data.parent, data.stem, {"file_name": data.name, **entry})
        keys = {"model_name_or_path": model, "dataset_dir": folder, "dataset": data.stem}
        steps = (f"{name}/train", f"{name}/export")
        return llamafactory.train_merged(
            self.pipeline, steps, section, export, keys, inputs=[data], private=self.private
        )


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

    def judged(self, name: str, rows: Path, target: str, *, held_out: bool = False) -> Path:
        """The judged rows of a file of instructions; held-out rows are neither deduplicated nor validated."""
        files = [rows]
        if not held_out:
            kept = self.run.pipeline.path(f"{name}/dedup", "kept.jsonl")
            section = self.sections["dedup"] | self.run.rows | {"allow_empty": True}
            words = ["finepref", "dedup", rows, *options(section), "--output", kept]
            self.run.pipeline.run(f"{name}/dedup", words, inputs=[rows], outputs=[kept], private=self.run.private)
            files.append(kept)
        if self.sections["validate"] and not held_out:
            files.append(self._step(name, "validate", files[-1], {}))
        files.append(self._step(name, "answer", files[-1], {"model": target}))
        files.append(self.run.judge(f"{name}/judge", files[-1], self.verdict))
        self.run.command(f"{name}/eval", ["eval", *files], self.sections["evaluate"], inputs=files, output="eval.json")
        return files[-1]

    def _step(self, name: str, step: str, source: Path, more: Section) -> Path:
        inputs = [source, *folders(str(more.get("model", "")))]
        section = self.sections[step] | more
        return self.run.command(f"{name}/{step}", [step, source], section, inputs=inputs, output=f"{step}.jsonl")
