"""Base of our DatasetProcessors."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from llamafactory.data.processor.processor_utils import DatasetProcessor

from finepref.formats import records
from finepref.hosts.llamafactory import data
from finepref.hosts.run import current, refuse
from finepref.methods.checks import record_problems


class RecordProcessor(DatasetProcessor):
    """Parses the records of a batch and tokenises them. Subclasses are dataclasses with a `schema` field."""

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenise a batch of rows from our converter.

        Raises:
            BadData: a row is not a valid record; in a stream also if its stage cannot train on it.
        """
        data.raise_problems(examples["_problem"])
        found = [
            data.record_of({"_record": text, "_formatting": formatting})
            for text, formatting in zip(examples["_record"], examples["_formatting"], strict=True)
        ]
        if self.data_args.streaming:  # a stream's records are not checked as a whole, neither before nor later
            run = current()
            refuse([problem for record in found for problem in record_problems(record, run.stage, run.options)])
        rows = self.rows(found, examples)
        if self.data_args.streaming:
            data.raise_problems(row["problem"] for row in rows)
        return {name: [row[name] for row in rows] for name in rows[0]}

    @abstractmethod
    def rows(self, found: list[records.Record], examples: dict[str, list[Any]]) -> list[dict[str, Any]]:
        """Tokenise a batch of records.

        Each row has `rows`, the number of rows of the data that it was made from, and `problem`: see
        `data.note_problems`.

        Args:
            found: the records.
            examples: the columns that they were read from.
        """


class RowPerRecordProcessor(RecordProcessor):
    """A processor that makes one row of each record, whatever the other records of the batch."""

    def rows(self, found: list[records.Record], examples: dict[str, list[Any]]) -> list[dict[str, Any]]:
        return [self.row(record) for record in found]

    @abstractmethod
    def row(self, record: records.Record) -> dict[str, Any]:
        """Tokenise one record, see `rows`."""
