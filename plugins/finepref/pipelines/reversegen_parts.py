"""What occurs several times in a ReverseGen run: single commands, questions, and a target that solves them."""

from __future__ import annotations

from pathlib import Path

from finepref.pipelines.settings import options
from finepref.pipelines.steps import Pipeline, folders

MAY_BE_EMPTY = {"propose", "validate", "answer", "pair", "improve"}
"""Steps after which the run continues without a row, or says itself what is missing."""

Section = dict[str, object]
"""Options of a command, or settings of the host."""


class Run:
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


class Source:
    """Questions from one list of reasoning-gym; slices of it share no question.

    Args:
        run: the run.
        section: name of the data set, seeds and held_out (number of questions of each), seed of the list, option
            (key=value of the data set), and choices (options of each question; 0 = none).

    Raises:
        ValueError: an entry is missing or unknown.
    """

    def __init__(self, run: Run, section: Section) -> None:
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


class Solver:
    """The steps that apply a target to instructions: answer, judge and evaluate.

    Args:
        run: the run.
        dedup, validate, answer, judge, evaluate: options of these commands; None = no validation, or no options.
    """

    def __init__(
        self,
        run: Run,
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
            files.append(self._step(name, "validate", files[-1], with_seed(self.sections["validate"], more)))
        files.append(
            self._step(name, "answer", files[-1], with_seed(self.sections["answer"], more) | {"model": target})
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


def with_seed(section: Section, more: int) -> Section:
    """Options of a command, with another seed in later repeats."""
    return section | {"seed": int(str(section.get("seed", 0))) + more} if more else section
