"""A resumed run continues the one whose receipt is in the checkpoint, or says in what it differs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from finepref.hosts import model_identity, receipt

FREE_OPTIONS = (
    "finepref_resume_changed",
    "finepref_full_logits",
    "finepref_max_bad",
    "finepref_reference_cache",
    "tdpo_log_kl",
)
"""Options that do not change what is trained."""

SHOWN = ("template", "input_template", "chat_template_sha256", "cutoff_len", "tokenizer", "precision")
NOTED = ("optimizer", "batch", "epochs", "max_steps")


class Change(NamedTuple):
    """A difference between the run of a checkpoint and this one.

    Attributes:
        name: of the setting.
        before, now: its values.
        refused: whether it makes the whole another run; else it is only noted, as a longer training is.
    """

    name: str
    before: Any
    now: Any
    refused: bool = True


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """In what two receipts differ. A setting that one of them does not have, from another version, is not compared.

    Both have the parts that `finepref.hosts.run.Run.facts` makes.
    """
    now = json.loads(json.dumps(now))
    found = [Change(key, before[key], now[key]) for key in ("stage", "seed") if before[key] != now[key]]
    found += _options(before["settings"], now["settings"])
    found += _data(before, now)
    if "run" in before:
        found += _setup(before["run"], now["run"])
    return found


def _options(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    for name in before.keys() & now.keys() - {*FREE_OPTIONS}:
        if before[name] != now[name]:
            yield Change(name, before[name], now[name])


def _data(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    """Files are compared by content, so that they may be renamed; a data set without local files by its name."""
    old, new = (_training_sets(each) for each in (before, now))
    if [each["files"] or each["name"] for each in old] != [each["files"] or each["name"] for each in new]:
        yield Change("dataset", _named(old), _named(new))
    size = "in_training_set"
    theirs, ours = before["rows"], now["rows"]
    if size in theirs and theirs[size] != ours[size]:
        yield Change(f"rows {size}", theirs[size], ours[size])


def _training_sets(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """{name, files: digests} of each set that is trained on; of a receipt without names, of all sets."""
    left = list(content.get("run", {}).get("datasets") or [each["name"] for each in content["datasets"]])
    found = []
    for each in content["datasets"]:
        if each["name"] in left:
            left.remove(each["name"])
            found.append({"name": each["name"], "files": [*each["files"].values()]})
    return found


def _named(sets: list[dict[str, Any]]) -> str:
    return ", ".join(
        f"{each['name']} (sha256 {' '.join(file[:8] for file in each['files']) or 'unknown'})" for each in sets
    )


def _setup(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    if not model_identity.same(before["model"], now["model"]):
        yield Change("model", before["model"], now["model"])
    # not the reference's kind: whether a model has an adapter switched off, or is a second one, changes no number
    for name, one, other in (
        ("adapters", before["adapters"], now["adapters"]),
        ("reference", _models(before["reference"]), _models(now["reference"])),
    ):
        if len(one) != len(other) or not all(map(model_identity.same, one, other)):
            yield Change(name, before[name], now[name])
    for name in SHOWN:
        if before[name] != now[name]:
            yield Change(name, before[name], now[name], refused=name != "precision")
    for name in before["finetuning"]:
        if before["finetuning"][name] != now["finetuning"].get(name):
            yield Change(f"finetuning {name}", before["finetuning"][name], now["finetuning"].get(name))
    for name in NOTED:
        old, new = before[name], now[name]
        if isinstance(old, Mapping):
            for key in old:
                if old[key] != new.get(key):
                    yield Change(f"{name} {key}", old[key], new.get(key), refused=False)
        elif old != new:
            yield Change(name, old, new, refused=False)


def _models(reference: Mapping[str, Any]) -> list[Any]:
    return [each for each in (reference["model"], *reference["adapters"]) if each]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = value["model"] if value.get("kind") == "model" else value
        if "kind" in inner:
            return str(inner["kind"])
        if "path" in inner:
            return f"{inner['path']} (sha256 {str(inner.get('weights_sha256'))[:8]})"
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return str(value)


def message(folder: Path, found: list[Change]) -> str:
    """One line: what the checkpoint was trained with, and what this run has."""
    data = [change for change in found if change.name == "dataset"]
    rest = [change for change in found if change.name != "dataset"]
    parts = [f"was trained on {change.before}, this run reads {change.now}" for change in data]
    parts += [f"has {change.name} {_shown(change.before)}, this run {_shown(change.now)}" for change in rest]
    return f"the checkpoint {folder} " + "; it ".join(parts)


def continue_from(run: Any, folder: Path, *, seed: int, switch: str, warn: Callable[[str], None]) -> None:
    """Compare this run with the receipt in a checkpoint, and note in the run what was trained before.

    Args:
        run: the `finepref.hosts.run.Run`, with its data counted and its setup.
        folder: the checkpoint.
        seed: this run's seed.
        switch: the option that resumes anyway, as the user writes it.
        warn: prints a warning on one process.

    Raises:
        ValueError: one line that names each difference, unless the option is set.
    """
    before = receipt.read(folder)
    if before is None:
        warn(
            f"there is no {receipt.FILE_NAME} in the checkpoint {folder}: it is not known which data and which "
            "options it was trained with"
        )
        run.parts, run.seen_before = [{"first_step": 0, "last_step": None, "receipt": False, "differs": {}}], None
        return
    found = changes(before, run.facts(seed))
    refused = [change for change in found if change.refused]
    if refused and not run.options.finepref_resume_changed:
        raise ValueError(f"{message(folder, refused)}; use {switch} to resume anyway")
    if found:
        warn(message(folder, found))
    run.parts = before.get("parts") or [_part_of(before)]
    run.seen_before = before["rows"].get("seen")
    run.differs = {change.name: {"before": change.before, "now": change.now} for change in found}


def _part_of(before: Mapping[str, Any]) -> dict[str, Any]:
    """The only part of a receipt from before there were parts."""
    first = before["first_step"]
    return {"first_step": first, "last_step": first + before["optimizer_steps"], "receipt": True, "differs": {}}
