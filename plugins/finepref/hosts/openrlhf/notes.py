"""What becomes of the records of a run on OpenRLHF: each is kept, skipped or rejected, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from finepref.formats.bad_rows import BadRows
from finepref.formats.check import rejected_row
from finepref.formats.jsonl import RawRow
from finepref.formats.problems import Problem
from finepref.hosts.reading import Sourced
from finepref.hosts.receipt import DatasetEntry, UnprovenRun
from finepref.hosts.rows import MAX_SAMPLES, Rows
from finepref.synth.data_sources.files import rows_of

LONGEST = "--data.max_len"


@dataclass
class Notes:
    """What becomes of the records of a run: each is kept, skipped or rejected, and its rows are counted.

    Args:
        rows: the run's counts.
        bad_rows: collects the rows with a coded problem.

    Attributes:
        entries: file -> the receipt's entry of its data set.
        members: (file, line) of a record that was made of several rows -> (file, line) of each of them.
        kept: rows kept so far.
    """

    rows: Rows
    bad_rows: BadRows
    entries: dict[str, DatasetEntry] = field(default_factory=dict)
    members: dict[tuple[str, int], list[tuple[str, int]]] = field(default_factory=dict)
    kept: int = 0
    _named: set[tuple[str, ...]] = field(default_factory=set)

    def keep(self, source: Sourced, cut: str = "") -> None:
        """Count a record that is trained or evaluated on; `cut` as in `overlong.Fit`."""
        self.kept += source.rows
        self.rows.note_cut(cut, source.rows)

    def skip(self, source: Sourced, reason: str) -> None:
        """Count and name a record that is left out although nothing is wrong with it."""
        if self._first_time(source.record.id, source.place, reason):
            self.rows.skip(source.record.id, source.place, reason, source.rows)
        else:
            self.rows.skipped[reason] += source.rows

    def skip_response(self, source: Sourced, name: str, reason: str) -> None:
        """Count and name a response that is left out of a record that is kept."""
        if self._first_time(source.record.id, source.place, reason, name):
            self.rows.skip_response(source.record.id, source.place, name, reason)
        else:
            self.rows.responses_skipped[reason] += 1

    def reject(self, source: Sourced, problems: Iterable[Problem]) -> None:
        """Collect a record with problems."""
        found = source.places(problems)
        self.bad_rows.problems += found
        for file, line in self.rows_of(source):
            own = [problem for problem in found if (problem.file, problem.line) == (file, line)] or found
            self.bad_rows.add(rejected_row(file, RawRow(line, b"", None, own)), own)
            if file in self.entries:
                self.entries[file].rejected = dict(Counter(self.entries[file].rejected) + Counter([own[0].code]))

    def skip_beyond(self, sources: Iterable[Sourced]) -> None:
        """Count the records beyond `--data.max_samples`."""
        for source in sources:
            self.rows.skipped[MAX_SAMPLES] += source.rows
            for file, _ in self.rows_of(source):
                if file in self.entries:
                    self.entries[file].skipped += 1

    def rows_of(self, source: Sourced) -> list[tuple[str, int]]:
        """File and line of each row that a record was made of."""
        return self.members.get((source.file, source.line), [(source.file, source.line)] * source.rows)

    def settle(self) -> None:
        """Accept the bad rows so far, or raise BadData, see `BadRows.settle`. A file read twice is reported once."""
        self.bad_rows.problems = list(dict.fromkeys(self.bad_rows.problems))
        self.bad_rows.settle()

    def close(self, *, read: int, training: int, evaluation: int) -> None:
        """Complete the run's counts.

        Args:
            read: rows in the files.
            training, evaluation: rows in the training set and in the evaluation set.

        Raises:
            UnprovenRun: a row went missing.
        """
        rows = self.rows
        rows.read, rows.training, rows.evaluation = read, training, evaluation
        rows.bad = with_text(self.bad_rows.rejected)
        if not rows.add_up():
            raise UnprovenRun(f"the rows do not add up: {rows.content()}")

    def _first_time(self, *name: str) -> bool:
        new = name not in self._named
        self._named.add(name)
        return new


def with_text(rejected: Iterable[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Rejected rows, each row of a file once, with its text from the file where it is still missing."""
    found = {(row["file"], row["line"]): dict(row) for row in reversed(list(rejected))}
    for file in {file for (file, _), row in found.items() if row.get("row") == ""}:
        for raw in rows_of(str(file)):
            if row := found.get((file, raw.line)):
                row |= {key: text for key, text in rejected_row(str(file), raw).items() if key.startswith("row")}
    return sorted(found.values(), key=lambda row: (str(row["file"]), row["line"]))
