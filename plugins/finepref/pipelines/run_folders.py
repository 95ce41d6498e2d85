"""What a finished run left in its folder: its receipt, its figures, their values per record, and its curves.

| file | what is read |
|---|---|
| `finepref_receipt.json`, or the receipt of an evaluation | settings, seed, data, model |
| `trainer_state.json`, `trainer_log.jsonl` | curves; of the training the mean of the last quarter of the entries |
| `all_results.json`, `eval_results.json`, `predict_results.json` | LLaMA-Factory's figures |
| `eval.json`, `eval.pairs.jsonl` | those of `finepref apo eval`, with values per record, and of `reversegen eval` |
| `results.json`, `samples/TASK.jsonl` | figures and values per document of `finepref eval` |
| `results_*.json`, `samples_TASK_*.jsonl` | those of lm-eval, also in a folder below |
| `margins.json` | margins of `finepref margins`; given as a file, each of its models is a run |
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from finepref.formats.problems import BadData, Problem

UNREAD = re.compile(
    r"(^|_|/)(epoch|total_flos|runtime|steps|(samples|steps|tokens)_per_second|lr|learning_rate|step|percentage|"
    r"elapsed_time|remaining_time|grad_norm|model_preparation_time|num_input_tokens_seen)$"
)
LOOKED_FOR = "receipt, trainer_state.json, trainer_log.jsonl, *_results.json, eval.json, results.json or margins.json"
GROUPED_BY = ("type", "subset", "subject")
GROUPS = 12
"""Of a task with more groups, such as MMLU's subjects, the figures of each are not shown."""
RECEIPT_FIELDS = ("stage", "settings", "seed", "datasets", "run")


@dataclass(frozen=True)
class Figure:
    """One figure of a run.

    Attributes:
        value: as the file has it.
        higher_is_better: None if the file does not say.
        records: record id -> its value, if the file has them; their mean is the figure.
        scored_by: of a reward, the model that gave it, if the file says so.
    """

    value: float
    higher_is_better: bool | None = None
    records: Mapping[str, float] = field(default_factory=dict)
    scored_by: str = ""


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        name: how it is shown.
        path: its folder or file.
        label: the user's name for its group, "" if none is given.
        receipt: what it was, None without one.
        figures: name -> figure.
        curves: name -> (step, value) pairs.
        notes: what a reader must know, such as a run that did not end.
    """

    name: str
    path: Path
    label: str = ""
    receipt: Mapping[str, Any] | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def only(self, names: Sequence[str]) -> Run:
        """The run with those figures and curves alone whose name has one of the texts."""
        figures = {key: each for key, each in self.figures.items() if any(name in key for name in names)}
        curves = {key: each for key, each in self.curves.items() if any(name in key for name in names)}
        return replace(self, figures=figures, curves=curves)


def read_runs(given: Sequence[str], receipts: Sequence[str], *, unfinished: bool = False) -> list[Run]:
    """The runs that a user names: [LABEL=]FOLDER, or the file of `finepref margins`.

    Args:
        given: what the user names.
        receipts: names of the files that hold a receipt; the first that is there counts.
        unfinished: take runs that did not end, with a note.

    Raises:
        BadData: a run is not there (FP305), holds nothing to report (FP306), has a file that cannot be read (FP307),
            did not end (FP308), or is given twice (FP309).
    """
    runs: list[Run] = []
    seen: set[Path] = set()
    for each in given:
        label, equal, path = each.partition("=")
        if not equal or Path(each).exists():
            label, path = "", each
        place = Path(path)
        if not place.exists():
            raise _bad(place, "FP305", "there is no such folder: name the output folder of a run, or LABEL=FOLDER")
        if place.resolve() in seen:
            raise _bad(place, "FP309", "it would count as two runs: name it once")
        seen.add(place.resolve())
        if place.is_file():
            runs += _file(place, label, receipts)
        else:
            runs.append(_folder(place, label, receipts, unfinished=unfinished))
    return _merged(runs)


def _merged(runs: Sequence[Run]) -> list[Run]:
    """The runs, with those that have one receipt as one: a training, and evaluations of it in other places."""
    found: dict[str, Run] = {}
    for number, run in enumerate(runs):
        known = run.receipt is not None and "stage" in run.receipt
        key = json.dumps([run.label, run.receipt], sort_keys=True, default=str) if known else str(number)
        first = found.get(key)
        if first is None:
            found[key] = run
        else:
            figures, curves = {**first.figures, **run.figures}, {**first.curves, **run.curves}
            found[key] = replace(first, figures=figures, curves=curves, notes=[*first.notes, *run.notes])
    return [*found.values()]


def _folder(folder: Path, label: str, receipts: Sequence[str], *, unfinished: bool) -> Run:
    figures: dict[str, Figure] = {}
    file = next((folder / name for name in receipts if (folder / name).is_file()), None)
    receipt = _receipt(file, receipts) if file else None
    log = _log(folder)
    notes = _ended(folder, log, receipt, unfinished=unfinished)
    curves = _curves(log)
    for name, points in curves.items():
        if name.startswith("eval_"):
            figures[name] = Figure(points[-1][1])
        else:
            figures[f"train {name}"] = Figure(fmean(value for _, value in points[-max(1, len(points) // 4) :]))
    for name in ("train_results.json", "eval_results.json", "predict_results.json", "all_results.json"):
        if (folder / name).is_file():
            figures |= {key: Figure(value) for key, value in _numbers(_json(folder / name)) if key != "train_loss"}
    if (folder / "eval.json").is_file():
        own = _json(folder / "eval.json")
        figures |= {key: Figure(value) for key, value in _numbers(own)}
        figures |= _pairs(folder / "eval.pairs.jsonl", figures)
        for name, part in own.items():
            key = f"{name} rewards/mean"
            if key in figures:
                figures[key] = replace(figures[key], scored_by=str(part.get("model", "")))
    if (folder / "results.json").is_file():
        own, left_out = _own_results(folder, _json(folder / "results.json"))
        figures |= own
        notes += left_out
    figures |= _lm_eval(folder)
    if (folder / "margins.json").is_file():
        found = _file(folder / "margins.json", "", receipts)
        if len(found) != 1:
            text = f"it has {len(found)} models, which are a run each: name the file in place of the folder"
            raise _bad(folder / "margins.json", "FP307", text)
        figures |= found[0].figures
    if not figures and receipt is None:
        raise _bad(folder, "FP306", f"it has no {LOOKED_FOR}{_beside(folder)}")
    if not figures and log:
        text = "it was not evaluated, and ended before its log had an entry: both hosts write one every logging_steps"
        raise _bad(folder, "FP306", text)
    if not figures:
        raise _bad(folder, "FP306", f"it has a receipt, but no figures: no {LOOKED_FOR.partition(', ')[2]}")
    return Run(folder.name or str(folder), folder, label, receipt, figures, curves, notes)


def _beside(folder: Path) -> str:
    """A hint at runs below a folder that is none."""
    below = sorted(each.parent.name for each in folder.glob("*/trainer_*") if each.is_file())
    return f"; did you mean {folder / below[0]}?" if below else ""


def _receipt(file: Path, receipts: Sequence[str]) -> dict[str, Any]:
    """The receipt in a file; for one of `finepref eval`, that of the training, if the model that it names has one."""
    found = _json(file)
    if "runs" in found and "model" in found:
        paths = [part["path"] for part in (found.get("adapter"), found["model"]) if part]
        return _trained(paths, receipts) or found
    if missing := [name for name in RECEIPT_FIELDS if name not in found]:
        raise _bad(file, "FP307", f"it is not a whole receipt: {', '.join(missing)} missing")
    return found


def _trained(paths: Sequence[str], receipts: Sequence[str]) -> dict[str, Any] | None:
    """The receipt of the training of a model, from the first of some folders that has one."""
    file = next((Path(path, receipts[0]) for path in paths if Path(path, receipts[0]).is_file()), None)
    return _receipt(file, receipts) if file else None


def _log(folder: Path) -> list[dict[str, Any]]:
    """The entries of the training's log, oldest first; the host's state has more of them than its log."""
    state = folder / "trainer_state.json"
    if state.is_file():
        found = _json(state)
        if not isinstance(found.get("log_history"), list):
            raise _bad(state, "FP307", "it has no log_history")
        return [{**each, "total_steps": found.get("max_steps")} for each in found["log_history"]]
    file = folder / "trainer_log.jsonl"
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            if number == len(lines):  # of a run that was killed, which `_ended` tells
                break
            raise _bad(file, "FP307", "the line is not JSON", number) from None
        entries.append({**entry, "step": entry.get("current_steps")})
    return entries


def _ended(
    folder: Path, log: Sequence[Mapping[str, Any]], receipt: Mapping[str, Any] | None, *, unfinished: bool
) -> list[str]:
    """A note on a run that did not end.

    Raises:
        BadData: it did not end, and such runs are not to be taken (FP308).
    """
    done, planned = (log[-1].get("step"), log[-1].get("total_steps")) if log else (None, None)
    text = ""
    if done and planned and done < planned:
        text = f"it stopped after {done} of {planned} steps"
    elif receipt is None and log and any(folder.glob("checkpoint-*/finepref_receipt.json")):
        text = "it has no receipt, while its checkpoints have one"
    if text and not unfinished:
        raise _bad(folder, "FP308", f"the run did not end: {text}; resume it, or take it as it is with --unfinished")
    return [text] if text else []


def _curves(log: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for entry in log:
        if "step" not in entry or "train_loss" in entry:  # the host's summary
            continue
        for name, value in entry.items():
            if _is_number(value) and not UNREAD.search(name) and name not in ("current_steps", "total_steps"):
                found.setdefault(name, []).append((entry["step"], value))
    if found.get("accuracy") == found.get("rewards/accuracies"):  # OpenRLHF's log has it under both names
        found.pop("accuracy", None)
    return found


def _pairs(file: Path, known: Mapping[str, Figure]) -> dict[str, Figure]:
    """Accuracy and margin of `finepref apo eval` with the values of each pair, and the rewards of answers."""
    values: dict[str, dict[str, float]] = {}
    count: dict[tuple[str, str], int] = {}
    for row in _rows(file):
        place = str(row["name"]), str(row["id"])
        count[place] = number = count.get(place, 0) + 1
        for key, name in (
            ("right", "rewards/accuracies"),
            ("margin", "rewards/margins"),
            ("reward", "rewards/mean"),
        ):
            if key in row:
                values.setdefault(f"{row['name']} {name}", {})[f"{row['id']}\0{number}"] = float(row[key])
    return {
        name: Figure(known[name].value, True, own)
        for name, own in values.items()
        if name in known and abs(fmean(own.values()) - known[name].value) < 1e-6
    }


def _own_results(folder: Path, found: Mapping[str, Any]) -> tuple[dict[str, Figure], list[str]]:
    """Of `finepref eval`: {tasks: {task: {metrics: {name: {value, higher_is_better}}, by: {group: {name: value}}}}}.

    Returns:
        The figures, also those of each error type, subset or subject; and notes on tasks with too many of these.
    """
    figures: dict[str, Figure] = {}
    notes = []
    for task, result in (found.get("tasks") or {}).items():
        file = re.sub(r"[^\w.@-]+", "_", task)
        rows = _rows(folder / "samples" / f"{file}.jsonl")
        for key, metric in (result.get("metrics") or {}).items():
            if _is_number(metric.get("value")):
                name, _, chosen = key.partition(",")  # as lm-eval has it: metric,filter
                own = [row for row in rows if not chosen or str(row.get("id", "")).endswith(f"/{chosen}")]
                records = _records([{**row, "id": _key(row)} for row in own], name, "id", metric["value"])
                figures[_shown(task, name, chosen)] = Figure(metric["value"], metric.get("higher_is_better"), records)
        groups = result.get("by") or {}
        if len(groups) > GROUPS:
            notes.append(f"the figures of {task}'s {len(groups)} groups are in results.json only")
        elif len(groups) > 1:
            figures |= _by_group(task, groups, result.get("metrics") or {}, rows)
    return figures, notes


def _by_group(
    task: str, groups: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Figure]:
    """A task's figures of each error type, subset or subject of its rows."""
    figures: dict[str, Figure] = {}
    for group, values in groups.items():
        own = [{**row, "id": _key(row)} for row in rows if group in (row.get(name) for name in GROUPED_BY)]
        for name, value in values.items():
            if name in metrics and _is_number(value):
                better = metrics[name].get("higher_is_better")
                figures[f"{task} {name}, {group}"] = Figure(value, better, _records(own, name, "id", value))
    return figures


def _lm_eval(folder: Path) -> dict[str, Figure]:
    """Of lm-eval: results_TIME.json, of which the newest of each folder counts, and its samples."""
    figures: dict[str, Figure] = {}
    newest: dict[Path, Path] = {}
    for file in sorted([*folder.glob("results_*.json"), *folder.glob("*/results_*.json")]):
        newest[file.parent] = file
    for place, file in newest.items():
        found = _json(file)
        time = file.stem.removeprefix("results_")
        for task, metrics in (found.get("results") or {}).items():
            rows = _rows(place / f"samples_{task}_{time}.jsonl")
            directions = (found.get("higher_is_better") or {}).get(task, {})
            for key, value in metrics.items():
                name, _, chosen = key.partition(",")
                if not _is_number(value) or name.endswith("_stderr") or key in ("alias", "sample_len"):
                    continue
                own = [row for row in rows if row.get("filter", "none") == chosen]
                figures[_shown(task, name, chosen)] = Figure(
                    value, directions.get(name), _records(own, name, "doc_id", value)
                )
    return figures


def _shown(task: str, metric: str, chosen: str) -> str:
    """A figure's name; `chosen` is lm-eval's filter."""
    return f"{task} {metric}" if chosen in ("", "none") else f"{task} {metric} ({chosen})"


def _key(row: Mapping[str, Any]) -> str:
    """A document's id, in which what belongs to one record (RECORD/TYPE) can be told."""
    name, kind = str(row.get("id", "")), f"/{row.get('type', '')}"
    return f"{name.removesuffix(kind)}\0{kind}" if len(kind) > 1 and name.endswith(kind) else name


def _file(file: Path, label: str, receipts: Sequence[str]) -> list[Run]:
    """The runs of a file of `finepref margins`: its models, with the receipts of their trainings."""
    found = _json(file)
    if found.get("job") != "margins" or not isinstance(found.get("records"), Mapping):
        raise _bad(file, "FP307", "it is not a file of `finepref margins`: name the folder of a run")
    runs = []
    over = " over the reference" if found.get("reference") else ""
    for model, records in found["records"].items():
        kinds: dict[str, dict[str, dict[str, float]]] = {}
        for record, by_kind in records.items():
            for kind, measures in by_kind.items():
                for measure, value in measures.items():
                    for into in (kind, "overall"):
                        kinds.setdefault(measure, {}).setdefault(into, {})[f"{record}\0{kind}"] = value
        figures = {
            f"margin {measure}{over}, {kind}": Figure(fmean(values.values()), True, values)
            for measure, by_kind in kinds.items()
            for kind, values in by_kind.items()
            if kind == "overall" or len(by_kind) > 2
        }
        if signs := {key: float(value > 0) for key, value in kinds.get("sum", {}).get("overall", {}).items()}:
            figures["share of margins above 0"] = Figure(fmean(signs.values()), True, signs)
        if figures:
            place = (found.get("models") or {}).get(model) or {}
            paths = [place[key] for key in ("adapter", "path") if place.get(key)]
            runs.append(Run(model, file, label, _trained(paths, receipts), figures))
    if not runs:
        raise _bad(file, "FP306", "it has no margins")
    return runs


def _records(rows: Sequence[Mapping[str, Any]], name: str, key: str, value: float) -> dict[str, float]:
    """The values of each record, {} if their mean is not the figure, as of pass@k or F1 over a whole task."""
    found = {str(row[key]): float(row[name]) for row in rows if key in row and isinstance(row.get(name), int | float)}
    return found if found and abs(fmean(found.values()) - value) < 1e-6 else {}


def _numbers(found: Any, before: str = "") -> Iterator[tuple[str, float]]:
    """(name, value) of every number in nested objects; `calibration` repeats figures that are there already."""
    for name, value in found.items():
        key = f"{before}{name}"
        if isinstance(value, Mapping) and name not in ("calibration", "reasons", "classes"):
            yield from _numbers(value, f"{key} ")
        elif _is_number(value) and not UNREAD.search(key):
            yield key, float(value)


def _rows(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise _bad(file, "FP307", "the line is not JSON", number) from None
    return [row for row in found if isinstance(row, dict)]


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except ValueError:
        raise _bad(file, "FP307", "it is not whole JSON: it was cut off, or is of something else") from None
    if not isinstance(found, dict):
        raise _bad(file, "FP307", "it holds no JSON object")
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _bad(path: Path, code: str, text: str, line: int = 0) -> BadData:
    return BadData([Problem(str(path), line, "", code, text)])
