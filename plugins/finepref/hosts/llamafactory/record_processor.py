"""What tokenises one record at a time."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from llamafactory.data.processor.processor_utils import DatasetProcessor

from finepref.formats import records
from finepref.hosts.llamafactory import data


class RecordProcessor(DatasetProcessor):
    """The host's processor over aligned rows. Subclasses are dataclasses with a `schema` field."""

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenise a batch of aligned rows, one row per record."""
        data.raise_problems(examples["_problem"])
        rows = [
            self._row(data.record_of({"_record": text, "_formatting": formatting}))
            for text, formatting in zip(examples["_record"], examples["_formatting"], strict=True)
        ]
        if self.data_args.streaming:  # nobody sees the whole column later
            data.raise_problems(row["problem"] for row in rows)
        return {name: [row[name] for row in rows] for name in rows[0]}

    @abstractmethod
    def _row(self, record: records.Record) -> dict[str, Any]:
        """The columns of one record, `rows` (how many it stands for) and `problem` (see `data.note_problems`) too."""
