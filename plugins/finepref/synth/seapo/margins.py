"""Held-out margins of one model: how much more probable a good answer is than the same answer with an error.

The margin of a negative is the mean log-probability per token of the chosen answer minus that of the negative, see
`synth.margins`, which compares several models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from finepref.formats.bad_rows import BadRows
from finepref.formats.files import write_json
from finepref.synth.ask import work_folder
from finepref.synth.data_sources.job_rows import Rows
from finepref.synth.margins import Model, measure


def margins(
    data: Rows,
    output: Path,
    *,
    model: str,
    adapter: str | None = None,
    merge_system: bool = False,
    bad_rows: BadRows | None = None,
) -> dict[str, Any]:
    """Measure the negatives of a file, write the result as JSON and return it.

    The result has `types` (error type -> n, mean margin, share of margins above 0, mean log-probabilities of chosen
    and negative), `overall` (the same over all negatives) and `records` (id -> error type -> margin).

    Args:
        data: records in the format `negatives` that the model was not trained on, or feedback, joined by prompt.
        output: the JSON file to write.
        model: folder or hub name.
        adapter: folder or hub name of a peft adapter to put on the model.
        merge_system: see `checkpoint.rendered`.
        bad_rows: see `read_records`; rows that the chat template refuses or the model has no room for are bad too.

    Raises:
        BadData: see `read_records`.
        ValueError: the model has no chat template.
    """
    found = measure(
        data,
        [Model("", model, adapter)],
        job="seapo margins",
        pairs=False,
        merge_system=merge_system,
        bad_rows=bad_rows,
        work_dir=work_folder(output, None),
    )[""]
    means = {record: {name: each["mean"] for name, each in sides.items()} for record, sides in found.items()}
    measured = {record: (own.pop(""), own) for record, own in means.items()}
    result = {
        "model": model,
        "adapter": adapter,
        "data": str(data) if isinstance(data, Path) else data.name,
        "measure": "mean log-probability per response token, end-of-sequence token included; chosen minus negative",
        **summarise(measured),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, result)
    return result


def summarise(measured: Mapping[str, tuple[float, Mapping[str, float]]]) -> dict[str, Any]:
    """The margins of each record, and summaries per error type and overall.

    `measured`: record id -> mean log-probability of the chosen answer, and of each negative by name.
    """
    by_type: dict[str, list[tuple[float, float]]] = {}
    for good, means in measured.values():
        for name, bad in means.items():
            by_type.setdefault(name, []).append((good, bad))
    return {
        "types": {name: _summary(by_type[name]) for name in sorted(by_type)},
        "overall": _summary([pair for pairs in by_type.values() for pair in pairs]),
        "records": {
            record_id: {name: good - means[name] for name in sorted(means)}
            for record_id, (good, means) in measured.items()
        },
    }


def _summary(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    differences = [good - bad for good, bad in pairs]
    return {
        "n": len(pairs),
        "mean": fmean(differences),
        "share_above_zero": sum(difference > 0 for difference in differences) / len(pairs),
        "chosen_logp": fmean(good for good, _ in pairs),
        "negative_logp": fmean(bad for _, bad in pairs),
    }
