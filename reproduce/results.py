"""The results of an experiment: results.json, plots, and the part of the page below its plan.

Intervals and verdicts are those of `finepref report` (`pipelines/run_comparison.py`): a difference is one only if
every interval that is known excludes 0.
"""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from experiment import Experiment
from finepref.formats.files import write_json, write_text
from finepref.formats.markdown_table import table
from finepref.pipelines.run_comparison import Difference, compare
from finepref.pipelines.run_folders import Run
from finepref.pipelines.run_report import SHOWN, draw
from finepref.synth.intervals import half_width

BEGIN, END = "<!-- Results: written by `make reproduce`. -->", "<!-- End of the results. -->"
SHOWN_WORD, AGAINST, NOT_SHOWN, NOT_TESTABLE = "shown", "against", "not shown", "not testable here"
VERDICTS = (SHOWN_WORD, AGAINST, NOT_SHOWN, NOT_TESTABLE)
Step = Mapping[str, Any]


def verdict(difference: Difference | None, expected: str) -> str:
    """What a difference says of a claim that expects it to be "higher" or "lower"."""
    if difference is None or difference.verdict not in SHOWN:
        return NOT_SHOWN
    return SHOWN_WORD if (difference.value > 0) == (expected == "higher") else AGAINST


def judged(experiment: Experiment, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each claim with its difference, intervals and verdict."""
    found = []
    for claim in experiment.claims:
        entry = dict(claim)
        if "not_testable" in claim:
            found.append(entry | {"verdict": NOT_TESTABLE})
            continue
        sides = [run for name in (claim["against"], claim["arm"]) for run in runs if run.label == name]
        difference = compare(sides).differences[claim["figure"]][0]
        entry["verdict"] = verdict(difference, claim["expected"])
        if difference is not None:
            entry |= {"difference": difference.value, "seeds": difference.seeds, "records": difference.records}
            entry |= {"n": difference.number, "why": difference.why}
        found.append(entry)
    return found


def same(first: Run, second: Run) -> dict[str, Any]:
    """Whether a run gave the same figures when it was done a second time."""
    values = [{name: each.value for name, each in run.figures.items()} for run in (first, second)]
    differing = {
        name: [each.get(name) for each in values] for name in values[0] if values[1].get(name) != values[0][name]
    }
    return {"run": first.name, "figures": len(values[0]), "differing": differing}


def summary(experiment: Experiment, runs: Sequence[Run]) -> dict[str, Any]:
    """figure -> arm -> the value of each seed, their mean, and Student's interval of it."""
    found: dict[str, Any] = {}
    for figure in experiment.figures:
        for arm in experiment.arms:
            values = [run.figures[figure].value for run in runs if run.label == arm and figure in run.figures]
            if values:
                found.setdefault(figure, {})[arm] = _cell(values)
    return found


def _cell(values: Sequence[float]) -> dict[str, Any]:
    mean = fmean(values)
    width = half_width(values) if len(values) > 1 else None
    return {"values": [*values], "mean": mean, "interval": None if width is None else [mean - width, mean + width]}


def write_small(file: Path, experiment: Experiment, runs: Sequence[Run]) -> None:
    """The figures of a small run: figure -> arm -> as in `summary`."""
    write_json(file, summary(experiment, runs))


def write_page(
    experiment: Experiment,
    runs: Sequence[Run],
    *,
    steps: Mapping[str, Step],
    cpu: Mapping[str, float],
    again: Mapping[str, Any] | None,
    facts: Mapping[str, Mapping[str, Any]],
    tuning: Mapping[str, Any] | None = None,
) -> None:
    """Write results.json, the plots, and the results into README.md.

    Args:
        experiment: what was run.
        runs: all of them, arm by arm.
        steps: `Pipeline.steps`.
        cpu: step -> seconds of CPU time.
        again: see `same`.
        facts: step -> what it wrote; a `curve` in it is drawn.
        tuning: see `Runs.tune`.
    """
    claims, figures = judged(experiment, runs), summary(experiment, runs)
    seeds = sorted({run.receipt["seed"] for run in runs if run.receipt})
    times = {"wall_seconds": round(sum(each["seconds"] for each in steps.values()), 1)}
    known = [cpu[name] for name in steps if name in cpu]
    times |= {"cpu_seconds": round(sum(known), 1), "commands": len(steps), "cpu_known": len(known)}
    versions = next(run.receipt["versions"] for run in runs if run.receipt and "versions" in run.receipt)
    machine = {"threads": os.environ.get("OMP_NUM_THREADS", "all"), "processor": platform.machine()}
    result = {
        "paper": experiment.paper,
        "seeds": seeds,
        "claims": claims,
        "figures": figures,
        "facts": facts,
        "tuning": tuning,
        "again": again,
        "times": times,
        "machine": machine,
        "versions": versions,
        "runs": [
            {"arm": run.label, "seed": (run.receipt or {}).get("seed")}
            | {"figures": {name: each.value for name, each in run.figures.items()}}
            | {"curves": {name: points for name, points in run.curves.items() if name.startswith("eval")}}
            for run in runs
        ],
        "commands": {
            name: {"command": shlex.join(each["command"]), "wall": each["seconds"], "cpu": cpu.get(name)}
            for name, each in steps.items()
        },
    }
    write_json(experiment.page / "results.json", result)
    names = [*experiment.figures]
    plots = draw(compare([_only(run, names) for run in runs]), experiment.page)
    plots += [_draw(name, fact["curve"], experiment.page) for name, fact in facts.items() if "curve" in fact]
    file = experiment.page / "README.md"
    write_text(file, filled(file.read_text(encoding="utf-8"), "\n\n".join(_parts(experiment, result, plots))))
    print(f"{file}: {', '.join(claim['verdict'] for claim in claims)}")


def filled(page: str, text: str) -> str:
    """A page with other results; what is before and after them stays.

    Raises:
        ValueError: the page has no place for results.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page needs the lines {BEGIN} and {END}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def _draw(name: str, curve: Mapping[str, Any], folder: Path) -> Path:
    """Draw {x, y, points: [[x, mean, low, high], ...]} of a fact into NAME.png: the mean, its interval around it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axis = figure.subplots()
    x, mean, low, high = zip(*curve["points"], strict=True)
    axis.fill_between(x, low, high, alpha=0.3)
    axis.plot(x, mean, marker=".")
    axis.set_xlabel(curve["x"], fontsize="small")
    axis.set_ylabel(curve["y"], fontsize="small")
    file = folder / f"{name}.png"
    figure.savefig(file, dpi=110)
    return file


def _only(run: Run, names: Sequence[str]) -> Run:
    figures = {name: each for name, each in run.figures.items() if name in names}
    return replace(run, figures=figures, curves={name: each for name, each in run.curves.items() if name in names})


def _parts(experiment: Experiment, result: Mapping[str, Any], plots: Sequence[Path]) -> list[str]:
    """The results as Markdown, part by part."""
    seeds, times = ", ".join(map(str, result["seeds"])), result["times"]
    rows = [["claim", "the paper's (theirs)", "ours", "95 % over seeds", "95 % over records", "verdict"]]
    for claim in result["claims"]:
        ours = over_seeds = over_records = "-"
        if "difference" in claim:
            ours, over_seeds = f"{claim['difference']:+.4g}", _interval(claim["seeds"])
            over_records = _interval(claim["records"]) + (f", n = {claim['n']}" if claim["records"] else "")
        told = claim["verdict"] + (f": {claim['not_testable']}" if "not_testable" in claim else "")
        rows.append([claim["text"], claim["paper"], ours, over_seeds, over_records, told])
    counts = {word: sum(claim["verdict"] == word for claim in result["claims"]) for word in VERDICTS}
    parts = [
        "## Results",
        "Verdicts: " + ", ".join(f"{count} {word}" for word, count in counts.items() if count) + ".",
    ]
    parts.append(table(rows[0], rows[1:]))
    parts.append(
        "*Ours*: the figure of the arm minus that of the arm it is compared with, means over seeds. The rule is that "
        "of `finepref report`: shown, or against, only if every interval that is known excludes 0."
    )
    for plot in plots:
        parts.append(f"![{plot.stem}]({plot.name})")
    arms = [*experiment.arms]
    rows = [["figure", *arms]]
    for figure, told in experiment.figures.items():
        cells = result["figures"].get(figure, {})
        rows.append([f"`{figure}`: {told}", *(_told(cells.get(arm)) for arm in arms)])
    parts += [f"Mean over seeds {seeds}, and below it each seed's value:", table(rows[0], rows[1:])]
    if tuning := result["tuning"]:
        parts += _tuned(tuning)
    parts += [text.format(**result["facts"][name]).strip() for name, text in experiment.facts.items()]
    if again := result["again"]:
        equal = f"gave the same {again['figures']} figures, to the last digit"
        if again["differing"]:
            equal = f"gave other figures: {', '.join(f'{k} {v[0]} and {v[1]}' for k, v in again['differing'].items())}"
        parts.append(f"The run `{again['run']}`, done a second time from the same commands, {equal}.")
    of = "" if times["cpu_known"] == times["commands"] else f" (known of {times['cpu_known']} commands)"
    parts.append(
        f"{times['commands']} commands took {times['wall_seconds'] / 60:.1f} minutes and "
        f"{times['cpu_seconds'] / 60:.1f} minutes of CPU time{of}, with {result['machine']['threads']} thread(s), on "
        "a machine that other jobs shared. [results.json](results.json) has every command with its times, and every "
        "seed's figures and curves."
    )
    return parts


def _tuned(tuning: Mapping[str, Any]) -> list[str]:
    """The tuning as Markdown: a row for each arm, and what was chosen."""
    rows = []
    for arm, own in tuning["values"].items():
        best = str(tuning["best"][arm])
        told = {value: f"{figure:.4g}" for value, figure in own.items()}
        rows.append([arm, *(told | {best: f"**{told[best]}**"}).values()])
    lead = f"Tuned for each of these arms alone, with seed {tuning['seed']}, by `{tuning['figure']}`:"
    return [lead, table([f"`{tuning['key']}`", *own], rows)]


def _told(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "-"
    return f"{cell['mean']:.4g}<br>{', '.join(f'{value:.3g}' for value in cell['values'])}"


def _interval(found: Sequence[float] | None) -> str:
    return f"{found[0]:+.4g} to {found[1]:+.4g}" if found else "not known"
