"""Data files of every kind that is read: JSON Lines and JSON arrays, .csv and .tsv, .parquet, .arrow; .gz and .zst.

    for row in rows_of(path): ...
    parse_row = layouts.reader(name, file=str(path), **reading(path))

Parquet, arrow and zst need pyarrow, which is imported when such a file is read.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, cast

from finepref.formats.jsonl import RawRow, other_kind, read_open, read_rows
from finepref.formats.problems import BadData, Problem
from finepref.formats.tables import read_table

BATCH = 1000
"""Rows of parquet and arrow that are in memory at once."""

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_PACKED = (".gz", ".zst")
_BESIDE_ARROW = frozenset({"dataset_info.json", "state.json"})
"""Files that `datasets` writes beside the shards of a data set."""


def kind_of(path: str | os.PathLike[str]) -> str:
    """The kind of a file by its name, without .gz and .zst: parquet, arrow, csv, tsv, or json for all others."""
    name = Path(path).name.lower()
    for suffix in _PACKED:
        name = name.removesuffix(suffix)
    suffix = name.rpartition(".")[2]
    return suffix if suffix in ("parquet", "arrow", "csv", "tsv") else "json"


def reading(path: str | os.PathLike[str]) -> dict[str, bool]:
    """The options of `layouts.reader` for the rows of a file: whether its nulls are absent keys, its cells texts."""
    kind = kind_of(path)
    return {"nulls_absent": kind in ("parquet", "arrow"), "cells": kind in _DELIMITERS}


def is_plain(path: str | os.PathLike[str]) -> bool:
    """Whether a file is read by `jsonl.read_rows`, thus in parts by several processes."""
    return kind_of(path) == "json" and not os.fspath(path).lower().endswith(".zst")


def shards(folder: Path) -> list[Path]:
    """The data files of a folder, sorted; hidden files and what `datasets` writes beside arrow files are no data.

    Raises:
        BadData: they are of different kinds (FP076), or there are none (FP002).
    """
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if any(kind_of(path) == "arrow" for path in paths):
        paths = [path for path in paths if path.name not in _BESIDE_ARROW]
    kinds = {kind_of(path): path for path in reversed(paths)}
    if len(kinds) > 1:
        text = "files of one kind make a data set; here are " + " and ".join(sorted(p.name for p in kinds.values()))
        raise BadData([Problem(str(folder), 0, "", "FP076", text)])
    if not paths:
        raise BadData([Problem(str(folder), 0, "", "FP002", "the folder has no file")])
    return paths


def rows_of(path: str | os.PathLike[str]) -> Iterator[RawRow]:
    """Every row of a file, good or bad, in order; a problem of the whole file comes as a row with line 0.

    Rows of parquet and arrow have their number for a line.
    """
    name, kind = os.fspath(path), kind_of(path)
    if is_plain(path) or not os.path.isfile(path):
        yield from read_rows(path)
        return
    try:
        with open(path, "rb") as file:
            head = file.read(64)
        found = other_kind(head, "")
        if found and not found.startswith((kind, "compressed by zstd")):
            yield _whole(name, "FP097", f"the file is {found}")
        elif kind in ("parquet", "arrow"):
            for number, value in enumerate(_columnar(path, kind, head), start=1):
                yield RawRow(number, json.dumps(value, default=str).encode(), value, [])
        else:
            with closing(_unpacked(path, head)) as opened:
                yield from _texts(opened, name, kind)
    except ImportError:
        what = kind if kind in ("parquet", "arrow") else "zst"
        yield _whole(name, "FP110", f"reading {what} needs pyarrow, which is not installed: pip install pyarrow")
    except OSError as error:
        yield _whole(name, "FP001", error.strerror or " ".join(str(error).split()))
    except (EOFError, ValueError, zlib.error) as error:  # pyarrow's errors are ValueErrors
        yield _whole(name, "FP001", f"the file is damaged: {' '.join(str(error).split())}")


def _texts(opened: io.BufferedReader, name: str, kind: str) -> Iterator[RawRow]:
    """The rows of a file of text; JSON is read as such under the name of a table too."""
    first = opened.peek(64)[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if kind == "json" or first in (b"{", b"["):
        yield from read_open(opened, name)
    else:
        yield from read_table(cast(BinaryIO, opened), name, delimiter=_DELIMITERS[kind])


def _unpacked(path: str | os.PathLike[str], head: bytes) -> io.BufferedReader:
    """The file, unpacked as it is read."""
    if head.startswith(b"\x1f\x8b"):
        return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(path)))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow

        return io.BufferedReader(cast(io.RawIOBase, pyarrow.input_stream(os.fspath(path), compression="zstd")))
    return open(path, "rb")


def _columnar(path: str | os.PathLike[str], kind: str, head: bytes) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, or of an arrow file or stream (as `datasets` writes them)."""
    import pyarrow

    if kind == "parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=BATCH):
                yield from batch.to_pylist()
        return
    with pyarrow.memory_map(os.fspath(path)) as source:
        if head.startswith(b"ARROW1"):
            reader = pyarrow.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(pyarrow.ipc.open_stream(source))
        for batch in batches:
            for start in range(0, batch.num_rows, BATCH):
                yield from batch.slice(start, BATCH).to_pylist()


def _whole(name: str, code: str, text: str) -> RawRow:
    return RawRow(0, b"", None, [Problem(name, 0, "", code, text)])
