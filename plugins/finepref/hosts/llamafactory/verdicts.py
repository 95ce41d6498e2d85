"""What is decided about each row while it is prepared: kept, cut, skipped or rejected.

A map function cannot count for the run, since it may run in other processes, or not at all if the cache has its
result. So it writes its verdict into columns, which are counted and removed afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from llamafactory.extras import logging

from finepref.formats import record_places
from finepref.formats.problems import BadData, Problem
from finepref.hosts.run import Run
from finepref.methods.options import Options

logger = logging.get_logger(__name__)

BATCH = 10_000  # of verdicts that are counted at a time
COLUMNS = ("_id", "_at", "_count", "_cut", "_skipped", "_problem", "_dropped")


def verdict(
    record_id: str,
    place: str,
    count: int,
    *,
    cut: str = "",
    skipped: str = "",
    problems: Sequence[Problem] = (),
    dropped: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The columns of a verdict on one row.

    Args:
        record_id: id of its record.
        place: file and line.
        count: number of rows of the data that the row was made from.
        cut, skipped: see `finepref.methods.overlong.Fit`.
        problems: what is wrong with it.
        dropped: name of a response of the record that is left out -> the reason.
    """
    found = record_places.at(problems, place)
    texts = "\n".join(json.dumps(astuple(problem)) for problem in found)
    values = (record_id, place, count, cut, skipped, texts, json.dumps(dropped) if dropped else "")
    return dict(zip(COLUMNS, values, strict=True))


def problems_of(text: str) -> list[Problem]:
    """The problems in a cell of the column `_problem`."""
    return [Problem(*json.loads(line)) for line in text.split("\n")] if text else []


def keep_good(run: Run, dataset: Any, found: Any = None) -> Any:
    """Count the verdicts on a data set and drop the rows that are skipped or rejected.

    Args:
        run: the run that counts.
        dataset: the rows.
        found: the verdict on each; default: the columns of `dataset`, which are then removed. What is cut of a row
            was counted before if `found` is given, and does not count if the row is dropped now.

    Returns:
        The rows that are left.

    Raises:
        BadData: there are more bad rows than the options allow.
    """
    source = dataset if found is None else found
    left = []
    for batch in source.select_columns(list(COLUMNS)).with_format("arrow").iter(BATCH):
        out = pc.or_(pc.not_equal(batch["_problem"], ""), pc.not_equal(batch["_skipped"], ""))
        left.append(~np.asarray(out))
        told = pc.or_(pc.not_equal(batch["_cut"], ""), pc.not_equal(batch["_dropped"], ""))
        for row in batch.filter(pc.or_(out, told)).to_pylist():
            _count(run, row, first=found is None)
    kept = np.flatnonzero(np.concatenate(left)) if left else []
    run.bad_rows.settle()
    if found is None:
        dataset = dataset.remove_columns(list(COLUMNS))
    return dataset if len(kept) == len(source) else dataset.select(kept)


def _count(run: Run, row: Mapping[str, Any], *, first: bool) -> None:
    """Count one verdict; `first` says whether the row's cut was not counted before."""
    count, problems = row["_count"], problems_of(row["_problem"])
    if problems or row["_skipped"]:
        if not first:
            run.rows.note_cut(row["_cut"], -count)
        run.bad_rows.problems += problems
        if count and problems:
            run.bad_rows.add(rejected_record(row["_id"], problems), problems, rows=count)
        elif count:
            run.rows.skip(row["_id"], row["_at"], row["_skipped"], count)
        return
    if first:
        run.rows.note_cut(row["_cut"], count)
    for name, reason in json.loads(row["_dropped"] or "{}").items():
        run.rows.skip_response(row["_id"], row["_at"], name, reason)


def keep_checked(run: Run, dataset: Any, check: Any, data_args: Any, *, desc: str, unread: Sequence[str] = ()) -> Any:
    """The rows of a data set that a check accepts; the others are counted, see `keep_good`.

    Args:
        run: the run that counts.
        dataset: the rows.
        check: batch of rows -> the columns of their verdicts, for `datasets.map`.
        data_args: the host's, which say how to map.
        desc: for the progress bar.
        unread: columns that the check does not read, which need not be decoded.
    """
    read = [name for name in dataset.column_names if name not in unread]
    found = dataset.select_columns(read).map(
        check,
        batched=True,
        remove_columns=read,
        load_from_cache_file=not data_args.overwrite_cache,
        num_proc=data_args.preprocessing_num_workers,
        desc=desc,
    )
    return keep_good(run, dataset, found)


def rejected_record(record_id: str, problems: Sequence[Problem]) -> dict[str, Any]:
    """A record with problems that its row alone does not have, as rejected.jsonl lists it."""
    told = [{"field": each.field, "code": each.code, "message": each.message} for each in problems]
    return {"file": problems[0].file, "line": problems[0].line, "id": record_id, "problems": told}


@dataclass(frozen=True)
class Verdicts:
    """Drops rows by their verdicts in a stream, where nothing can be counted for the run."""

    options: Options

    def drop(self, examples: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """The rows that are kept, for `IterableDataset.map`. Each row that is dropped is logged.

        Raises:
            ValueError: a row has a problem, and `finepref_bad_rows` is not skip. (A data-loader process can pass on
                only a text.)
        """
        kept = []
        columns = (examples[name] for name in ("_id", "_at", "_count", "_skipped", "_problem"))
        for index, (record_id, place, count, skipped, problem) in enumerate(zip(*columns, strict=True)):
            if problem and self.options.finepref_bad_rows == "error":
                raise ValueError(str(BadData(problems_of(problem))))
            if not problem and not skipped:
                kept.append(index)
            elif count:
                reason = "; ".join(map(str, problems_of(problem))) or skipped
                logger.warning(f"finepref: {record_id} ({place}) is left out of the stream: {reason}")
        return {name: [values[i] for i in kept] for name, values in examples.items() if name not in COLUMNS}


def drop_in_stream(dataset: Any, options: Options) -> Any:
    """A stream without the rows that are skipped or rejected, see `Verdicts.drop`."""
    return dataset.map(Verdicts(options).drop, batched=True, remove_columns=list(next(iter(dataset))))


def column(dataset: Any, name: str) -> Iterator[Any]:
    """A column of a data set in Arrow arrays of at most BATCH rows. As Python's values it takes 100 times as long."""
    for batch in dataset.select_columns([name]).with_format("arrow").iter(BATCH):
        yield batch[name].combine_chunks()


def total(dataset: Any, name: str) -> int:
    """The sum of a column of numbers, or the number of rows that have True."""
    return sum(pc.sum(part).as_py() for part in column(dataset, name))


def distinct(dataset: Any, name: str) -> set[Any]:
    """The different values of a column, or of the lists in it."""
    found: set[Any] = set()
    for part in column(dataset, name):
        found.update(pc.unique(part.flatten() if hasattr(part, "flatten") else part).to_pylist())
    return found


def rows_of(examples: Mapping[str, Sequence[Any]]) -> Iterable[dict[str, Any]]:
    """The rows of a batch of columns."""
    return (dict(zip(examples, values, strict=True)) for values in zip(*examples.values(), strict=True))


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The columns of a batch of rows, of which there must be one; the reverse of `rows_of`."""
    return {name: [row[name] for row in rows] for name in rows[0]}
