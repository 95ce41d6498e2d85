"""`finepref reversegen eval`: the figures of a round. Every proposed instruction ends in exactly one class.

failing      the target failed it             duplicate   near-equal to one that was kept
solved       the target solved it             invalid     not a usable instruction, with the reason
unjudged     no verdict, with the reason      unproposed  the engine failed, so there is no instruction
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from finepref.formats.bad_rows import BadRows
from finepref.synth.dedup import normalised
from finepref.synth.diversity import self_bleu
from finepref.synth.left_out import read_all
from finepref.synth.reversegen.given_answers import given_answer
from finepref.synth.reversegen.instructions import Row, read_dicts

CLASSES = ("failing", "solved", "duplicate", "invalid", "unjudged", "unproposed")


class Fate(NamedTuple):
    """The class of a proposal, and the reason if the class has several."""

    kind: str
    reason: str = ""


def fates(files: Sequence[Path]) -> dict[str, Fate]:
    """The class of every row of the first file (and of the rows that its step left out), by id.

    Args:
        files: the outputs of the steps in their order, the first with the proposals, the last with labels. Every row
            of a file must be in the next file, or among the rows that the next step left out (`left_out.read_all`).

    Raises:
        BadData: a file is not JSON Lines.
        ValueError: a row is missing, has no origin, or is in two places.
    """
    return _fates(files, {path: read_dicts(path) for path in files})


def _fates(files: Sequence[Path], contents: Mapping[Path, Sequence[Row]]) -> dict[str, Fate]:
    found: dict[str, Fate] = {}
    before: set[str] | None = None
    for path in files:
        rows = _ids(path, contents[path])
        told = {str(each.row["id"]): Fate(each.kind, each.reason) for each in read_all(path)}
        if both := {*rows} & told.keys():
            raise ValueError(f"{path}: {min(both)} is both passed on and left out")
        now = {*rows, *told}
        if before is not None and now != before:
            lost, more = sorted(before - now), sorted(now - before)
            raise ValueError(f"{path}: " + (f"{lost[0]} is missing" if lost else f"{more[0]} is in no earlier file"))
        found |= told
        before = {*rows}
    for row in contents[files[-1]]:
        if type(row.get("label")) is not bool:
            raise ValueError(f"{files[-1]}: {row['id']} has no label")
        found[str(row["id"])] = Fate("solved" if row["label"] else "failing")
    return found


def measure(
    files: Sequence[Path], *, sample: int = 0, seed: int = 0, bad_rows: BadRows | None = None
) -> dict[str, object]:
    """The figures of a round, or of a held-out file.

    `classes` and `reasons` count all rows; `failure_rate` is the share of failing rows, `failure_rate_judged` that
    among rows with a verdict, and `accuracy` its complement; `self_bleu` (ReverseGen's mean of BLEU-2 to BLEU-5) and
    `distinct` are those of the texts in the first file.

    If the judge was `entropy`, `entropy` is the mean entropy in nats, and of the rows with an `answer`, `accuracy` is
    the share whose most probable or most frequent answer is right (`given_answer`), `average_precision` that of the
    ranking by confidence, as R-Tuning has it, and `ece` the calibration error of the confidence; `calibration` has all
    of it, with the bins. `letters_outside` is the mean probability outside the letters of the options.

    Args:
        files: see `fates`.
        sample, seed: of `self_bleu`; compare sets of different sizes at the same sample size only.
        bad_rows: see `read_dicts`; rows that a step has rejected are invalid.
    """
    contents = {path: read_dicts(path, bad_rows=bad_rows) for path in files}
    found = _fates(files, contents)
    classes = Counter(fate.kind for fate in found.values())
    judged = classes["failing"] + classes["solved"]
    texts = [str(row["prompt"]) for row in contents[files[0]] if isinstance(row.get("prompt"), str)]
    measured = contents[files[-1]]
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
        "distinct": _share(len({*map(normalised, texts)}), len(texts)),
        "self_bleu": self_bleu(texts, sample=sample, seed=seed)["mean"] if len(texts) > 1 else None,
        "self_bleu_sample": sample,
        **_uncertainty(measured),
    }


def draw_calibration(found: Mapping[str, object], file: Path) -> None:
    """Write the reliability diagram of what `measure` found; without a calibration, remove that of an earlier run.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from finepref.synth.reliability_diagram import draw

    calibration: Any = found["calibration"]
    if calibration is None:
        file.unlink(missing_ok=True)
        return
    draw(
        [(each["from"], each["confidence"], each["accuracy"]) for each in calibration["bins"]],
        file,
        x="confidence in the answer",
        y="share of such answers that are right",
        title=f"{calibration['rows']} rows: ECE {calibration['ece']:.3f}",
    )


def _ids(path: Path, rows: Sequence[Row]) -> dict[str, Row]:
    by_id = {str(row.get("id")): row for row in rows}
    if len(by_id) < len(rows) or any("id" not in row for row in rows):
        raise ValueError(f"{path}: every row needs its own id")
    return by_id


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _uncertainty(rows: Sequence[Row]) -> dict[str, object]:
    """The figures of the judge `entropy`, see `measure`; none of them without its rows."""
    scores = [verdict["score"] for row in rows if (verdict := _entropy_verdict(row))]
    given = [found for row in rows if _entropy_verdict(row) and (found := given_answer(row))]
    known = [(each.confidence, each.right) for each in given if each.right is not None]
    outside = [float(share) for row in rows if isinstance(share := row.get("letters_outside"), int | float)]
    found: dict[str, object] = {
        "entropy": fmean(scores) if scores else None,
        "letters_outside": fmean(outside) if outside else None,
        "average_precision": None,
        "ece": None,
        "calibration": None,
    }
    if scores:
        found["accuracy"] = _share(sum(right for _, right in known if right), len(known))
    if not known:
        return found
    import torch

    from finepref.synth.calibration import calibration_error, reliability

    confidence = torch.tensor([p for p, _ in known], dtype=torch.float64)
    labels = torch.tensor([float(bool(right)) for _, right in known], dtype=torch.float64)
    errors, bins = calibration_error(confidence, labels), reliability(confidence, labels)
    size = len(bins.count)
    found["ece"] = errors.expected
    found["calibration"] = {
        "rows": len(known),
        "confidence": float(confidence.mean()),
        "ece": errors.expected,
        "ace": errors.average,
        "mce": errors.maximum,
        "bins": [
            {"from": i / size, "to": (i + 1) / size, "n": int(n), "confidence": p, "accuracy": share}
            for i, (n, p, share) in enumerate(zip(*(part.tolist() for part in bins), strict=True))
            if n
        ],
    }
    if any(right for _, right in known):
        from sklearn.metrics import average_precision_score

        ranked = average_precision_score([bool(right) for _, right in known], [p for p, _ in known])
        found["average_precision"] = float(ranked)
    return found


def _entropy_verdict(row: Row) -> Mapping[str, float] | None:
    verdict = row.get("verdict")
    return verdict if isinstance(verdict, Mapping) and verdict.get("judge") == "entropy" else None
