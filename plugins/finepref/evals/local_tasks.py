"""Our own tasks, which need no network, made of steps that are commands of their own, with their journals."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from finepref.evals.model_folder import Result, Target
from finepref.formats.bad_rows import BadRows
from finepref.formats.jsonl import write_jsonl
from finepref.formats.problems import BadData, Problem
from finepref.synth.data_sources.job_rows import JobRows, Rows, rows_of
from finepref.synth.engines.protocol import Engine

QUESTIONS = 200
"""Of `gym`, unless --limit says another number."""
TYPED = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Local:
    """Settings of our own tasks on a model.

    Attributes:
        target: the model.
        engine: makes the engine that answers; called once, if a task needs it.
        reward: makes what scores `preferences`: a reward model or `PolicyReward`; called once, if needed.
        data: task -> its data.
        limit: documents of each task, below 1 a share; None = all.
        seed: of the questions of `gym`.
        max_new_tokens: of an answer of `gym`.
        merge_system: see `checkpoint.rendered`.
        backend: the name of the engine.
        bad_rows: makes a collector of bad rows.
    """

    target: Target
    engine: Callable[[], Engine]
    reward: Callable[[], Any]
    data: Mapping[str, Rows] = field(default_factory=dict)
    limit: float | None = None
    seed: int = 0
    max_new_tokens: int = 512
    merge_system: bool = False
    backend: str = "hf"
    bad_rows: Callable[[], BadRows] = BadRows

    def settings(self, task: str) -> dict[str, Any]:
        """What the result of a task depends on, besides the model.

        Raises:
            BadData: the task needs data and has none (FP303), or they cannot be read.
        """
        name = task.partition(":")[0]
        own: dict[str, Any] = {"limit": self.limit}
        if name == "gym":
            return own | {"backend": self.backend, "seed": self.seed, "max_new_tokens": self.max_new_tokens}
        source = self.data.get(name)
        if source is None:
            text = f"needs data: --data {name}=FILE, or --skip {name}"
            raise BadData([Problem(task, 0, "", "FP303", text)])
        rows = _rows(name, source)
        own |= {"data": str(source) if isinstance(source, Path) else source.name, "data_sha256": rows.digest()}
        own["merge_system"] = self.merge_system
        if name == "preferences":
            own["reward"] = self.scoring.model
            if hasattr(self.scoring, "pooling"):
                own |= {part: getattr(self.scoring, part) for part in ("pooling", "cutoff_len", "tokens")}
        return own

    def run(self, task: str, work: Path, rejected: Path) -> Result:
        """Run a task; what it is made of is kept in its folder, so that a task that is killed resumes.

        Args:
            task: its name.
            work: its folder.
            rejected: file for the rows that are rejected.

        Raises:
            BadData: its data have problems; nothing is left to measure (FP304).
            ValueError: the engine cannot give letters, or the model has no chat template.
            ModuleNotFoundError: reasoning-gym is not installed.
            JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
        """
        bad = self.bad_rows()
        result = _RUN[task.partition(":")[0]](self, task, work, bad)
        if not result.n:
            raise BadData([Problem(task, 0, "", "FP304", f"nothing is left to measure: {json.dumps(result.told)}")])
        told = {"rejected_rows": dict(bad.codes)} if bad.codes else {}
        bad.write(rejected)
        return result._replace(told={**result.told, **told})

    @cached_property
    def answering(self) -> Engine:
        """The engine."""
        return self.engine()

    @cached_property
    def scoring(self) -> Any:
        """What scores preferences."""
        return self.reward()

    def first(self, task: str, work: Path) -> Rows:
        """The data of a task, or its first rows in a file if there is a limit."""
        source = self.data[task]
        if self.limit is None:
            return source
        rows = _rows(task, source)
        found = [raw for part in rows.parts() for raw in part.rows]
        if problems := [problem for raw in found for problem in raw.problems]:
            raise BadData(problems)
        count = int(self.limit) if self.limit >= 1 else math.ceil(self.limit * len(found))
        path = work / f"first_{count}.jsonl"
        write_jsonl(path, [raw.value for raw in found[:count] if raw.value is not None])
        return path


def metric(values: Iterable[float], *, higher_is_better: bool | None = True) -> dict[str, Any]:
    """A mean as an entry of `Result.metrics`, with its standard error."""
    found = [float(each) for each in values]
    error = stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
    return {"value": fmean(found), "stderr": error, "higher_is_better": higher_is_better}


def _rows(task: str, source: Rows) -> JobRows:
    """The rows of a task's data."""
    if task == "preferences":
        from finepref.synth.apo.score import WANTS

        return rows_of(source, WANTS)
    if task == "letters":
        from finepref.synth.reversegen.instructions import INSTRUCTIONS

        return rows_of(source, INSTRUCTIONS)
    from finepref.synth.margins import Input

    return Input(source, f"eval {task}", pairs=False).rows


def _gym(local: Local, task: str, work: Path, bad: BadRows) -> Result:
    from finepref.synth.data_sources.reasoning_gym import questions
    from finepref.synth.judges.label_rows import judge
    from finepref.synth.judges.reasoning_gym import gym
    from finepref.synth.left_out import read_all
    from finepref.synth.reversegen.answer import answer

    name = task.partition(":")[2] or "basic_arithmetic"
    limit = local.limit or QUESTIONS
    count = int(limit) if limit >= 1 else math.ceil(limit * QUESTIONS)
    asked, answered, judged = (work / f"{step}.jsonl" for step in ("questions", "answers", "judged"))
    rows = questions(name, count, seed=local.seed)
    write_jsonl(asked, rows)
    answer(
        asked,
        answered,
        engine=local.answering,
        max_new_tokens=local.max_new_tokens,
        work_dir=work / "journal",
        bad_rows=bad,
    )
    judge(answered, judged, judge=gym, name="gym")
    verdicts = {str(row["id"]): row for row in _read(judged)}
    without = {str(each.row["id"]): each.reason for file in (answered, judged) for each in read_all(file)}
    samples = []
    for row in rows:
        found = verdicts.get(row["id"], {})
        right = bool(found.get("label"))
        sample = {"id": row["id"], "accuracy": float(right), "answer": row["answer"]}
        sample["response"] = found.get("response")
        if row["id"] in without:
            sample["no_verdict"] = without[row["id"]]
        samples.append(sample)
    told = {"data_set": name, "without_verdict": len(without)}
    return Result(len(samples), {"accuracy": metric(each["accuracy"] for each in samples)}, {}, samples, told)


def _margins(local: Local, task: str, work: Path, bad: BadRows) -> Result:
    from finepref.synth.seapo.margins import margins

    found = margins(
        local.first(task, work),
        work / "margins.json",
        model=local.target.model,
        adapter=local.target.adapter,
        merge_system=local.merge_system,
        bad_rows=bad,
    )
    samples = [
        {"id": f"{record}/{name}", "type": name, "margin": value, "above_zero": float(value > 0)}
        for record, own in found["records"].items()
        for name, value in own.items()
    ]
    if not samples:
        return Result(0, {})
    names = {"mean": "margin", "share_above_zero": "above_zero"}
    by: TYPED = {
        kind: {names.get(part, part): value for part, value in own.items()} for kind, own in found["types"].items()
    }
    metrics = {name: metric(each[name] for each in samples) for name in ("margin", "above_zero")}
    return Result(len(samples), metrics, by, samples, {"records": len(found["records"])})


def _preferences(local: Local, task: str, work: Path, bad: BadRows) -> Result:
    from finepref.hosts import reward_metrics
    from finepref.synth.apo.score import score
    from finepref.synth.apo.scored import read_scored

    source, scored = local.first(task, work), work / "scored.jsonl"
    outcome = score(source, scored, model=local.scoring, bad_rows=bad, work_dir=work / "journal")
    rows = [row for row in read_scored(scored) if len({*row.scores}) > 1]
    left_out = {"left_out": str(outcome.left_out), "cut": outcome.cut, "empty": outcome.empty}
    if not rows:
        return Result(0, {}, told={**left_out, "why": "no row has a preference: pairs, or responses with scores"})
    rewards = [[reward for reward in row.rewards if reward is not None] for row in rows]
    scores = [[s for s, reward in zip(row.scores, row.rewards, strict=True) if reward is not None] for row in rows]
    padded = reward_metrics.padded(rewards, scores, [row.kind for row in rows])
    found, pairs = reward_metrics.metrics(*padded), reward_metrics.pairs_of(*padded[:3])
    margins: dict[int, list[float]] = defaultdict(list)
    for record, margin in zip(pairs.record.tolist(), pairs.margin.tolist(), strict=True):
        margins[record].append(margin)
    groups = _groups(source)
    samples = []
    for number, row in enumerate(rows):
        own = margins.get(number)
        if not own:
            continue
        sample: dict[str, Any] = {"id": row.id, "accuracy": fmean(each > 0 for each in own), "margin": fmean(own)}
        if row.id in groups:
            sample["subset"] = groups[row.id]
        samples.append(sample)
    metrics = {
        "accuracy": metric(each["accuracy"] for each in samples),
        "margin": metric(each["margin"] for each in samples),
    }
    metrics["accuracy"]["value"] = found["rewards/accuracies"]  # over pairs, as in training and `apo eval`
    metrics["margin"]["value"] = found["rewards/margins"]
    calibrated = reward_metrics.calibration_of(pairs)
    for name in ("ece", "ace", "mce"):
        metrics[name] = {"value": calibrated[name], "stderr": None, "higher_is_better": False}
    by: TYPED = {}
    for subset in sorted({*groups.values()}):
        members = [each for each in samples if each.get("subset") == subset]
        if members:
            by[subset] = {"n": len(members), "accuracy": fmean(each["accuracy"] for each in members)}
    if sections := rewardbench(by):
        whole = {"value": fmean(sections.values()), "stderr": None, "higher_is_better": True}
        metrics["rewardbench"] = whole
    told = {"pairs": len(pairs.gap), "reward": local.scoring.model, "calibration": calibrated, **left_out}
    return Result(len(samples), metrics, by, samples, {**told, **({"sections": sections} if sections else {})})


SECTIONS = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        *("mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor"),
        *("llmbar-adver-GPTInst", "llmbar-adver-GPTOut", "llmbar-adver-manual"),
    ),
    "Safety": (
        *("refusals-dangerous", "refusals-offensive", "xstest-should-refuse"),
        *("xstest-should-respond", "donotanswer"),
    ),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
"""RewardBench's sections (arXiv 2403.13787, table 1) and their subsets."""


def rewardbench(by: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """RewardBench's scores by section: the mean over its pairs, in Reasoning that of mathematics and of code.

    Args:
        by: subset -> n and accuracy.

    Returns:
        The sections in percent; none if subsets are missing.
    """
    if not all(subset in by for subsets in SECTIONS.values() for subset in subsets):
        return {}

    def mean(subsets: Sequence[str]) -> float:
        size = sum(by[each]["n"] for each in subsets)
        return 100 * sum(by[each]["n"] * by[each]["accuracy"] for each in subsets) / size

    found = {name: mean(subsets) for name, subsets in SECTIONS.items()}
    maths, *code = SECTIONS["Reasoning"]
    return found | {"Reasoning": (mean([maths]) + mean(code)) / 2}


def _groups(source: Rows) -> dict[str, str]:
    """id -> `subset` of the rows that have both."""
    found = {}
    for part in _rows("preferences", source).parts():
        for raw in part.rows:
            row = raw.value or {}
            if "id" in row and isinstance(row.get("subset"), str):
                found[str(row["id"])] = str(row["subset"])
    return found


def _letters(local: Local, task: str, work: Path, bad: BadRows) -> Result:
    from finepref.synth.engines.letters import letters_of
    from finepref.synth.judges.by_rule import letter_entropy
    from finepref.synth.judges.label_rows import judge
    from finepref.synth.reversegen.answer import answer_by_letters
    from finepref.synth.reversegen.evaluate import measure
    from finepref.synth.reversegen.given_answers import given_answer

    answered, judged = work / "answers.jsonl", work / "judged.jsonl"
    engine = letters_of(local.answering, f"--backend {local.backend}", f"{task} needs --backend hf or vllm")
    wrote, outside = answer_by_letters(
        local.first(task, work), answered, engine=engine, work_dir=work / "journal", bad_rows=bad
    )
    judge(answered, judged, judge=letter_entropy(), name="entropy")
    figures: Any = measure([answered, judged])
    given = [(row, found) for row in _read(judged) if (found := given_answer(row)) and found.right is not None]
    told = {"left_out": str(wrote.left_out), "letters_outside": outside, "calibration": figures["calibration"]}
    if not given:
        return Result(0, {}, told={**told, "why": "no question has a known answer"})
    samples = [
        {"id": row["id"], "accuracy": float(bool(found.right)), "confidence": found.confidence, "letter": found.text}
        | ({"subject": row["subject"]} if row.get("subject") else {})
        for row, found in given
    ]
    metrics = {
        "accuracy": metric(each["accuracy"] for each in samples),
        "confidence": metric((each["confidence"] for each in samples), higher_is_better=None),
        "ece": {"value": figures["ece"], "stderr": None, "higher_is_better": False},
        "entropy": {"value": figures["entropy"], "stderr": None, "higher_is_better": None},
        "average_precision": {"value": figures["average_precision"], "stderr": None, "higher_is_better": True},
    }
    by: TYPED = {}
    for subject in sorted({str(each["subject"]) for each in samples if "subject" in each}):
        members = [each["accuracy"] for each in samples if each.get("subject") == subject]
        by[subject] = {"n": len(members), "accuracy": fmean(members)}
    return Result(len(samples), metrics, by, samples, told)


def _detection(local: Local, task: str, work: Path, bad: BadRows) -> Result:
    from finepref.evals.detection import auroc, detect
    from finepref.synth.engines.letters import letters_of

    engine = letters_of(local.answering, f"--backend {local.backend}", f"{task} needs --backend hf or vllm")
    data = _rows(task, local.first(task, work))
    found = detect(data, engine=engine, folder=work / "journal", bad_rows=bad)
    samples = [
        {
            "id": f"{record}/{name}",
            "type": name,
            "p_error": p,
            "p_error_good": good,
            "paired": (p > good) + (p == good) / 2,
        }
        for record, (good, negatives) in found.probabilities.items()
        for name, p in negatives.items()
    ]
    told = {"records": len(found.probabilities), "without_answer": dict(Counter(found.without.values()))}
    if not samples:
        return Result(0, {}, told=told)
    good = [each for each, _ in found.probabilities.values()]
    right_good = [float(each < 0.5) for each in good]

    def figures(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        p = [each["p_error"] for each in members]
        return {
            "n": len(members),
            "paired": fmean(each["paired"] for each in members),
            "auroc": auroc(good, p),
            "accuracy": (fmean(float(each > 0.5) for each in p) + fmean(right_good)) / 2,
        }

    by = {
        kind: figures([each for each in samples if each["type"] == kind])
        for kind in sorted({each["type"] for each in samples})
    }
    whole = figures(samples)
    metrics = {
        "paired": metric(each["paired"] for each in samples),
        "auroc": {"value": whole["auroc"], "stderr": None, "higher_is_better": True},
        "accuracy": {"value": whole["accuracy"], "stderr": None, "higher_is_better": True},
        "found": metric(float(each["p_error"] > 0.5) for each in samples),
        "accepted": metric(right_good),
    }
    return Result(len(samples), metrics, by, samples, told)


_RUN: Mapping[str, Callable[[Local, str, Path, BadRows], Result]] = {
    "gym": _gym,
    "margins": _margins,
    "preferences": _preferences,
    "letters": _letters,
    "detection": _detection,
}


def _read(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]
