"""The rows of a job's input: its own rows as they are, and records of other layouts as rows of its own.

A job says with `Wants` which rows are its own, which records it takes besides, and what it makes of one. Own rows keep
all of their columns. Of other layouts the columns that the layout does not read are kept beside the job's fields; what
has no place is counted, and told in one line.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from finepref.formats import layouts
from finepref.formats.check import digest, is_content_id, parse_rows
from finepref.formats.checked_rows import Checked
from finepref.formats.choices import lettered
from finepref.formats.dataset_info import FILE_NAME
from finepref.formats.jsonl import RawRow
from finepref.formats.problems import CODES, BadData, Problem
from finepref.formats.records import FIELDS, Choice, Feedback, Prompt, Ranked, Record, content_id
from finepref.formats.row_source import Part
from finepref.synth.data_sources.inputs import Input, find_inputs, read_file, values_of

log = logging.getLogger(__name__)

SUPERVISED = "supervised"
"""In `Wants.formats`: single good answers (`layouts.SUPERVISED`)."""
TAKEN_NAMES = frozenset({name for format_, fields in FIELDS.items() if format_ != "choice" for name in fields})
"""Names of our fields: a column of this name that a layout does not read is not kept, or it would be read as ours.

Those of `choice` are not among them: `answer` and `subject` beside other records have the same meaning.
"""


class Given(NamedTuple):
    """What a user names as the input of a job.

    Attributes:
        name: as the user gives it.
        files: of it, of one layout; "" = still to be recognised.
    """

    name: str
    files: Sequence[Input]

    @property
    def paths(self) -> list[Path]:
        """All files that are read."""
        return [path for file in self.files for path in file.paths]

    @property
    def folders(self) -> list[Path]:
        """The folders whose files are the input, also those that an entry of dataset_info.json names."""
        if len(self.files) > 1 or Path(self.name).is_dir():
            return [*dict.fromkeys(file.path.parent for file in self.files if file.hub is None)]
        return []


def given(
    name: str,
    *,
    layout: str = "",
    dataset_dir: Path = Path("dataset_info"),
    columns: Mapping[str, str] | None = None,
    error_type: str | None = None,
) -> Given:
    """The input of a job by name: a file, a folder, or a data set of a dataset_info.json; see `find_inputs`.

    Raises:
        BadData: see `find_inputs`.
        ValueError: the name is that of a dataset_info.json.
    """
    if Path(name).name == FILE_NAME:
        raise ValueError(f"{name} names many data sets: give the name of one, and the folder with --dataset-dir")
    return Given(name, find_inputs(name, layout, dataset_dir, columns or {}, error_type, later=True))


class Row(NamedTuple):
    """A record as a row of a job's own.

    Attributes:
        fields: of the row, without an id.
        key: equal for rows of which only the first is taken, and then the id of a row that has none; "" = all are
            taken, with the record's id.
    """

    fields: dict[str, object]
    key: str = ""


class Placed(NamedTuple):
    """A record and where it comes from."""

    file: str
    raw: RawRow
    record: Record


class Wants(NamedTuple):
    """What a job takes.

    Attributes:
        job: its name.
        what: the rows that it takes, for the message to those who have others.
        own: whether a row, with our names of its fields, is one of the job's own.
        names: the layouts whose rows are the job's own; None = `own` alone tells.
        formats: of the records that it takes besides, and SUPERVISED.
        row: the row of a record, None if it gives none; counts what is left out or not kept, text -> number.
        gather: format -> makes rows of all of its records together, in place of `row`.
        mixed: own rows among those of another layout do not make a mixed file; the others are then bad rows.
    """

    job: str
    what: str
    own: Callable[[Mapping[str, object]], bool]
    names: Collection[str] | None
    formats: Collection[str]
    row: Callable[[Record, Counter[str]], Row | None]
    gather: Mapping[str, Callable[[Sequence[Placed], Counter[str]], Iterable[tuple[str, RawRow]]]] = {}
    mixed: bool = False


@dataclass
class JobRows:
    """The rows of a job's input, see `parts`.

    Attributes:
        told: what is left out or not kept of other layouts: text -> number, complete when all rows are read.
        read: number of rows of other layouts.
    """

    given: Given
    wants: Wants
    told: Counter[str] = field(default_factory=Counter)
    read: int = 0
    _hub_rows: dict[Path, list[RawRow]] = field(default_factory=dict)

    @cached_property
    def layout(self) -> str:
        """The layout of the rows, "" if they are the job's own.

        Raises:
            BadData: the job does not take such rows (FP112), or they are of several layouts (FP092).
        """
        named = self.given.files[0].layout
        if not named:
            named = self._recognised()
        elif self.wants.names is not None and named in self.wants.names:
            return ""
        if not named:
            return ""
        format_ = SUPERVISED if named in layouts.SUPERVISED else layouts.native_format(named)
        by_row = layouts.find(named).by_row or named in ("ragtruth", "r_tuning")
        if format_ not in self.wants.formats or not by_row:
            text = f"{self.wants.job} takes {self.wants.what}; the rows are of layout {named} ({format_})"
            if format_ != SUPERVISED:
                text += f": see `finepref convert --from {named}`"
            raise BadData([Problem(self.given.name, 0, "", "FP112", text)])
        return named

    def _recognised(self) -> str:
        """The layout by all rows, "" if most are the job's own or look like nothing.

        Single good answers are the least sure of all layouts, so these must be the most of the rows.
        """
        votes, answers, own, first = layouts.Votes(), layouts.Votes(), 0, ""
        for file in self.given.files:
            for raw in values_of(self._rows(file), **file.reading()):
                if raw.value is None:
                    continue
                value = layouts.renamed(raw.value, file.columns) if file.columns else raw.value
                is_own = self.wants.own(value)
                name = "" if is_own and self.wants.names is None else votes.name_of(value)
                if is_own and (not name or name in (self.wants.names or ())):
                    own += 1
                    first = first or f"{file.path}:{raw.line}"
                    continue
                into = votes
                if not name and SUPERVISED in self.wants.formats:
                    name, into = layouts.supervised_of(value), answers
                if name:
                    into.counts[name] += 1
                    into.first.setdefault(name, f"{file.path}:{raw.line}")
        others = votes.counts.total()
        if answers.counts.total() > own + others:
            return answers.settle()
        if own >= others or (own and self.wants.mixed):
            return ""
        if own:
            place, _, line = first.rpartition(":")
            name = votes.counts.most_common(1)[0][0]
            told = f"{self.wants.what} (first in this line, in all {own}) and {name} (first at {votes.first[name]})"
            text = f"the rows are of several layouts: {told}; put each in a file of its own"
            raise BadData([Problem(place, int(line), "", "FP092", text)])
        return votes.settle()

    def _rows(self, file: Input) -> Iterable[RawRow]:
        """The rows of a file; those of a data set on a hub are read once."""
        if file.hub is None:
            return file.raw_rows()
        if file.path not in self._hub_rows:
            self._hub_rows[file.path] = [*file.raw_rows()]
        return self._hub_rows[file.path]

    def digest(self) -> str:
        """A hex digest of all that the rows depend on; of one file of own rows, its sha256."""
        file, *more = self.given.files
        if not more and not self.layout and not file.hub and not file.columns:
            return digest(file.path)
        told: list[object] = [self.layout]
        for each in self.given.files:
            told.append([dict(each.columns), each.tags and dict(each.tags), each.error_type])
            told += [[path.name, digest(path)] for path in each.paths]
            if each.hub:
                told += [hashlib.sha256(raw.raw).hexdigest() for raw in self._rows(each)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def parts(self) -> Iterator[Part]:
        """The files with their rows, as the job reads them.

        Raises:
            BadData: see `layout`.
        """
        if not self.layout:
            for file in self.given.files:
                yield Part(str(file.path), self._own(file), file.columns, file.reading()["cells"])
            return
        self.told.clear()
        self.read = 0
        taken: set[str] = set()
        gather = self.wants.gather.get(layouts.native_format(self.layout))
        placed: list[Placed] = []
        if gather is None:
            for file in self.given.files:
                yield Part(str(file.path), self._converted(file, taken))
        else:
            by_file = {str(file.path): [*self._collected(file, placed)] for file in self.given.files}
            for name, raw in gather(placed, self.told):
                by_file[name].append(raw)
            for name, raws in by_file.items():
                yield Part(name, raws)
        told = "".join(f"; {text}: {count}" for text, count in sorted(self.told.items()) if count)
        if self.read:
            log.warning("%s: %d rows of layout %s%s", self.given.name, self.read, self.layout, told)

    def _own(self, file: Input) -> Iterator[RawRow]:
        """The job's own rows, with our names of the fields."""
        nulls = file.reading()["nulls_absent"]
        for raw in self._rows(file):
            value = raw.value
            if value is not None and nulls:
                value = {name: _without_nulls(member) for name, member in value.items() if member is not None}
            if value is not None and file.columns:
                value = layouts.renamed(value, file.columns)
            yield raw._replace(value=value)

    def checked(self, file: Input) -> Iterator[Checked]:
        """The rows of a file of another layout, with their records; counts them."""
        file = file._replace(layout=self.layout)
        known = layouts.columns_read(self.layout, file.columns)
        if known is None or file.wrong_columns():
            checked = iter(read_file(file))
        else:
            checked = parse_rows(self._rows(file), file.parse_row())
        for row in checked:
            self.read += row.raw.line > 0
            if known is not None and not row.problems:
                extra = (row.raw.value or {}).keys() - known
                self.told.update(f"rows whose column {name} is not kept" for name in extra & TAKEN_NAMES)
            self.told.update(f"{note.code}, {CODES[note.code]}" for note in row.notes)
            yield row

    def _converted(self, file: Input, taken: set[str]) -> Iterator[RawRow]:
        """Each record of a file as a row of the job's own."""
        known = layouts.columns_read(self.layout, file.columns)
        nulls = file.reading()["nulls_absent"]
        for row in self.checked(file):
            if row.problems:
                yield row.raw._replace(value=None, problems=row.problems)
            for record in row.records:
                made = self.wants.row(record, self.told)
                if made is None:
                    continue
                if made.key and made.key in taken:
                    self.told["rows that repeat an earlier one, left out"] += 1
                    continue
                taken.add(made.key)
                given = not made.key or not is_content_id(record.id, row.raw)
                further = {
                    name: value
                    for name, value in (row.raw.value or {}).items()
                    if known is not None
                    and name not in known
                    and name not in TAKEN_NAMES
                    and not (nulls and value is None)
                }
                own: Mapping[str, object] = {"id": record.id if given else made.key, **made.fields, **further}
                yield row.raw._replace(value=own, problems=[])

    def _collected(self, file: Input, placed: list[Placed]) -> Iterator[RawRow]:
        """The bad rows of a file; the records are added to `placed`."""
        for row in self.checked(file):
            if row.problems:
                yield row.raw._replace(value=None, problems=row.problems)
            placed += [Placed(str(file.path), row.raw, record) for record in row.records]


Rows = Path | Given
"""The input of a job: a file, or what a user has named."""


def rows_of(source: Rows, wants: Wants) -> JobRows:
    """The rows of a job's input."""
    if isinstance(source, Path):
        source = Given(str(source), [Input(source, "", {}, None)])
    return JobRows(source, wants)


def prompt_fields(prompt: Prompt) -> dict[str, object]:
    """A prompt as the field of a row."""
    if len(prompt) == 1:
        return {"prompt": prompt[0].content}
    return {"messages": [turn._asdict() for turn in prompt]}


def ends_in_question(row: Mapping[str, object]) -> bool:
    """Whether a row has a prompt of ours: a text, or messages that do not end in a turn of the assistant."""
    turns = row.get("messages")
    if turns is None:
        return type(row.get("prompt")) is str
    if not isinstance(turns, list | tuple) or not turns:
        return False
    last = turns[-1]
    return not isinstance(last, Mapping) or last.get("role", last.get("from")) not in ("assistant", "gpt")


def question(record: Record, told: Counter[str]) -> Row:
    """The prompt of a record; each prompt once. Of a multiple-choice question also its options and its answer."""
    fields = prompt_fields(record.prompt)
    if isinstance(record, Choice):
        fields |= choice_fields(record)
    return Row(fields, content_id(record.prompt))


def choice_fields(record: Choice) -> dict[str, object]:
    """The options of a question, and if they are known its answer, as a letter and as a text, and its subject."""
    options = lettered(record.options)
    found: dict[str, object] = {"options": options}
    if record.answer:
        found |= {"answer": record.answer, "chosen": f"{record.answer}. {options[record.answer]}"}
    return found | ({"subject": record.subject} if record.subject else {})


def answer_of(record: Record, told: Counter[str]) -> str | None:
    """The good answer of a record: the chosen, a desirable or the best response; None if there is none."""
    if isinstance(record, Feedback):
        if not record.label:
            told["undesirable responses left out"] += 1
        return record.response if record.label else None
    if isinstance(record, Ranked):
        told["responses below the best left out"] += len(record.responses) - 1
        return record.responses[max(range(len(record.scores)), key=record.scores.__getitem__)]
    if isinstance(record, Choice):
        return str(choice_fields(record).get("chosen", "")) or None
    told["records whose spans are not kept"] += bool(
        getattr(record, "chosen_spans", ()) or getattr(record, "rejected_spans", ())
    )
    return record.chosen


ALL = (*FIELDS, SUPERVISED)
PAIRS = ("pair", "span_pair", "scored_pair")


def _without_nulls(value: object) -> object:
    """A value without the null members of its objects, which stand for absent keys in Arrow."""
    if isinstance(value, list | tuple):
        return [_without_nulls(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _without_nulls(member) for key, member in value.items() if member is not None}
    return value
