"""ReverseGen as one resumable run: find in rounds where a target model fails, then train it on what was found.

    warmup     the proposer learns by SFT to go on from few-shot prompts
    round_k    propose, dedup, validate, answer, judge, evaluate; pairs; DPO on the proposer, whose reference is the
               proposer that the round began with
    final      the last proposer's proposals, judged in the same way
    before     the target on the held-out file
    improve    the target learns by SFT the good answers to all that it failed at
    after      the improved target on the held-out file

The parameters of `reversegen` are the keys of the YAML; its sections are the options of each step's command, or the
host's keys on top of a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finepref.pipelines import llamafactory, reversegen_report
from finepref.pipelines.settings import options
from finepref.pipelines.steps import Pipeline, folders

SFT = {"columns": {"prompt": "prompt", "response": "response"}}
PAIRS = {"ranking": True, "columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}}
"""What the host's own stages sft and dpo need to know of our rows."""

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
) -> None:
    """Run what has not been run, and write report.md.

    Args:
        pipeline: the run's folder.
        proposer, target: model folders or names; smollm2 has the run make SmolLM2-135M-Instruct first.
        rounds: of DPO on the proposer.
        propose, dedup, validate, answer, judge, pair, improve, evaluate: options of the commands of these names;
            without `validate` every instruction is answered.
        teacher: options of `finepref reversegen answer` for the model whose answers, where they pass the judge, the
            target learns; without it, these are the rows' own `chosen`.
        warmup: options of `finepref reversegen warmup`.
        warmup_training, proposer_training, target_training, export: `recipe`, and the host's keys on top of it.
        gym: seeds and held-out questions of reasoning-gym: name, seeds, held_out (how many of each), option.
        seeds, held_out: files of one's own instead.
        few_shot: options that warm-up and proposing share: shots, template, group.
        ask: what models are asked for an instruction, with {prompt}.
        seed: of everything; round k takes seed + k.
        private: no instruction is printed, logged or told in the report.

    Raises:
        ValueError: settings that do not go together.
        StepChanged, StepFailed: see `Pipeline`.
    """
    run = _Run(pipeline, private)
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
        raise ValueError(f"{learnt} is empty: there is no good answer to anything that the target failed at")
    better = run.train("improve", target, learnt, SFT, target_training, export)
    solver.judged("after", second, better, held_out=True)
    reversegen_report.write(pipeline, rounds=rounds, private=private)


class _Run:
    """The steps that several parts of the loop have."""

    def __init__(self, pipeline: Pipeline, private: bool) -> None:
        self.pipeline = pipeline
        self.private = private

    def command(
        self,
        step: str,
        words: list[object],
        section: Mapping[str, object],
        *,
        inputs: list[Path],
        output: str,
        more: list[object] | None = None,
    ) -> Path:
        """A command of `finepref reversegen` with a section as its options; returns what it writes."""
        made = self.pipeline.path(step, output)
        command = ["finepref", "reversegen", *words, *options(section), *(more or []), "--output", made]
        self.pipeline.run(step, command, inputs=inputs, outputs=[made], private=self.private)
        return made

    def judge(self, step: str, answers: Path, section: Section) -> Path:
        """`finepref judge`."""
        made = self.pipeline.path(step, "judged.jsonl")
        command = ["finepref", "judge", answers, *options(section), "--output", made]
        self.pipeline.run(step, command, inputs=[answers], outputs=[made], private=self.private)
        return made

    def gym(self, *, name: str, seeds: int, held_out: int, seed: int, option: list[str]) -> tuple[Path, Path]:
        """Seeds and a held-out file of one list of reasoning-gym, which share no question."""
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
        """Train by the host, and merge a LoRA adapter, so that the next training takes the result as its reference."""
        folder = llamafactory.dataset(data.parent, data.stem, {"file_name": data.name, **entry})
        keys = {"model_name_or_path": model, "dataset_dir": folder, "dataset": data.stem}
        steps = (f"{name}/train", f"{name}/export")
        return llamafactory.train_merged(
            self.pipeline, steps, section, export, keys, inputs=[data], private=self.private
        )


class _Solver:
    """What happens to instructions: the target answers them, and the answers are judged and counted."""

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
        """The judged rows of a file of instructions; held-out ones are neither thinned out nor validated."""
        files = [rows]
        if not held_out:
            kept = self.run.pipeline.path(f"{name}/dedup", "kept.jsonl")
            words = ["finepref", "dedup", rows, *options(self.sections["dedup"]), "--output", kept]
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
