"""One append-only journal per job: an answer that was paid for is never asked for again, whatever kills the process.

A job directory holds `manifest.json` (what the answers depend on), `journal.jsonl` and `lock`. Each line of the
journal is one append: a JSON array of entries, objects with an "id". The entries of one append are there together or
not at all, which is what lets a batch engine form the same batches again after a crash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from finepref.formats.jsonl import replacing

FORMAT = 1
"""Version of the layout above; a change of it makes old journals a `JournalChanged`."""


class JournalBusy(RuntimeError):  # noqa: N818 (the name is public)
    """Another process is writing to the directory."""


class JournalDamaged(ValueError):  # noqa: N818
    """A file of the job directory was changed by something else than this class."""


class JournalChanged(ValueError):  # noqa: N818
    """The directory holds answers to another job.

    Attributes:
        fields: the manifest fields that differ -> (value in the directory, value asked for).
    """

    def __init__(self, directory: Path, fields: Mapping[str, tuple[object, object]]) -> None:
        self.fields = dict(fields)
        lines = [f"  {name}: {old!r} there, {new!r} now" for name, (old, new) in self.fields.items()]
        advice = "repeat that job's settings, or give another directory (or remove this one) to start afresh"
        super().__init__("\n".join([f"{directory} holds the answers of another job:", *lines, advice]))


class Journal:
    """The finished work of one job; a context manager, with one writer per directory at a time.

    The lock is the kernel's and dies with the process. A record torn by a crash at the end of the journal is cut off
    on entry.

    Args:
        directory: made if it is not there; work found in it is taken up again.
        job: the name of the step, such as "seapo inject".
        model: what answers, such that equal text means equal answers.
        prompt_version: version of the prompt texts.
        sampling: the generation settings, JSON-ready.
        seed: the seed of everything random in the step.
        input_digest: hex digest of the input data.

    Attributes:
        done: id -> entry, in the order in which they were written.
        torn_bytes: how many bytes were cut off the end.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        job: str,
        model: str,
        prompt_version: str,
        sampling: Mapping[str, object],
        seed: int,
        input_digest: str,
    ) -> None:
        self.directory = Path(directory)
        self.manifest: dict[str, object] = {
            "format": FORMAT,
            "job": job,
            "model": model,
            "prompt_version": prompt_version,
            "sampling": dict(sampling),
            "seed": seed,
            "input": input_digest,
        }
        self.done: dict[str, dict[str, object]] = {}
        self.torn_bytes = 0
        self._lock = FileLock(self.directory / "lock", timeout=0)

    def __enter__(self) -> Journal:
        """Take the lock, compare the manifest, read what is done.

        Raises:
            JournalBusy, JournalChanged, JournalDamaged.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise JournalBusy(f"{self.directory} is in use by another process") from None
        try:
            self._check_manifest()
            self._file = open(self.directory / "journal.jsonl", "a+b", buffering=0)
            try:
                self._load()
            except BaseException:
                self._file.close()
                raise
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._lock.release()

    def append(self, entries: Iterable[Mapping[str, object]]) -> None:
        """Write entries as one record; when this returns they are on the disk.

        Raises:
            ValueError: an id is there already.
            OSError: nothing was written (a partial record was taken back).
        """
        new = [dict(entry) for entry in entries]
        if not new:
            return
        ids = [str(entry["id"]) for entry in new]
        if len({*ids}) < len(ids) or not self.done.keys().isdisjoint(ids):
            raise ValueError(f"already journalled: {[i for i in ids if i in self.done or ids.count(i) > 1]}")
        line = memoryview(json.dumps(new, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except BaseException:
            self._file.truncate(self._size)
            raise
        self._size = self._file.seek(0, os.SEEK_END)
        self.done.update(zip(ids, new, strict=True))

    def _check_manifest(self) -> None:
        path, journal = self.directory / "manifest.json", self.directory / "journal.jsonl"
        if not journal.exists() or not journal.stat().st_size:
            write_json(path, self.manifest)
            return
        if not path.exists():
            raise JournalDamaged(f"{self.directory} has a journal and no manifest.json to say what it answers")
        try:
            found = json.loads(path.read_bytes())
        except ValueError as error:
            raise JournalDamaged(f"{path} is not JSON: {error}") from None
        wanted = json.loads(json.dumps(self.manifest))
        fields = {
            name: (found.get(name), wanted.get(name))
            for name in {**wanted, **found}
            if found.get(name) != wanted.get(name)
        }
        if fields:
            raise JournalChanged(self.directory, fields)

    def _load(self) -> None:
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        with open(self._file.fileno(), "rb", closefd=False) as lines:
            end = 0
            for number, line in enumerate(lines, start=1):
                entries = _entries(line)
                if entries is None:
                    if end + len(line) < size:
                        raise JournalDamaged(f"{self.directory / 'journal.jsonl'}:{number} is not a record")
                    break
                for entry in entries:
                    if self.done.setdefault(str(entry["id"]), entry) is not entry:
                        message = f"{self.directory / 'journal.jsonl'}:{number} repeats the id {entry['id']!r}"
                        raise JournalDamaged(message)
                end += len(line)
        self.torn_bytes = size - end
        self._file.truncate(end)
        if end and not line.endswith(b"\n") and not self.torn_bytes:
            self._file.write(b"\n")
        os.fsync(self._file.fileno())
        _sync_directory(self.directory)
        self._size = self._file.seek(0, os.SEEK_END)


def write_json(path: Path, value: object) -> None:
    """Write one JSON document; the file appears complete or not at all, also after a crash."""
    with replacing(path) as partial:
        partial.write_bytes(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2).encode() + b"\n")
    _sync_directory(path.parent)


def _entries(line: bytes) -> list[dict[str, object]] | None:
    """The entries of one line, None when it is not a whole record (no proper prefix of a record is one)."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(value, list) and all(isinstance(entry, dict) and "id" in entry for entry in value)
    return value if whole else None


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
