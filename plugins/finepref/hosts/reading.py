"""Reads the data sets of a run from its local files, with the reader and the checks of `finepref validate`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from finepref.formats import negatives, record_places, records
from finepref.formats.bad_rows import BadRows
from finepref.formats.check import FileCheck, SeenIds, digest, parse_rows
from finepref.formats.problems import CODES, Problem
from finepref.hosts.receipt import DatasetEntry
from finepref.hosts.run import Source
from finepref.synth.data_sources.files import rows_of


class Sourced(NamedTuple):
    """A record, its file and line, and the number of rows that it was made from."""

    file: str
    line: int
    record: records.Record
    rows: int = 1

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{self.file}:{self.line}"

    def places(self, problems: Iterable[Problem]) -> list[Problem]:
        """Add the record's file and line to its problems."""
        return record_places.pinpoint(problems, [self[:3]])


def of_whole_file(problems: Iterable[Problem]) -> list[Problem]:
    """The problems of a whole file for which a run stops. A file of one label is none (FP061): the run warns."""
    return [problem for problem in problems if problem.line == 0 and problem.code != "FP061"]


class SourceReader:
    """Reads one data set: iterate over it once; bad rows are collected in `bad_rows`.

    Args:
        source: the data set.
        bad_rows: the collector.
        digests: file -> its SHA-256, of those that are known already.

    Attributes:
        entry: the receipt's entry of the data set, complete after the iteration.
    """

    def __init__(self, source: Source, bad_rows: BadRows, digests: Mapping[Path, str] | None = None) -> None:
        self.source, self.bad_rows, self.digests = source, bad_rows, digests or {}
        self.entry = DatasetEntry(source.name, source.formatting, {}, 0)

    def __iter__(self) -> Iterator[Sourced]:
        source = self.source
        with SeenIds() as seen:
            for path in source.files:
                file = str(path)
                parse = source.reader(file)
                check = FileCheck(file, source.formatting, columns=source.columns or {}, seen=seen, repeats=True)
                for row in self.bad_rows.good(file, check.walk(parse_rows(rows_of(path), parse))):
                    for index, record in enumerate(row.records):  # the first one counts as the row
                        yield Sourced(file, row.raw.line, record, rows=int(index == 0))
                report = check.report()
                self.bad_rows.problems += of_whole_file(report.problems)
                for group in report.notes:
                    code = group.first.code
                    self.entry.notes[code] = self.entry.notes.get(code, 0) + group.count
                self.entry.files[path.name] = self.digests.get(path) or digest(path)
                self.entry.read = (self.entry.read or 0) + report.rows


def notes_of(entries: Iterable[DatasetEntry]) -> list[str]:
    """Lines for the log: what of the good rows of each data set has no place in their records."""
    return [
        f"{count} notes on rows of {entry.name}: {code}, {CODES[code]}"
        for entry in entries
        for code, count in sorted(entry.notes.items())
    ]


class JoinedFeedback(NamedTuple):
    """Rows of format feedback, joined by prompt.

    Attributes:
        records: one or more `Negatives` for each prompt, with the number of rows that each was made from; and, at the
            end, rows that are trained on one by one, as `Feedback`.
        members: (file, line) of a record -> (file, line) of each of its rows.
        groups: the rows of each prompt.
        wrong: prompts whose rows give no record, and why.
    """

    records: list[Sourced]
    members: dict[tuple[str, int], list[tuple[str, int]]]
    groups: dict[records.Prompt, list[Sourced]]
    wrong: dict[records.Prompt, list[Problem]]


def join_feedback(found: Iterable[Sourced], *, singles: bool) -> JoinedFeedback:
    """Join rows of format feedback by prompt, see `negatives.join_feedback`.

    Args:
        found: the rows.
        singles: whether the rows of a prompt that lacks a desirable response, an undesirable one, or an error type
            stay single rows. Otherwise such a prompt is wrong. A response that is labelled both desirable and
            undesirable is wrong always (FP032).
    """
    groups: dict[records.Prompt, list[Sourced]] = {}
    for source in found:
        groups.setdefault(source.record.prompt, []).append(source)
    joined, problems = negatives.join_feedback(source[:3] for group in groups.values() for source in group)
    prompts = {(source.file, source.line): prompt for prompt, group in groups.items() for source in group}
    wrong: dict[records.Prompt, list[Problem]] = {}
    for problem in problems:
        wrong.setdefault(prompts[problem.file, problem.line], []).append(problem)
    whole = [Sourced(each.file, each.line, each.record, each.rows) for each in joined]
    members = {(each.file, each.line): [*each.places] for each in joined}
    if singles:
        lacking = [prompt for prompt, found in wrong.items() if all(p.code in negatives.LACKING for p in found)]
        for prompt in lacking:
            group = groups[prompt]
            if both := negatives.labelled_both([source[:3] for source in group]):
                wrong[prompt] = both
                continue
            del wrong[prompt]
            whole += group
    return JoinedFeedback(whole, members, groups, wrong)
