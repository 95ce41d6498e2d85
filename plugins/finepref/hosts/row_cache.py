"""The records of a data set, read and checked once by our reader, in a cache of Arrow files for both hosts.

Arrow sees only texts and counts. So columns whose types change, shards of different types, dates and columns that no
format reads cannot stop a run. A second start with the same files reads neither the rows nor their checks again.
Of several processes that start together, one reads; the others wait for it and open what it has made.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from filelock import FileLock

from finepref.formats import files, jsonl, records
from finepref.formats.bad_rows import BadRows
from finepref.formats.check import digest
from finepref.formats.problems import Problem
from finepref.formats.record_places import place_of
from finepref.hosts.reading import Sourced, SourceReader
from finepref.hosts.receipt import DatasetEntry
from finepref.hosts.run import Source
from finepref.methods.draws import prompt_key
from finepref.synth.data_sources.hub import HubSet

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
    known = {path: sha256(path, cache_dir) for path in source.files}
    named = [source.name, source.formatting, dict(source.columns or {}), source.error_type, dict(source.tags or {})]
    digests = [(str(path), digest) for path, digest in known.items()]
    folder = cache_dir / name_of([SCHEMA, version("finepref"), digests, *named])

    def make(partial: Path) -> dict[str, Any]:
        own = BadRows(skip=bad_rows.skip, max_bad=bad_rows.max_bad)
        reader = SourceReader(source, own, known)
        write_rows(partial / ROWS_FILE, map(cached_row, reader))
        return {
            "entry": asdict(reader.entry),
            "read": own.read,
            "rejected": own.rejected,
            "problems": [asdict(problem) for problem in own.problems],
        }

    return Prepared(folder / ROWS_FILE, _add_report(made_once(folder, make), bad_rows))


def downloaded(hub: HubSet, cache_dir: Path) -> Path:
    """The rows of a data set on a hub as a file of the cache, which is written if it is not there.

    Raises:
        BadData: see `HubSet.downloaded`.
    """
    found = hub.downloaded()
    folder, name = cache_dir / name_of([SCHEMA, hub, found._fingerprint]), f"{hub.name.replace('/', '--')}.parquet"
    made_once(folder, lambda partial: {"bytes": found.to_parquet(partial / name)})
    return folder / name


def made_once(folder: Path, make: Callable[[Path], Mapping[str, Any]]) -> Any:
    """What is known of a folder of the cache, which is made if it is not there.

    Of several processes one makes it, and the others wait. If that one fails or is killed, the next one tries.

    Args:
        folder: the folder.
        make: writes the files into another folder, and returns what is to be known, as JSON has it.
    """
    report = folder / REPORT_FILE
    if not report.is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not report.is_file():
                _make(folder, make)
    return json.loads(report.read_bytes())


def _make(folder: Path, make: Callable[[Path], Mapping[str, Any]]) -> None:
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        files.write_json(partial / REPORT_FILE, make(partial))
        os.replace(partial, folder)
    except OSError:  # on a file system without locks, another process may have been faster
        if not (folder / REPORT_FILE).is_file():
            raise
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


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as `COLUMNS` has them."""
    rows = iter(rows)
    with pa.OSFile(os.fspath(path), "wb") as sink, pa.ipc.new_stream(sink, COLUMNS) as writer:
        while batch := list(islice(rows, BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=COLUMNS))


class CachedRecords(Sequence[Sourced]):
    """The records of some data sets in the cache, each made when it is read. They need no memory of their own."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.batches = [batch for path in paths for batch in batches_of(path)]

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self.batches)

    def __iter__(self) -> Iterator[Sourced]:
        for batch in self.batches:
            yield from map(sourced_of, batch.to_pylist())

    def __getitem__(self, index: Any) -> Any:
        """Not used: the records are read from the first to the last."""
        raise TypeError("records of the cache are read in their order")

    @property
    def formats(self) -> set[str]:
        """The formats of the records."""
        return {text for batch in self.batches for text in batch.column("_formatting").unique().to_pylist()}


def sourced_of(row: Mapping[str, Any]) -> Sourced:
    """A row of the cache as the reader gave it."""
    return Sourced(*place_of(row["_place"]), record_of(row), row["_rows"])


def batches_of(path: Path) -> list[pa.RecordBatch]:
    """The batches of a file of the cache. All processes that open it share its memory."""
    with pa.memory_map(os.fspath(path)) as source:
        return [*pa.ipc.open_stream(source)]


def sha256(path: Path, cache_dir: Path) -> str:
    """SHA-256 of a file; not computed again while its path, size and time of change are the same."""
    try:
        stat = path.stat()
    except OSError:
        return ""
    note = cache_dir / "files" / name_of([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    if not note.is_file():
        note.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{note}.lock"):
            if not note.is_file():
                with files.replacing(note) as file:
                    file.write(digest(path).encode())
    return note.read_text()


def name_of(content: Any) -> str:
    """The name of what is made of this content, which JSON can express."""
    return blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
