"""The records of a data set, read and checked once by our reader, in a cache that the host opens as an Arrow file.

Arrow sees only texts and counts. So columns whose types change, shards of different types, dates and columns that no
format reads cannot stop a run. A second start with the same files reads neither the rows nor their checks again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from hashlib import blake2b
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from finepref.formats import files, jsonl, records
from finepref.formats.bad_rows import BadRows
from finepref.formats.check import digest
from finepref.formats.problems import Problem
from finepref.hosts.reading import Sourced, SourceReader
from finepref.hosts.receipt import DatasetEntry
from finepref.hosts.run import Source
from finepref.methods.draws import prompt_key

SCHEMA = "rows-4"
"""To be changed whenever the cached rows change their meaning."""

_TEXTS = ("_record", "_formatting", "_record_id", "_place", "_prompt_key")
COLUMNS = pa.schema({name: pa.string() for name in _TEXTS} | {"_rows": pa.int32()})
"""Canonical JSON of the record, its format and id; file and line; `draws.prompt_key`; number of rows that it is."""

ROWS_FILE, REPORT_FILE = "rows.arrow", "report.json"
BATCH = 1000


class Prepared(NamedTuple):
    """A data set in the cache: the Arrow file, and the receipt's entry."""

    file: Path
    entry: DatasetEntry


def cached_row(source: Sourced) -> dict[str, Any]:
    """A record as a row of the cache."""
    record = source.record
    formatting = next(name for name, kind in records.FORMATS.items() if type(record) is kind)
    text = jsonl.dumps(records.to_row(record))
    values = (text, formatting, record.id, source.place, prompt_key(record), source.rows)
    return dict(zip(COLUMNS.names, values, strict=True))


def record_of(row: Mapping[str, Any]) -> records.Record:
    """The record of a row of the cache."""
    return records.revive(json.loads(row["_record"]), row["_formatting"])


def prepared(source: Source, bad_rows: BadRows, cache_dir: Path) -> Prepared:
    """Read a data set, or find it in the cache. Its bad rows are added to `bad_rows`, which then must be settled.

    Args:
        source: the data set.
        bad_rows: the run's collector.
        cache_dir: folder of all caches; files of other versions in it are left alone.
    """
    known = [(str(path), _sha256(path, cache_dir)) for path in source.files]
    named = [source.name, source.formatting, dict(source.columns or {}), source.error_type, dict(source.tags or {})]
    folder = cache_dir / _name([SCHEMA, version("finepref"), known, *named])
    report = folder / REPORT_FILE
    if report.is_file():
        return Prepared(folder / ROWS_FILE, _add_report(json.loads(report.read_bytes()), bad_rows))
    own = BadRows(skip=bad_rows.skip, max_bad=bad_rows.max_bad)
    reader = SourceReader(source, own)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        _write(partial / ROWS_FILE, map(cached_row, reader))
        content = {
            "entry": asdict(reader.entry),
            "read": own.read,
            "rejected": own.rejected,
            "problems": [asdict(problem) for problem in own.problems],
        }
        return Prepared(_kept(partial, folder, content), _add_report(content, bad_rows))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _add_report(report: Mapping[str, Any], bad_rows: BadRows) -> DatasetEntry:
    """Add the bad rows of a data set to the run's. Returns the receipt's entry."""
    bad_rows.read += report["read"]
    bad_rows.problems += [Problem(**problem) for problem in report["problems"]]
    entry = DatasetEntry(**report["entry"])
    before = bad_rows.codes.copy()
    for row in report["rejected"]:
        bad_rows.add(row, [Problem(row["file"], row["line"], **problem) for problem in row["problems"]])
    entry.rejected = dict(bad_rows.codes - before)
    return entry


def _kept(partial: Path, folder: Path, content: Mapping[str, Any]) -> Path:
    """Move a finished folder to its place, unless another process was faster."""
    files.write_json(partial / REPORT_FILE, content)
    try:
        os.replace(partial, folder)
    except OSError:
        if not (folder / REPORT_FILE).is_file():
            raise
    return folder / ROWS_FILE


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = iter(rows)
    with pa.OSFile(os.fspath(path), "wb") as sink, pa.ipc.new_stream(sink, COLUMNS) as writer:
        while batch := list(islice(rows, BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=COLUMNS))


def _sha256(path: Path, cache_dir: Path) -> str:
    """SHA-256 of a file; not computed again while its path, size and time of change are the same."""
    try:
        stat = path.stat()
    except OSError:
        return ""
    note = cache_dir / "files" / _name([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    if not note.is_file():
        found = digest(path)
        with files.replacing(note) as file:
            file.write(found.encode())
        return found
    return note.read_text()


def _name(content: Any) -> str:
    return blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
