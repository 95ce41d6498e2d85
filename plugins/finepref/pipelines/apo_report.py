"""The report of an APO run: tables and plots over the rounds, and the commands with their times."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from finepref.formats.markdown_table import table
from finepref.pipelines.report import commands
from finepref.pipelines.steps import Pipeline

Figures = Mapping[str, Mapping[str, float]]


def write(run: Pipeline, learning_rates: Sequence[float]) -> None:
    """Write `report.md` and `rounds.png`, which depend on the outputs of the steps only, and `steps.md` with times."""
    found = [_read(run.path(f"round_{i}/eval", "eval.json")) for i in range(len(learning_rates) + 1)]
    chosen = [_read(run.path(f"round_{i}/selected", "selected.report.json")) for i in range(1, len(found))]
    _draw(found, run.folder / "rounds.png")
    reward_rows: list[list[object]] = [["base", *_of(found[0], "human"), None, None, None, None]]
    policy_rows: list[list[object]] = [[0, None, None, None, *_answers(found[0])]]
    for number, (figures, selection) in enumerate(zip(found[1:], chosen, strict=True), start=1):
        reward_rows.append([number, *_of(figures, "human"), *_of(figures, "golden"), *_of(figures, "golden_base")])
        means = (selection["mean_reward_of_all"], selection["mean_reward_selected"])
        policy_rows.append([number, f"{learning_rates[number - 1]:g}", *means, *_answers(figures)])
    reward_head = ["reward model of round", "human: accuracy", "ECE"]
    reward_head += ["golden: accuracy", "ECE", "golden, base model: accuracy", "ECE"]
    policy_head = ["LLM after round", "learning rate", "mean reward of samples", "of selected ones"]
    policy_head += ["testing reward of answers", "wins over round 0", "empty answers"]
    text = f"""# APO, adversarial preference optimization

Reward models on {found[0]["human"]["records"]} held-out human rankings, and on golden answers above the answers that
the LLM gave to {found[0]["answers"]["records"]} held-out queries before the round. "base" is trained on human
preferences alone; every round's reward model is compared with it on the same pairs.

{table(reward_head, reward_rows)}

The LLM: rewards of its samples by the round's reward model, and rewards of its answers to the held-out queries by the
testing reward model, which was trained on other preferences. A tie is half a win.

{table(policy_head, policy_rows)}

![rounds](rounds.png)
"""
    (run.folder / "report.md").write_text(text, encoding="utf-8")
    (run.folder / "steps.md").write_text(f"# Steps\n\n{commands(run)}\n", encoding="utf-8")
    print(f"\n{text}\nreport: {run.folder / 'report.md'}")


def _read(path: Path) -> Figures:
    return json.loads(path.read_bytes())


def _of(figures: Figures, name: str) -> list[float]:
    return [figures[name]["rewards/accuracies"], figures[name]["calibration/ece"]]


def _answers(figures: Figures) -> list[float | None]:
    own = figures["answers"]
    return [own.get("rewards/mean"), own["win_rate"], own["empty"]]


def _draw(found: Sequence[Figures], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    rounds = range(len(found))
    lines = {"human": ("human", "human", "o-"), "golden": ("golden", "golden", "s-")}
    lines |= {"golden_base": ("golden, base reward model", "golden_base", "s--")}
    for axis, key, title in ((panels[0], "rewards/accuracies", "accuracy"), (panels[1], "calibration/ece", "ECE")):
        for label, name, style in lines.values():
            there = [i for i in rounds if name in found[i]]
            axis.plot(there, [found[i][name][key] for i in there], style, label=label)
        axis.set_title(f"reward model: {title}")
    panels[0].legend()
    panels[2].plot(rounds, [found[i]["answers"].get("rewards/mean") for i in rounds], "o-")
    panels[2].set_title("LLM: mean reward by the testing model")
    for axis in panels:
        axis.set_xlabel("round")
        axis.set_xticks(list(rounds))
    figure.savefig(file, dpi=120)
