"""Tokenised rows in an Arrow file, which all processes of a machine map into their memory and share.

A row is read where it is used. So the memory of a process does not grow with the number of rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from finepref.hosts import list_columns
from finepref.hosts.row_cache import BATCH, batches_of

IDS = pa.list_(pa.int32())
NAMES = pa.list_(pa.string())
WEIGHTS = {"marks": pa.list_(pa.bool_()), "weight": pa.list_(pa.float32())}  # see `packed.weight`

Values = Mapping[str, Any]
"""Column -> its value in one row: an array where the column has lists of numbers."""


class TokenisedRows(Sequence[Any]):
    """Rows that are made of their columns when they are read, with the method `select` that the host's `train` calls.

    Args:
        batches: the columns; all but the last one have as many rows.
        make: (columns of a row, these rows) -> the row.
        places: which of the rows, by their index in the batches; default: all.
        more: further arrays, one element per row of the batches.
    """

    def __init__(
        self,
        batches: Sequence[pa.RecordBatch],
        make: Callable[[Values, TokenisedRows], Any],
        places: Sequence[int] | np.ndarray | None = None,
        more: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.batches, self.make, self.more = batches, make, dict(more or {})
        self.places = range(sum(batch.num_rows for batch in batches)) if places is None else places

    @classmethod
    def of(
        cls,
        rows: Iterable[Values],
        schema: pa.Schema,
        make: Callable[[Values, TokenisedRows], Any],
        path: Path | None = None,
    ) -> TokenisedRows:
        """Store rows, in a file or, without a path, in memory."""
        if path is None:
            return cls([*_batches(rows, schema)], make)
        with pa.OSFile(os.fspath(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in _batches(rows, schema):
                writer.write_batch(batch)
        return cls.opened(path, make)

    @classmethod
    def opened(cls, path: Path, make: Callable[[Values, TokenisedRows], Any]) -> TokenisedRows:
        """The rows of a file that `of` has written, with the arrays beside it."""
        more = {
            file.name.split(".")[-2]: np.load(file, mmap_mode="r") for file in path.parent.glob(f"{path.stem}.*.npy")
        }
        return cls(batches_of(path), make, more=more)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        return self.make(self.values(int(self.places[index])), self)

    def select(self, indices: Sequence[int]) -> TokenisedRows:
        """The rows at these indices."""
        if isinstance(indices, range) and isinstance(self.places, range):
            places = self.places[indices.start : indices.stop : indices.step]
        else:
            places = np.asarray(self.places)[np.asarray(indices, dtype=np.int64)]
        return TokenisedRows(self.batches, self.make, places, self.more)

    def values(self, place: int) -> dict[str, Any]:
        """The columns of one row, by its index in the batches, and its element of each further array."""
        size = self.batches[0].num_rows
        batch, row = self.batches[place // size], place % size
        found = {name: _value(column[row]) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
        return found | {name: array[place] for name, array in self.more.items()}

    def column(self, name: str) -> np.ndarray:
        """A column of numbers, of all rows."""
        parts = [batch.column(name).to_numpy(zero_copy_only=False) for batch in self.batches]
        return np.concatenate([*parts, np.zeros(0, dtype=parts[0].dtype if parts else bool)])[np.asarray(self.places)]

    def list_lengths(self, name: str) -> np.ndarray:
        """The length of each list of a column, of all rows."""
        return list_columns.lengths(batch.column(name) for batch in self.batches)[np.asarray(self.places)]

    def list_maxima(self, name: str) -> np.ndarray:
        """The largest number in each list of a column, of all rows; 0 for an empty list."""
        return list_columns.maxima(batch.column(name) for batch in self.batches)[np.asarray(self.places)]


def _value(scalar: Any) -> Any:
    if not isinstance(scalar, pa.ListScalar):
        return scalar.as_py()
    values = scalar.values
    return values.to_pylist() if pa.types.is_string(values.type) else values.to_numpy(zero_copy_only=False)


def _batches(rows: Iterable[Values], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    rows = iter(rows)
    while found := [*islice(rows, BATCH)]:
        columns = [pa.array([row[field.name] for row in found], type=field.type) for field in schema]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
