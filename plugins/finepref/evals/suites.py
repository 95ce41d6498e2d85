"""The named suites of `finepref eval`, as rows: which tasks, how many examples, and the figure of each in the table.

Where a task of lm-eval differs from what a paper ran, the row's note says so. `docs/evaluation.md` has the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from finepref.formats.problems import BadData, Problem

LOCAL = {
    "gym": "questions of reasoning-gym, made by rule and judged by its verifier; gym:NAME is one of its data sets",
    "margins": "log-probability of good answers minus that of answers with an error, by error type; needs --data",
    "preferences": "accuracy and calibration of a reward model, or of log-probabilities, on pairs; needs --data",
    "letters": "accuracy and calibration of the letters' probabilities on multiple-choice questions; needs --data",
    "detection": "whether the model tells answers with an injected error from good ones; needs --data",
}
"""Our own tasks, which need neither lm-eval nor a network."""
NEED_DATA = ("margins", "preferences", "letters", "detection")


class Part(NamedTuple):
    """A line of a suite's table.

    Attributes:
        label: of the line.
        tasks: tasks or groups of lm-eval, or one of `LOCAL`; of several, the figure is the mean over all documents.
        metric: as lm-eval names it, with its filter: "acc,none".
        num_fewshot: examples in the prompt; None = those of the task's own file.
        changes: settings of the task in place of those of its file.
        metric_options: metric -> its options in place of those of the file.
        note: what differs from the paper.
    """

    label: str
    tasks: tuple[str, ...]
    metric: str
    num_fewshot: int | None = None
    changes: Mapping[str, Any] = {}
    metric_options: Mapping[str, Mapping[str, Any]] = {}
    note: str = ""


_MATH = (*("algebra", "counting_and_prob", "geometry", "intermediate_algebra", "num_theory", "prealgebra", "precalc"),)
_TRUTHFUL = (
    Part("TruthfulQA MC1", ("truthfulqa_mc1",), "acc,none"),
    Part("TruthfulQA MC2", ("truthfulqa_mc2",), "acc,none"),
)
_MMLU = Part("MMLU, 5-shot", ("mmlu",), "acc,none", 5)

SUITES: dict[str, tuple[Part, ...]] = {
    "seapo": (
        Part("BBH", ("bbh_cot_fewshot",), "exact_match,get-answer", note="3 worked examples, as in BBH itself"),
        Part(
            "HumanEval pass@10",
            ("humaneval",),
            "pass@10,create_test",
            changes={"repeats": 20, "generation_kwargs": {"do_sample": True, "temperature": 0.8, "top_p": 0.95}},
            metric_options={"pass_at_k": {"k": [10]}},
            note="20 samples at temperature 0.8; runs code that the model writes",
        ),
        Part("GSM8K, 8-shot", ("gsm8k_cot",), "exact_match,flexible-extract", 8, note="the last number of the answer"),
        Part("MATH, 4-shot", tuple(f"minerva_math_{name}" for name in _MATH), "math_verify,none", 4),
        _MMLU,
        *_TRUTHFUL,
    ),
    "sepo": (
        Part("IFEval", ("ifeval",), "prompt_level_strict_acc,none", 0),
        Part("ARC challenge, 25-shot", ("arc_challenge",), "acc_norm,none", 25),
        Part("HellaSwag, 10-shot", ("hellaswag",), "acc_norm,none", 10),
        _MMLU,
        Part("GSM8K, 8-shot", ("gsm8k_cot",), "exact_match,flexible-extract", 8),
        _TRUTHFUL[1],
    ),
    "honesty": (
        Part("MMLU, 5-shot", ("mmlu",), "acc,none", 5),
        Part("MMLU, ECE", ("mmlu",), "ece,none", 5),
        *_TRUTHFUL,
        Part("TruthfulQA MC1, ECE", ("truthfulqa_mc1",), "ece,none"),
    ),
    "reward": (
        Part("accuracy", ("preferences",), "accuracy"),
        Part("RewardBench", ("preferences",), "rewardbench"),
        Part("ECE", ("preferences",), "ece"),
    ),
}

NOTES = {
    "seapo": "SeaPO (arXiv 2509.24781) ran open-instruct's scripts; prompts and extraction here are lm-eval's.",
    "sepo": "What can be scored by rule. SePO's own benchmarks ask a judge model, and are not here.",
    "honesty": "Accuracy and calibration: ReverseGen's target is a model that knows what it knows.",
    "reward": "Pairs given with --data. RewardBench's rows (with `subset`) also give its four sections.",
}


class Wanted(NamedTuple):
    """A task to run: its name, examples, changes, and the parts of suites that it is for."""

    name: str
    num_fewshot: int | None = None
    changes: Mapping[str, Any] = {}
    metric_options: Mapping[str, Mapping[str, Any]] = {}

    @property
    def local(self) -> str:
        """The name in `LOCAL`, "" if it is a task of lm-eval."""
        name = self.name.partition(":")[0]
        return name if name in LOCAL else ""


def wanted(names: Iterable[str], *, data: Iterable[str] = (), skip: Iterable[str] = ()) -> list[Wanted]:
    """The tasks of suites and single tasks by name, each once.

    Args:
        names: suites, our own tasks, `local` for all of those that need no data or have some, tasks of lm-eval.
        data: our own tasks that have data.
        skip: tasks to leave out.

    Raises:
        BadData: a task in `skip` is in none of the suites, one is asked for with two numbers of examples (FP300), or
            none is left.
    """
    found: dict[str, Wanted] = {}
    for name in names:
        if name == "local":
            own = [each for each in LOCAL if each not in NEED_DATA or each in {*data}]
            parts: Iterable[Part] = [Part(each, (each,), "") for each in own]
        else:
            parts = SUITES.get(name, (Part(name, (name,), ""),))
        for part in parts:
            for task in part.tasks:
                new = Wanted(task, part.num_fewshot, part.changes, part.metric_options)
                if found.setdefault(task, new) != new:
                    if name in SUITES:
                        told = f"the suites ask for {task} with different settings: run them one after the other"
                        raise BadData([Problem(task, 0, "", "FP300", f"{told}, each into a folder of its own")])
                    continue  # a single task that a suite names is run as in the suite
    if missing := {*skip} - found.keys():
        told = f"is not among the tasks: {', '.join(found)}"
        raise BadData([Problem(name, 0, "", "FP300", f"{told} (--skip)") for name in sorted(missing)])
    left = [each for task, each in found.items() if task not in {*skip}]
    if not left:
        raise BadData([Problem(", ".join(names), 0, "", "FP300", "no task is left")])
    return left


def table(name: str, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The lines of a suite: label -> value, stderr, n, tasks and metric; a line whose tasks are not all there is out.

    Args:
        name: of the suite.
        tasks: task -> its result, with `metrics` and `n`.
    """
    lines: dict[str, dict[str, Any]] = {}
    for part in SUITES[name]:
        found = [(tasks[task], (tasks[task]["metrics"]).get(part.metric)) for task in part.tasks if task in tasks]
        if len(found) < len(part.tasks) or any(metric is None for _, metric in found):
            continue
        size = sum(result["n"] for result, _ in found)
        shares = [(result["n"] / size, metric) for result, metric in found if metric is not None]
        errors = [metric.get("stderr") for _, metric in shares]
        spread = None
        if all(isinstance(each, int | float) for each in errors):
            spread = sum((share * metric["stderr"]) ** 2 for share, metric in shares) ** 0.5
        lines[part.label] = {
            "value": sum(share * metric["value"] for share, metric in shares),
            "stderr": spread,
            "n": size,
            "tasks": [*part.tasks],
            "metric": part.metric,
        }
    return lines
