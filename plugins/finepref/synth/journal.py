"""One append-only journal per job, so that finished work is never done again, even if the process is killed.

A job directory holds `manifest.json` (what the answers depend on), `journal.jsonl` and `lock`. Each line of the
journal is one append: a JSON array of entries, objects with an "id". Either all entries of an append are in the file
or none, so that a batch engine can form the same batches again after a crash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout
from tqdm import tqdm

from finepref.formats.files import named_if_full, sync_folder, write_json

FORMAT = 1
"""Version of the layout above; a journal of another version raises `JournalChanged`."""


class JournalBusy(RuntimeError):  # noqa: N818 (the name is public)
    """Another process is writing to the directory."""


class JournalDamaged(ValueError):  # noqa: N818
    """A file of the job directory was changed by something other than this class."""


class JournalChanged(ValueError):  # noqa: N818
    """The directory holds the answers of another job.

    Attributes:
        fields: the manifest fields that differ -> (value in the directory, value asked for).
    """

    def __init__(self, directory: Path, fields: Mapping[str, tuple[object, object]]) -> None:
        self.fields = dict(fields)
        lines = [f"  {name}: {old!r} there, {new!r} now" for name, (old, new) in self.fields.items()]
        advice = "use the settings of that job, or choose another directory, or remove this one to start again"
        super().__init__("\n".join([f"{directory} holds the answers of another job:", *lines, advice]))


def locked(folder: Path) -> FileLock:
    """Make a folder if need be and take its lock for this process; the caller releases it.

    Raises:
        JournalBusy: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise JournalBusy(f"{folder} is in use by another process") from None
    return lock


class Journal:
    """The finished work of one job; a context manager, with one writer per directory at a time.

    The lock is the kernel's and is released when the process ends. An incomplete record at the end of the journal,
    left by a crash, is removed on entry.

    Args:
        directory: created if it does not exist; work found in it is resumed.
        job: the name of the step, such as "seapo inject".
        model: the model that answers; equal text means equal answers.
        prompt_version: version of the prompt texts.
        sampling: the generation settings, JSON-ready.
        seed: the seed of everything random in the step.
        input_digest: hex digest of the input data.

    Attributes:
        done: id -> entry, in the order in which they were written.
        torn_bytes: how many bytes were removed from the end.
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

    def __enter__(self) -> Journal:
        """Take the lock, compare the manifest, read the finished entries.

        Raises:
            JournalBusy, JournalChanged, JournalDamaged.
        """
        self._lock = locked(self.directory)
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
        """Write entries as one record; they are on the disk when this returns.

        Raises:
            ValueError: an id is in the journal already.
            OSError: nothing was written (a partial record was removed).
        """
        new = [dict(entry) for entry in entries]
        if not new:
            return
        ids = [str(entry["id"]) for entry in new]
        if len({*ids}) < len(ids) or not self.done.keys().isdisjoint(ids):
            raise ValueError(f"already in the journal: {[i for i in ids if i in self.done or ids.count(i) > 1]}")
        line = memoryview(json.dumps(new, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        try:
            with named_if_full(self.directory / "journal.jsonl"):
                while line:
                    line = line[self._file.write(line) :]
                os.fsync(self._file.fileno())
        except BaseException:
            self._file.truncate(self._size)
            raise
        self._size = self._file.seek(0, os.SEEK_END)
        self.done.update(zip(ids, new, strict=True))

    def complete(
        self,
        names: Collection[str],
        compute: Callable[[Collection[str]], Iterable[list[dict[str, object]]]],
        *,
        unit: str,
    ) -> Mapping[str, Mapping[str, object]]:
        """Compute the entries that are not in the journal yet, with a progress bar; returns `done`.

        Args:
            names: ids of all entries that are needed.
            compute: takes the ids that are done, and yields the other entries in batches; each is one append.
            unit: what an entry is, for the progress bar.
        """
        if any(name not in self.done for name in names):
            job, start = str(self.manifest["job"]), len(self.done)
            with tqdm(total=len(names), initial=start, desc=job, unit=unit, disable=None) as bar:
                for entries in compute([*self.done]):
                    self.append(entries)
                    bar.update(len(entries))
        return self.done

    def _check_manifest(self) -> None:
        path, journal = self.directory / "manifest.json", self.directory / "journal.jsonl"
        if not journal.exists() or not journal.stat().st_size:
            write_json(path, self.manifest)
            return
        if not path.exists():
            raise JournalDamaged(
                f"{self.directory} has a journal but no manifest.json, which says what job it belongs to"
            )
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
        sync_folder(self.directory)
        self._size = self._file.seek(0, os.SEEK_END)


def _entries(line: bytes) -> list[dict[str, object]] | None:
    """The entries of a line, None if it is not a complete record (no proper prefix of a record is one)."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(value, list) and all(isinstance(entry, dict) and "id" in entry for entry in value)
    return value if whole else None
