"""What became of every proposed instruction of a round: each ends in exactly one class.

failing      the target failed at it          duplicate   near-equal to one that was kept
solved       the target did not               invalid     no instruction to go on with, with the reason
unjudged     no verdict, with the reason      unproposed  the engine failed before there was an instruction
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from finepref.synth.ask import left_out_of, read_dicts
from finepref.synth.diversity import self_bleu
from finepref.synth.judges.by_rule import as_text
from finepref.synth.reversegen.few_shots import Row, key, majority

CLASSES = ("failing", "solved", "duplicate", "invalid", "unjudged", "unproposed")


class Fate(NamedTuple):
    """The class of one proposal, and the reason where the class has several."""

    kind: str
    reason: str = ""


def fates(files: Sequence[Path]) -> dict[str, Fate]:
    """The fate of every row of the first file (and of what its step left out), by id.

    Args:
        files: the outputs of the steps in their order, the first with the proposals, the last with labels. Between two
            of them a row may go only where the step says so: `.left_out.jsonl`, `.unjudged.jsonl`, or the groups in
            the `.report.json` of dedup.

    Raises:
        BadData: a file is not JSON Lines.
        ValueError: a row got lost, came from nowhere, or is in two places.
    """
    found: dict[str, Fate] = {}
    before: set[str] | None = None
    for path in files:
        rows = _ids(path, read_dicts(path))
        told = _left_out(path)
        if both := {*rows} & told.keys():
            raise ValueError(f"{path}: {min(both)} is handed on and left out")
        now = {*rows, *told}
        if before is not None and now != before:
            lost, more = sorted(before - now), sorted(now - before)
            raise ValueError(f"{path}: " + (f"{lost[0]} is lost" if lost else f"{more[0]} came from nowhere"))
        found |= told
        before = {*rows}
    for row in read_dicts(files[-1]):
        if type(row.get("label")) is not bool:
            raise ValueError(f"{files[-1]}: {row['id']} has no label")
        found[str(row["id"])] = Fate("solved" if row["label"] else "failing")
    return found


def measure(files: Sequence[Path], *, sample: int = 0, seed: int = 0) -> dict[str, object]:
    """The figures of a round, or of a held-out file.

    `classes` and `reasons` count all rows; `failure_rate` is failing over all rows, `failure_rate_judged` over those
    with a verdict, `accuracy` its complement; `self_bleu` (ReverseGen's mean of BLEU-2 to 5) and `distinct` are of the
    texts in the first file. `entropy` is the mean of the judge's, in nats, and `average_precision` that of the
    majority answer being right (it begins with the row's `answer`), the rows with least entropy first; both where the
    judge was `entropy`.

    Args:
        files: see `fates`.
        sample, seed: of `self_bleu`; sets of different size compare at one sample size only.
    """
    found = fates(files)
    classes = Counter(fate.kind for fate in found.values())
    judged = classes["failing"] + classes["solved"]
    texts = [str(row["prompt"]) for row in read_dicts(files[0]) if isinstance(row.get("prompt"), str)]
    measured = read_dicts(files[-1])
    return {
        "rows": len(found),
        "classes": {kind: classes[kind] for kind in CLASSES},
        "reasons": {
            kind: dict(Counter(fate.reason for fate in found.values() if fate.kind == kind and fate.reason))
            for kind in ("invalid", "unjudged", "unproposed")
        },
        "failure_rate": _share(classes["failing"], len(found)),
        "failure_rate_judged": _share(classes["failing"], judged),
        "accuracy": _share(classes["solved"], judged),
        "texts": len(texts),
        "distinct": _share(len({*map(key, texts)}), len(texts)),
        "self_bleu": self_bleu(texts, sample=sample, seed=seed)["mean"] if len(texts) > 1 else None,
        "self_bleu_sample": sample,
        **_uncertainty(measured),
    }


def _ids(path: Path, rows: Sequence[Row]) -> dict[str, Row]:
    by_id = {str(row.get("id")): row for row in rows}
    if len(by_id) < len(rows) or any("id" not in row for row in rows):
        raise ValueError(f"{path}: every row needs an id of its own")
    return by_id


def _left_out(path: Path) -> dict[str, Fate]:
    told: dict[str, Fate] = {}
    if (aside := left_out_of(path)).exists():
        for row in read_dicts(aside):
            why = row["left_out"]
            assert isinstance(why, dict)
            told[str(row["id"])] = Fate(why["kind"], why["reason"])
    if (aside := path.with_suffix(".unjudged.jsonl")).exists():
        told |= {str(row["id"]): Fate("unjudged", str(row["reason_unjudged"])) for row in read_dicts(aside)}
    if (aside := path.with_suffix(".report.json")).exists():
        report = json.loads(aside.read_bytes())
        if report.get("job") == "dedup":
            told |= {row["id"]: Fate("duplicate") for group in report["groups"] for row in group["left_out"]}
    return told


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _uncertainty(rows: Sequence[Row]) -> dict[str, float | None]:
    measured: list[tuple[float, bool | None]] = []
    for row in rows:
        verdict = row.get("verdict")
        if isinstance(verdict, Mapping) and verdict.get("judge") == "entropy":
            gold = row.get("answer")
            right = _begins(majority(row.get("responses")) or "", gold) if isinstance(gold, str) else None
            measured.append((verdict["score"], right))
    known = [(nats, right) for nats, right in measured if right is not None]
    precision = None
    if any(right for _, right in known):
        from sklearn.metrics import average_precision_score

        precision = float(average_precision_score([right for _, right in known], [-nats for nats, _ in known]))
    return {"entropy": fmean(nats for nats, _ in measured) if measured else None, "average_precision": precision}


def _begins(text: str, gold: str) -> bool:
    words = as_text(gold)
    return as_text(text)[: len(words)] == words
