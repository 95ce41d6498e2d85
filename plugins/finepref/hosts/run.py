"""One training run: its stage, options, data and counts, and the receipt made of them.

A host calls our functions without passing objects of ours, so they find the run of this process with `current`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finepref.formats import check, layouts, record_places, records
from finepref.formats.bad_rows import BadRows
from finepref.formats.problems import BadData, Problem
from finepref.hosts import patching, receipt
from finepref.hosts.rows import Rows
from finepref.hosts.run_setup import Setup, device_name
from finepref.methods.options import Options
from finepref.methods.stage import Stage
from finepref.synth.data_sources import files


@dataclass(frozen=True)
class Source:
    """A data set of the run: its local files, and how their rows are read.

    `formatting` is a layout (`finepref.formats.layouts`), `tags` those of a host's entry.
    """

    name: str
    formatting: str
    files: tuple[Path, ...]
    columns: Mapping[str, str] | None = None
    error_type: str | None = None
    tags: Mapping[str, str] | None = None

    @property
    def native_format(self) -> str:
        """The format of its records."""
        return layouts.native_format(self.formatting)

    def reader(self, file: str, *, nulls_absent: bool = False) -> layouts.ParseRow:
        """The function that reads a row of one of its files: (value, line=) -> record, records or problems.

        With `nulls_absent`, the rows come through Arrow, where an absent key is null.
        """
        options = files.reading(file) | ({"nulls_absent": True} if nulls_absent else {})
        return layouts.reader(
            self.formatting,
            columns=self.columns,
            error_type=self.error_type,
            file=file,
            tags=self.tags,
            **options,
        )

    def records(self) -> Iterator[tuple[str, int, records.Record]]:
        """Read the files again: (file, line, record) of each valid row."""
        for file in self.files:
            for row in check.parse_rows(files.rows_of(file), self.reader(str(file))):
                yield from ((str(file), row.raw.line, record) for record in row.records)


@dataclass
class Run:
    """The state of a training run; one per process.

    Attributes:
        stage, options: the method and its options, checked.
        cards: names of the patch cards that it needs.
        settings: the options with the values in use, for the receipt.
        sources: the data sets with local files.
        datasets: the receipt's entry of each data set.
        prepared: data set -> the file with its records, if the host opens one that we made.
        cache: folder of what is made of the rows, see `finepref.hosts.row_cache`; None before any is made.
        split: the records of the split that is tokenised now, if the host passes it to us as a data set.
        bad_rows: the collector of bad rows, by the options.
        rows: what happened to the rows of the data.
        loss_calls: how often our loss was called in training.
        first_step: optimizer steps done before this process started.
        seen: how many records this process has trained on, over all epochs; responses, in a stage of shape "unpaired".
        seen_before: as `seen`, of all processes before a resume; None if it is not known.
        setup: what the run was asked to do.
        started: time.
        planned: optimizer steps of the whole training, those before a resume among them; None if it is not known.
        parts: the parts of the training before a resume, as in the receipt.
        differs: in what this part differs from the one before, see `finepref.hosts.resume`.
        more: further entries of the receipt.
    """

    stage: Stage
    options: Options
    cards: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    datasets: list[receipt.DatasetEntry] = field(default_factory=list)
    prepared: dict[str, Path] = field(default_factory=dict)
    cache: Path | None = None
    split: Any = None
    bad_rows: BadRows = field(init=False)
    rows: Rows = field(default_factory=Rows)
    loss_calls: int = 0
    first_step: int = 0
    seen: int = 0
    seen_before: int | None = 0
    setup: Setup | None = None
    started: str = field(default_factory=receipt.now)
    planned: int | None = None
    parts: list[dict[str, Any]] = field(default_factory=list)
    differs: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bad_rows = self.options.bad_rows
        self.rows.rejected, self.rows.bad = self.bad_rows.codes, self.bad_rows.rejected
        self.settings = self.stage.settings_of(self.options) | self.settings

    @contextmanager
    def active(self) -> Iterator[Run]:
        """Within the `with` block, `current` returns this run."""
        token = _CURRENT.set(self)
        try:
            yield self
        finally:
            _CURRENT.reset(token)

    def source_records(self) -> Iterator[tuple[str, int, records.Record]]:
        """Read all local files again: (file, line, record) of each valid row."""
        for source in self.sources:
            yield from source.records()

    def count(self, records: int) -> None:
        """Count a micro-batch that our loss was called for in training, of so many records."""
        self.loss_calls += 1
        self.seen += records

    def rank_part(self, rank: int, more: Mapping[str, Any]) -> dict[str, Any]:
        """One rank's part of the receipt."""
        return {
            "rank": rank,
            "device": device_name(),
            "loss_calls": self.loss_calls,
            "seen": self.seen,
            "cards": patching.report(self.cards),
            **more,
        }

    def facts(self, seed: int) -> dict[str, Any]:
        """The receipt's entries that are known before training: what is trained, with what, on what."""
        return {
            "stage": self.stage.name,
            "paper": self.stage.paper,
            "settings": self.settings,
            "seed": seed,
            "versions": receipt.versions(),
            "run": asdict(self.setup) if self.setup else {},
            "datasets": [asdict(entry) for entry in self.datasets],
            "rows": self.rows.content(),
        }

    def content(
        self,
        *,
        seed: int,
        last_step: int,
        accumulation: int,
        expected_loss_calls: int,
        ranks: Sequence[Mapping[str, Any]],
        more: Mapping[str, Any],
        copies: int = 1,
    ) -> dict[str, Any]:
        """The receipt.

        Args:
            seed: the run's random seed.
            last_step: optimizer steps done now, including those before a resume.
            accumulation: micro-batches per optimizer step.
            expected_loss_calls: micro-batches that each rank must have trained on.
            ranks: `rank_part` of each rank.
            more: the trainer's entries.
            copies: how many ranks train on each record together.
        """
        facts = self.facts(seed)
        seen = sum(rank["seen"] for rank in ranks) // copies
        whole = None if self.seen_before is None else self.seen_before + seen
        part = {"first_step": self.first_step, "last_step": last_step, "receipt": True, "differs": self.differs}
        earlier = [
            {**each, "last_step": self.first_step if each["last_step"] is None else each["last_step"]}
            for each in self.parts
        ]
        return {
            **facts,
            "run": {
                **facts["run"],
                "steps": {"planned": self.planned, "done": last_step},
                "started": self.started,
                "ended": receipt.now(),
                "devices": dict(sorted(Counter(rank["device"] for rank in ranks).items())),
            },
            "parts": [*earlier, {**part, "started": self.started, "ended": receipt.now(), "seen": seen}],
            "rows": {**facts["rows"], "seen": whole},
            **self.more,
            "optimizer_steps": last_step - self.first_step,
            "first_step": self.first_step,
            "gradient_accumulation_steps": accumulation,
            "expected_loss_calls": expected_loss_calls,
            "ranks": [*ranks],
            **more,
        }

    def require_proof(self, content: Mapping[str, Any]) -> None:
        """Fail a run whose loss was not called for every micro-batch.

        Raises:
            UnprovenRun: naming the numbers.
        """
        calls = [rank["loss_calls"] for rank in content["ranks"]]
        if set(calls) != {content["expected_loss_calls"]}:
            expected = content["expected_loss_calls"]
            raise receipt.UnprovenRun(f"{self.stage.name}: expected {expected} loss calls a rank, found {calls}")


_CURRENT: ContextVar[Run] = ContextVar("finepref_run")


def current() -> Run:
    """The run of this process.

    Raises:
        LookupError: no run is active.
    """
    return _CURRENT.get()


def pinpoint(problems: Iterable[Problem]) -> list[Problem]:
    """Add file and line to problems of records, by reading the run's files again. Outside a run nothing is added."""
    run = _CURRENT.get(None)
    return record_places.pinpoint(problems, run.source_records() if run else ())


def refuse(problems: Sequence[Problem]) -> None:
    """Raise BadData, with file and line of each record, if there are problems."""
    if problems:
        raise BadData(pinpoint(problems))
