"""The loop of ReverseGen: warm-up, rounds, final proposals, and the target before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from finepref.pipelines.reversegen_figures import Repeat
from finepref.pipelines.reversegen_hosts import Host
from finepref.pipelines.reversegen_parts import Run, Section, Solver, Source, with_seed
from finepref.pipelines.steps import folders

APART = 1000
"""How far the seeds of two repeats are apart; each round of a repeat has one of its own."""


class Loop:
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
        run: Run,
        host: Host,
        *,
        sections: Mapping[str, Section],
        solver: Solver,
        models: tuple[str, str],
        files: tuple[Path, Path],
        rounds: int,
        seed: int,
        teacher: Section | None,
        ask: str,
        control: Source | Path | None,
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
                trained.append(self.host.makes_steps(rows_of(pairs), section))
                if trained[-1]:
                    writer = self.host.dpo(name, writer, pairs, section)
        if number == 1:
            self.solver.judged("before", self.held_out, self.target, held_out=True)
        records = self._improvements(f"{here}improve", found, more, failing=True)
        better = self._taught(f"{here}improve", f"{here}after", records, more)
        control = None
        if self.control is not None:
            control = better and self._control(f"{here}control", rows_of(records), more)
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
        if not self.host.makes_steps(rows_of(records), training):
            raise ValueError(f"warmup: {rows_of(records)} records are less than a batch of warmup_training")
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
                    with_seed(self.teacher, more) | {"failing": failing},
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
        if not self.host.makes_steps(rows_of(records), section):
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


def rows_of(path: Path) -> int:
    with open(path, "rb") as lines:
        return sum(1 for line in lines if line.strip())
