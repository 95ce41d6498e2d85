"""Annotating pairs by hand: the marks of each record, journalled step by step, and the span pairs that they make.

Each step is one line of the journal, on the disk before `Annotation` answers: the record's marks after it. So a killed
process loses nothing, and every step can be undone, also after a restart.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from finepref.formats import marks as of_marks
from finepref.formats.bad_rows import BadRows
from finepref.formats.check import SeenIds
from finepref.formats.jsonl import write_aside, write_jsonl
from finepref.formats.marks import SIDES, BySide, Mark
from finepref.formats.problems import BadData, Problem
from finepref.formats.records import FORMATS, Pair, Record, ScoredPair, SpanPair, content_id, to_row
from finepref.synth.data_sources.inputs import Input, file_check, read_file
from finepref.synth.journal import Journal

JOB, VERSION = "annotate", "1"
SEEN = "annotated"
"""Column of a row, false where nobody has looked at the spans of the input."""


class Item(NamedTuple):
    """A record to annotate.

    Attributes:
        file, line: its place.
        record: with the spans of the data, if it has any.
        given: the marks that the data has, as spans or in a column `marks`.
    """

    file: str
    line: int
    record: SpanPair
    given: BySide

    @property
    def place(self) -> str:
        """File and line."""
        return f"{self.file}:{self.line}"

    @property
    def digest(self) -> str:
        """Of the texts that marks belong to."""
        return content_id(self.record.prompt, self.record.chosen, self.record.rejected)

    def texts(self) -> dict[str, str]:
        """Side -> response."""
        return {side: getattr(self.record, side) for side in SIDES}


class State(NamedTuple):
    """What is known of a record.

    Attributes:
        marks: of each response.
        done: the annotator has said that there is no more to mark.
        touched: the annotator has changed or confirmed something; else the marks are the data's spans.
    """

    marks: BySide
    done: bool = False
    touched: bool = False

    @property
    def open(self) -> bool:
        """Whether the record still waits for its annotator."""
        return not self.done and not (self.touched and any(self.marks.values()))


class Outcome(NamedTuple):
    """What `Annotation.write` has written.

    Attributes:
        rows: number of span pairs.
        given: how many of them have the data's spans, which nobody has looked at.
        unmarked: number of records that were looked at and give no span pair.
        waiting: number of records that wait for their annotator, and are in no file.
        left_out: what records lose: name -> number of records.
        elsewhere: number of annotated records that are not in the input, and so in no file.
    """

    rows: int
    given: int
    unmarked: int
    waiting: int
    left_out: Mapping[str, int]
    elsewhere: int

    def told(self, output: Path) -> list[str]:
        """Lines for the user."""
        lines = [f"{output}: {self.rows} span pairs"]
        if self.given:
            lines[0] += f", {self.given} of them with the spans of the input, which were not looked at"
        if self.unmarked:
            lines.append(f"{unmarked_path(output)}: {self.unmarked} records that were looked at, without a span")
        if self.waiting:
            lines.append(f"{self.waiting} records are not annotated yet")
        lines += [f"{name}: {count} records" for name, count in sorted(self.left_out.items())]
        if self.elsewhere:
            lines.append(f"{self.elsewhere} annotated records are not in the input; they are kept, not written")
        return lines


def unmarked_path(output: Path) -> Path:
    """The file of the records that were looked at and give no span pair."""
    return output.with_suffix(".unmarked.jsonl")


def read_items(inputs: Iterable[Input], bad_rows: BadRows) -> tuple[list[Item], Counter[str]]:
    """The pairs of files that are one set; and what of them span pairs have no place for: name -> number of rows.

    Args:
        inputs: the files.
        bad_rows: collects rows with a problem and decides about them.

    Raises:
        BadData: FP320, records that are no pairs; or what `bad_rows` does not accept.
    """
    items: list[Item] = []
    left_out: Counter[str] = Counter()
    with SeenIds() as seen:
        for source in inputs:
            name = str(source.path)
            check = file_check(source, seen=seen)
            for row in bad_rows.good(name, check.walk(read_file(source))):
                items += [item_of(name, row.raw.line, record, row.raw.value or {}) for record in row.records]
                left_out["margin"] += sum(getattr(record, "margin", None) is not None for record in row.records)
                left_out["token scores"] += sum(isinstance(record, ScoredPair) for record in row.records)
            left_out.update(check.ignored)
            bad_rows.problems += [problem for problem in check.of_file if problem not in bad_rows.problems]
    bad_rows.settle()
    del left_out["marks"], left_out[SEEN]
    return items, +left_out


def item_of(file: str, line: int, record: Record, row: Mapping[str, object]) -> Item:
    """A record of a row, with the marks that the row has.

    Raises:
        BadData: FP320, it is no pair; or its column `marks` cannot be (FP322, FP323, FP326).
    """
    if isinstance(record, Pair | ScoredPair):
        record = SpanPair(record.id, record.prompt, record.chosen, record.rejected)
    if isinstance(record, SpanPair):
        given = {side: of_marks.of_spans(getattr(record, f"{side}_spans"), side) for side in SIDES}
        if "marks" in row:
            lengths = {side: len(getattr(record, side)) for side in SIDES}
            given = of_marks.of_lists(row["marks"], lengths, file=file, line=line)
        return Item(file, line, record, given)
    name = next(name for name, kind in FORMATS.items() if type(record) is kind)
    text = f"marks are for pairs, the file has {name}; try `finepref convert --to pair`"
    raise BadData([Problem(file, 0, "formatting", "FP320", text)])


class Annotation:
    """The marks of a set of pairs; a context manager, one at a time per folder. Its methods may be called by threads.

    Args:
        items: the pairs; their ids differ.
        folder: of the journal; work found in it is resumed.

    Attributes:
        steps: number of steps so far, of this session and earlier ones.
    """

    def __init__(self, items: Sequence[Item], folder: Path) -> None:
        self.items = items
        self._numbers = {item.record.id: number for number, item in enumerate(items)}
        self._states = [State(item.given) for item in items]
        self._undo: list[tuple[int, State]] = []
        self._lock = threading.RLock()
        self._elsewhere: set[str] = set()
        self._journal = Journal(
            folder, job=JOB, model="", prompt_version=VERSION, sampling={}, seed=0, input_digest=""
        )

    def __enter__(self) -> Annotation:
        """Take the folder's lock and the work in it.

        Raises:
            JournalBusy, JournalChanged, JournalDamaged.
            BadData: FP321, a record has other texts than when it was annotated.
        """
        self._journal.__enter__()
        try:
            for entry in self._journal.done.values():
                self._replay(entry)
        except BaseException:
            self._journal.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._journal.__exit__(kind, error, traceback)

    def _replay(self, entry: Mapping[str, Any]) -> None:
        number = self._numbers.get(str(entry["record"]))
        if number is None:
            self._elsewhere.add(str(entry["record"]))
            return
        item = self.items[number]
        if entry["text"] != item.digest:
            text = "its texts are not those that were annotated: undo that change, or give another --output"
            raise BadData([Problem(item.file, item.line, "", "FP321", text, item.record.id)])
        marks = of_marks.of_lists(entry["marks"], _lengths(item), file=str(self._journal.directory / "journal.jsonl"))
        self._put(number, State(marks, bool(entry["done"]), bool(entry["touched"])), undoes=bool(entry.get("undo")))

    def _put(self, number: int, state: State, *, undoes: bool) -> None:
        if undoes:
            self._undo.pop()
        else:
            self._undo.append((number, self._states[number]))
        self._states[number] = state

    @property
    def steps(self) -> int:
        """Number of entries in the journal."""
        return len(self._journal.done)

    def alone(self) -> AbstractContextManager[object]:
        """A block in which no other thread makes a step."""
        return self._lock

    def state(self, number: int) -> State:
        """Of the record with that number, counted from 0."""
        with self._lock:
            return self._states[number]

    def waiting(self) -> int:
        """How many records wait for their annotator."""
        with self._lock:
            return sum(state.open for state in self._states)

    def mark(self, number: int, side: str, new: Mark) -> None:
        """Mark characters of a response; what the mark overlaps is replaced.

        Args:
            number: of the record, counted from 0.
            side: "chosen" or "rejected".
            new: the mark, made by `marks.mark_of`.

        Raises:
            OSError: nothing was written, and nothing is changed.
        """
        with self._lock:
            state = self._states[number]
            self._step(number, state, {**state.marks, side: of_marks.marked(state.marks[side], new)}, state.done)

    def clear(self, number: int, side: str, start: int, end: int) -> None:
        """Take the marks off characters of a response; arguments and errors as `mark`."""
        with self._lock:
            state = self._states[number]
            left = of_marks.cleared(state.marks[side], start, end)
            self._step(number, state, {**state.marks, side: left}, state.done)

    def finish(self, number: int) -> None:
        """Note that there is no more to mark in a record, be it marked or not; errors as `mark`."""
        with self._lock:
            self._step(number, self._states[number], self._states[number].marks, done=True)

    def undo(self) -> int | None:
        """Take the last step back, also one of an earlier session; the number of its record, None if there is none.

        Raises:
            OSError: nothing was written, and nothing is changed.
        """
        with self._lock:
            if not self._undo:
                return None
            number, before = self._undo[-1]
            self._append(number, before, undoes=True)
            return number

    def _step(self, number: int, state: State, marks: BySide, done: bool) -> None:
        new = State(marks, done, True)
        if new != state and (done != state.done or marks != state.marks):
            self._append(number, new, undoes=False)

    def _append(self, number: int, state: State, *, undoes: bool) -> None:
        item = self.items[number]
        entry: dict[str, object] = {"id": str(self.steps + 1), "record": item.record.id, "text": item.digest}
        entry |= {"marks": of_marks.to_lists(state.marks), "done": state.done, "touched": state.touched}
        self._journal.append([entry | ({"undo": True} if undoes else {})])
        self._put(number, state, undoes=undoes)

    def write(self, output: Path) -> Outcome:
        """Write the span pairs, and beside them the records that were looked at and give none.

        Rows are in the order of the input. A row whose marks go against its response has them in a column `marks` too,
        and one that nobody has looked at has `annotated: false`.
        """
        with self._lock:
            left_out: Counter[str] = Counter()
            rows: list[dict[str, object]] = []
            unmarked: list[dict[str, object]] = []
            given = waiting = 0
            for item, state in zip(self.items, self._states, strict=True):
                has_spans = any(state.marks.values())
                if not state.touched and has_spans:
                    rows.append(_with_marks(to_row(item.record), state.marks) | {SEEN: False})
                    given += 1
                elif state.open:
                    waiting += 1
                else:
                    row, fits = row_of(item.record, state.marks)
                    (rows if fits else unmarked).append(row)
                    left_out["nothing left to train on"] += has_spans and not fits
                    left_out["without the `side` of the data"] += row.get("side", 0) != item.record.side
            write_jsonl(output, rows)
            write_aside(unmarked_path(output), unmarked)
            elsewhere = len(self._elsewhere)
        return Outcome(len(rows), given, len(unmarked), waiting, +left_out, elsewhere)


def row_of(record: SpanPair, marks: BySide) -> tuple[dict[str, object], bool]:
    """A record with marks as a row of span_pair, and whether a stage can train on its spans.

    Without spans the row is that of a pair. Marks that go against their response are kept in a column `marks`.
    """
    spans = {side: of_marks.to_spans(marks[side], side, len(getattr(record, side))) for side in SIDES}
    fits = None not in spans.values() and any(spans.values())
    chosen, rejected = (spans[side] or () if fits else () for side in SIDES)
    side = record.side if (chosen if record.side == 1 else rejected) and not (chosen and rejected) else 0
    row = to_row(replace(record, chosen_spans=chosen, rejected_spans=rejected, side=side))
    return _with_marks(row, marks), fits


def _with_marks(row: dict[str, object], marks: BySide) -> dict[str, object]:
    return row | ({"marks": of_marks.to_lists(marks)} if of_marks.against(marks) else {})


def _lengths(item: Item) -> dict[str, int]:
    return {side: len(text) for side, text in item.texts().items()}
