"""Base of our DatasetProcessors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from llamafactory.data.processor.processor_utils import DatasetProcessor, infer_seqlen

from finepref.formats import records
from finepref.formats.problems import Problem
from finepref.hosts import row_cache
from finepref.hosts.llamafactory.verdicts import columns_of, rows_of
from finepref.methods import overlong
from finepref.methods.pair_rows import problem_of_record


@dataclass
class RecordProcessor(DatasetProcessor):
    """Tokenises the records of a batch of rows of the cache.

    Attributes:
        overlong: the option `finepref_overlong`.
        schema: to be changed whenever tokenised rows change their meaning, see `Adapter.schema`.
    """

    overlong: overlong.Overlong = "host"
    schema: str = ""

    def __getstate__(self) -> dict[str, Any]:
        """What tokenised rows depend on, and no more: the host finds them in its cache by a hash of this."""
        settings = SimpleNamespace(cutoff_len=self.data_args.cutoff_len, template=self.data_args.template)
        return {**vars(self), "data_args": settings}

    def of_split(self, records: Any) -> None:
        """Take note of all records of the split, a `datasets.Dataset`; not called for a stream."""

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenise a batch. The columns `verdicts.COLUMNS` say what is to be done with each row."""
        rows = self.rows(list(rows_of(examples)))
        return columns_of(rows)

    @abstractmethod
    def rows(self, cached: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Tokenise a batch of rows of the cache. Each row that is made has `rows`, the number of rows that it is."""

    def fit(
        self, record: records.Record, prompt: Sequence[int], responses: Mapping[str, Sequence[int]]
    ) -> tuple[overlong.Fit, list[Problem]]:
        """What is kept of a record, and FP203 if it is too long and must not be.

        Args:
            record: the record.
            prompt: token ids of its prompt.
            responses: name of each response -> its token ids.
        """
        cutoff = self.data_args.cutoff_len
        lengths = [len(ids) for ids in responses.values()]
        found = overlong.fit(len(prompt), lengths, cutoff, policy=self.overlong, host_rule=infer_seqlen)
        if not found.refused:
            return found, []
        text = overlong.told(len(prompt), lengths, cutoff, "cutoff_len")
        return found, [problem_of_record(record, "prompt", "FP203", text)]


@dataclass
class RowPerRecordProcessor(RecordProcessor):
    """A processor that makes one row of each record, whatever the other records of the batch."""

    def rows(self, cached: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self.row(row_cache.record_of(row), row["_place"], row["_rows"]) for row in cached]

    @abstractmethod
    def row(self, record: records.Record, place: str, count: int) -> dict[str, Any]:
        """Tokenise one record.

        Args:
            record: the record.
            place: its file and line.
            count: the number of rows that it was made from.
        """
