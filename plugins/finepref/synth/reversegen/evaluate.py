"""`finepref reversegen eval`: the figures of a round. Every proposed instruction ends in exactly one class.

failing      the target failed it             duplicate   near-equal to one that was kept
solved       the target solved it             invalid     not a usable instruction, with the reason
unjudged     no verdict, with the reason      unproposed  the engine failed, so there is no instruction

With a judge of safety, failing means an unsafe response, and the failure rate is the attack success rate (ASR).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from finepref.formats.bad_rows import BadRows
from finepref.synth.dedup import normalised
from finepref.synth.diversity import self_bleu
from finepref.synth.intervals import wilson
from finepref.synth.judges.by_rule import as_text
from finepref.synth.judges.refusals import refused
from finepref.synth.left_out import ENGINE, read_all
from finepref.synth.reversegen.improve import majority
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

    `classes` and `reasons` count all rows; of an engine's failure the kind is told, not its message, which may repeat
    a prompt. `failure_rate` is the share of failing rows, `failure_rate_judged` that among rows with a verdict, each
    with Wilson's 95 % interval, and `accuracy` is the complement of the latter. `refusals` are the judged responses
    that refuse (see `judges.refusals`), `refusal_rate` their share of the judged rows with one response. `self_bleu`
    (ReverseGen's mean of BLEU-2 to BLEU-5) and `distinct` are those of the texts in the first file,
    `self_bleu_failing` is that of the failing instructions. If the judge was `entropy`, `entropy` is the mean entropy
    in nats, and `average_precision` is that of the ranking by entropy, lowest first, where a majority answer is right
    if it begins with the row's `answer`.

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
            kind: dict(Counter(_told(fate.reason) for fate in found.values() if fate.kind == kind and fate.reason))
            for kind in ("invalid", "unjudged", "unproposed")
        },
        "failure_rate": _share(classes["failing"], len(found)),
        "failure_rate_interval": wilson(classes["failing"], len(found)),
        "failure_rate_judged": _share(classes["failing"], judged),
        "failure_rate_judged_interval": wilson(classes["failing"], judged),
        "accuracy": _share(classes["solved"], judged),
        "texts": len(texts),
        "distinct": _share(len({*map(normalised, texts)}), len(texts)),
        **_refusals(measured),
        "self_bleu": _self_bleu(texts, sample, seed),
        "self_bleu_failing": _self_bleu(_failing(measured), sample, seed),
        "self_bleu_sample": sample,
        **_uncertainty(measured),
    }


def _told(reason: str) -> str:
    """The reason for a report: of an engine's failure the HTTP status or the kind of error, without its message."""
    kind = re.match(rf"{ENGINE}: (?:HTTP \d+|\w+(?:Error|Exception|Timeout))(?=:|$)", reason)
    return kind[0] if kind else reason


def _failing(rows: Sequence[Row]) -> list[str]:
    return [str(row["prompt"]) for row in rows if row["label"] is False and isinstance(row.get("prompt"), str)]


def _self_bleu(texts: Sequence[str], sample: int, seed: int) -> float | None:
    return self_bleu(texts, sample=sample, seed=seed)["mean"] if len(texts) > 1 else None


def _refusals(rows: Sequence[Row]) -> dict[str, float | None]:
    responses = [row["response"] for row in rows if isinstance(row.get("response"), str)]
    count = sum(bool(refused(str(each))) for each in responses)
    return {"refusals": count if responses else None, "refusal_rate": _share(count, len(responses))}


def _ids(path: Path, rows: Sequence[Row]) -> dict[str, Row]:
    by_id = {str(row.get("id")): row for row in rows}
    if len(by_id) < len(rows) or any("id" not in row for row in rows):
        raise ValueError(f"{path}: every row needs its own id")
    return by_id


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
