"""The reference's log-probabilities of all responses of a data set, read once into a file, the same on both hosts.

A data set has R rows, and each row a prompt and some responses: those that are trained on or may be drawn.
The file has a float32 for every token of each response. It is found again, by its name, as long as the rows have the
same tokens and the reference is the same model. So epochs, later runs, further processes and resumed runs use it.

It is made in one pass before the training. The rows are sorted by length and cut into batches, and these into parts,
by the data alone: a file that is made again, or by more processes, is the same. Each process writes its parts as files
of their own, so that a pass that was killed resumes with those that are there; then one process joins them.

R rows, S responses of all rows together.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from filelock import FileLock
from torch import distributed as dist
from tqdm import tqdm

from finepref.formats.files import replacing, write_json
from finepref.hosts import list_columns, row_cache

SCHEMA = "reference-1"
"""To be changed whenever the files, or the batches in which they are made, change."""

BATCH_TOKENS = 2**13
"""Tokens of a batch with its padding; a longer response is a batch of its own."""

PARTS = 1024
"""About the number of parts of a large data set."""

LOGPS, STARTS, FIRST, REPORT = "logps.npy", "starts.npy", "first.npy", row_cache.REPORT_FILE
SEEN_WITHIN = 120.0  # seconds, of a network file system
PATIENCE = timedelta(days=7)  # of processes that have read their share

Text = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of a response."""

Read = Callable[[Sequence[Text]], np.ndarray]
"""A batch -> log pi_ref of the responses' tokens, one response after the other, float32. It is a forward pass."""


class Texts(NamedTuple):
    """The prompts and responses of a data set.

    Attributes:
        digest: of all their tokens.
        prompts: [R], tokens of each prompt.
        first: [R + 1], index of each row's first response.
        responses: [S], tokens of each response.
        row: index of a row -> token ids of its prompt and of each response.
    """

    digest: str
    prompts: np.ndarray
    first: np.ndarray
    responses: np.ndarray
    row: Callable[[int], tuple[Sequence[int], Sequence[Sequence[int]]]]


def texts_of(
    tables: Iterable[pa.Table], responses: Sequence[tuple[str, str]], row: Callable[[int], Any], prompt: str = "prompt"
) -> Texts:
    """The texts of tokenised rows.

    Args:
        tables: the rows.
        responses: (column, column) of responses: token ids, and, if a row has several, one after the other, their
            numbers of tokens; else "".
        row: see `Texts`.
        prompt: column of the prompt's token ids.
    """
    hashed = Digest()
    prompts, counts, lengths = [], [], []
    for table in tables:
        prompts.append(list_columns.lengths(table.column(prompt).chunks))
        parts = [(lists(table, ids)[0], None) if not of else lists(table, of)[::-1] for ids, of in responses]
        count = [np.ones(len(table), np.int64) if each is None else each for _, each in parts]
        counts.append(sum(count))
        order = np.argsort(np.concatenate([np.repeat(np.arange(len(table)), each) for each in count]), kind="stable")
        lengths.append(np.concatenate([flat for flat, _ in parts])[order])
        for name in (prompt, *(ids for ids, _ in responses)):
            hashed.add(name, *lists(table, name))
        hashed.add("lengths", lengths[-1])
    first = np.concatenate([[0], np.cumsum(np.concatenate([*counts, np.zeros(0, np.int64)]))])
    every = [np.concatenate([*found, np.zeros(0, np.int64)]) for found in (prompts, lengths)]
    return Texts(hashed.text, every[0], first.astype(np.int64), every[1], row)


def lists(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists: the number of values in each row, and all values, int64."""
    parts = table.column(name).chunks
    return list_columns.lengths(parts), list_columns.values(parts)


class Digest:
    """A hash of columns of integers, the same whatever the tables in which they come."""

    def __init__(self) -> None:
        self.hashes: dict[tuple[str, int], Any] = {}

    def add(self, name: str, *parts: np.ndarray) -> None:
        """Add the next values of a column, each part to a hash of its own: lengths and values of lists, or numbers."""
        for place, part in enumerate(parts):
            hashed = self.hashes.setdefault((name, place), hashlib.blake2b(digest_size=16))
            hashed.update(part.astype(np.int32).tobytes())

    @property
    def text(self) -> str:
        """The hash, as hexadecimal digits."""
        return row_cache.name_of([[*key, hashed.hexdigest()] for key, hashed in self.hashes.items()])


def batches_of(texts: Texts) -> Iterator[np.ndarray]:
    """The responses of each batch, the longest first. The responses of a row are together, if a batch has room.

    A row's responses share its prompt, of which a forward pass may make use.
    """
    counts = np.diff(texts.first)
    widths = np.repeat(texts.prompts, counts) + texts.responses
    longest = np.zeros(len(counts), np.int64)
    np.maximum.at(longest, np.repeat(np.arange(len(counts)), counts), widths)
    batch: list[int] = []
    width = 0  # of the batch
    for row in np.argsort(-longest, kind="stable").tolist():
        start, stop, needed = int(texts.first[row]), int(texts.first[row + 1]), int(longest[row])
        width = max(width, needed)
        if batch and (len(batch) + stop - start) * width > BATCH_TOKENS:
            yield np.asarray(batch)
            batch, width = [], needed
        most = max(1, BATCH_TOKENS // max(1, width))
        batch += range(start, stop)
        while len(batch) > most:
            yield np.asarray(batch[:most])
            batch = batch[most:]
    if batch:
        yield np.asarray(batch)


def parts_of(texts: Texts) -> list[list[np.ndarray]]:
    """The batches of each part."""
    total = int(texts.responses.sum() + np.dot(texts.prompts, np.diff(texts.first)))
    size, parts, filled = max(1, total // PARTS), list[list[np.ndarray]](), 0
    rows = np.repeat(np.arange(len(texts.prompts)), np.diff(texts.first))
    for batch in batches_of(texts):
        if not parts or filled >= size:
            parts.append([])
            filled = 0
        parts[-1].append(batch)
        filled += int(texts.responses[batch].sum() + texts.prompts[rows[batch]].sum())
    return parts


class Kept(Sequence[list[np.ndarray]]):
    """The log-probabilities of each row: an array per response, float32, of the file. It may be sent to a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logps, self.starts, self.first = (np.load(folder / n, mmap_mode="r") for n in (LOGPS, STARTS, FIRST))

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, (self.folder,)

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, index: Any) -> Any:
        bounds = self.starts[self.first[index] : self.first[index + 1] + 1]
        return [self.logps[start:stop] for start, stop in pairwise(bounds)]


@dataclass
class Cache:
    """The file of one data set, made or not.

    Attributes:
        texts: the data set.
        model: what is to be known of the reference, as JSON has it: all that its log-probabilities depend on.
        parent: folder of such files.
    """

    texts: Texts
    model: Any
    parent: Path

    @cached_property
    def key(self) -> str:
        """Its name."""
        return row_cache.name_of([SCHEMA, self.model, self.texts.digest])

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.parent / "reference" / self.key

    @property
    def is_complete(self) -> bool:
        """Whether it is there."""
        return (self.folder / REPORT).is_file()

    @property
    def partial(self) -> Path:
        """Where its parts are while it is made."""
        return self.folder.with_name(f"{self.key}.parts")

    def part(self, number: int) -> Path:
        """The file of a part."""
        return self.partial / f"{number:05d}.npy"

    def has(self, number: int, batches: Sequence[np.ndarray]) -> bool:
        """Whether a part is there as a whole."""
        tokens = sum(int(self.texts.responses[batch].sum()) for batch in batches)
        try:
            return len(np.load(self.part(number), mmap_mode="r")) == tokens
        except (OSError, EOFError, ValueError):
            return False

    def join(self, parts: Sequence[Sequence[np.ndarray]], seconds: float) -> None:
        """Make the file of the parts."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.with_name(f"{self.key}.lock")):
            if not self.is_complete:
                made = self.folder.with_name(f"{self.key}.{os.getpid()}.partial")
                shutil.rmtree(made, ignore_errors=True)
                made.mkdir(parents=True)
                self._write(made, parts, seconds)
                shutil.rmtree(self.folder, ignore_errors=True)
                os.replace(made, self.folder)
        shutil.rmtree(self.partial, ignore_errors=True)

    def _write(self, made: Path, parts: Sequence[Sequence[np.ndarray]], seconds: float) -> None:
        lengths = self.texts.responses
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        logps = np.lib.format.open_memmap(made / LOGPS, mode="w+", dtype=np.float32, shape=(int(starts[-1]),))
        for number, batches in enumerate(parts):
            responses = np.concatenate(batches)
            logps[ranges(starts[responses], lengths[responses])] = np.load(self.part(number))
        logps.flush()
        np.save(made / STARTS, starts)
        np.save(made / FIRST, self.texts.first)
        numbers = {"rows": len(self.texts.prompts), "responses": len(lengths), "tokens": len(logps)}
        numbers["bytes"] = sum(file.stat().st_size for file in made.iterdir())
        write_json(made / REPORT, {**numbers, "seconds": round(seconds, 1), "model": self.model})


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, ..., start + count - 1 of each, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


class Processes:
    """The processes of the run, which wait for each other for days; a context manager.

    The hosts' own groups give up after minutes or hours.
    """

    def __enter__(self) -> Processes:
        several = dist.is_initialized() and dist.get_world_size() > 1
        self.group = dist.new_group(backend="gloo", timeout=PATIENCE) if several else None
        self.rank = dist.get_rank() if several else 0
        return self

    def __exit__(self, *_: Any) -> None:
        if self.group is not None:
            dist.destroy_process_group(self.group)

    def gather(self, value: Any) -> list[Any]:
        """The value of each process. Every process must call this."""
        if self.group is None:
            return [value]
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, value, group=self.group)
        return found

    def all_see(self, folder: Path) -> bool:
        """Whether all processes have this folder in common. Every process must call this."""
        note = folder / "run"
        word = self.gather(secrets.token_hex(8))[0]
        if self.rank == 0:
            with replacing(note) as file:
                file.write(word.encode())
        self.gather(None)
        return all(self.gather(note.is_file() and note.read_text() == word))


def found(caches: Sequence[Cache]) -> bool:
    """Whether all files are there, for every process. Every process must call this."""
    with Processes() as processes:
        return all(processes.gather(all(cache.is_complete for cache in caches)))


def fill(caches: Sequence[Cache], read: Read, *, in_step: bool = False, tell: Callable[[str], None]) -> None:
    """Make the files that are not there. Every process must call this; each one reads its share.

    Args:
        caches: the files.
        read: a forward pass of the reference, without gradients.
        in_step: whether all processes must make as many passes, because they have parts of the weights.
        tell: prints a line, on the first process.
    """
    with Processes() as processes:
        for cache in caches:
            if not all(processes.gather(cache.is_complete)):
                _fill(cache, read, in_step, processes, tell)


def _fill(cache: Cache, read: Read, in_step: bool, processes: Processes, tell: Callable[[str], None]) -> None:
    began = time.monotonic()
    parts = parts_of(cache.texts)
    index, count, first = processes.rank, len(processes.gather(None)), 0
    if not processes.all_see(cache.partial):  # machines without a common file system: each makes the whole file
        index, count = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        first = processes.rank - index
    missing = [number for number, batches in enumerate(parts) if not cache.has(number, batches)]
    missing = processes.gather(missing)[first]
    if len(missing) < len(parts):
        tell(f"reference log-probabilities: {len(parts) - len(missing)} of {len(parts)} parts are there")
    mine = missing[index::count]
    passes = sum(len(parts[number]) for number in mine)
    further = max(processes.gather(passes)) - passes if in_step else 0
    tokens = sum(int(cache.texts.responses[batch].sum()) for number in mine for batch in parts[number])
    with tqdm(total=tokens, desc="finepref: reference", unit="tok", disable=processes.rank > 0) as bar:
        for number in mine:
            values = []
            for batch in parts[number]:
                values.append(_checked(read(_batch(cache.texts, batch)), cache.texts.responses[batch]))
                bar.update(len(values[-1]))
            with replacing(cache.part(number)) as file:
                np.save(file, np.concatenate(values))
    for _ in range(further):
        read(_batch(cache.texts, parts[-1][-1]))
    processes.gather(None)
    if index == 0 and not cache.is_complete:
        cache.join(parts, time.monotonic() - began)
    processes.gather(None)
    _wait_for(cache)
    tell(f"reference log-probabilities: {described(cache)}, {time.monotonic() - began:.1f} s")


def _wait_for(cache: Cache) -> None:
    """Wait until this machine sees the file, which another one may have made."""
    until = time.monotonic() + SEEN_WITHIN
    while not cache.is_complete:
        if time.monotonic() > until:
            raise FileNotFoundError(f"{cache.folder} was made by another process, but is not seen here")
        os.listdir(cache.folder.parent)  # lets a network file system look again
        time.sleep(0.5)


def _batch(texts: Texts, responses: np.ndarray) -> list[Text]:
    """The texts of some responses; each row is made once if its responses follow each other."""
    made: list[Text] = []
    rows = np.searchsorted(texts.first, responses, side="right") - 1
    row, prompt, found = -1, [], []
    for response, owner in zip(responses.tolist(), rows.tolist(), strict=True):
        if owner != row:
            row, (prompt, found) = owner, texts.row(owner)
        made.append((prompt, found[response - int(texts.first[row])]))
    return made


def _checked(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    if len(values) != lengths.sum():
        raise ValueError(f"{len(values)} log-probabilities were read, the responses have {lengths.sum()} tokens")
    return values.astype(np.float32, copy=False)


def described(cache: Cache) -> str:
    """A file in some words."""
    size = sum(file.stat().st_size for file in cache.folder.iterdir())
    tokens = int(cache.texts.responses.sum())
    return f"{len(cache.texts.prompts)} rows, {tokens} tokens, {size / 1e6:.1f} MB in {cache.folder}"


def about(model: Mapping[str, Any], adapters: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """What is to be known of a reference, see `Cache.model`: digests of the model and its adapters, without paths.

    Where a folder has no digests, its path stands for it.

    Args:
        model, adapters: see `model_identity.identity`.
        more: further settings on which the numbers depend, such as its precision.
    """
    each = [
        {key: value for key, value in one.items() if key != "path"} if one.get("weights_sha256") else one["path"]
        for one in (model, *adapters)
    ]
    return {"model": each[0], "adapters": each[1:], **more}


def placed(values: Sequence[np.ndarray], ends: Sequence[int], width: int) -> np.ndarray:
    """Log-probabilities of the responses of a padded batch, float32 [M, L], 0 elsewhere.

    Args:
        values: of each response.
        ends: the column after each response.
        width: L.
    """
    made = np.zeros((len(values), width), dtype=np.float32)
    for row, (response, end) in enumerate(zip(values, ends, strict=True)):
        made[row, end - len(response) : end] = response
    return made
