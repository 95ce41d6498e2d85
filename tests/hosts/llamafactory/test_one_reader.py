"""Of the processes of a machine one reads and hashes the files; the others wait for it, however long it takes."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from sample_rows import rows, write_rows


@pytest.fixture
def source(tmp_path):
    """A data set of 12 records."""
    from finepref.hosts.run import Source

    folder = write_rows(tmp_path / "data", rows())
    return Source("sums", "negatives", (folder / "sums.jsonl",))


def forked(count: int, work) -> list[int]:
    """Call `work(rank)` in processes of their own, at the same time. Returns how they ended."""
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(rank)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.fixture
def noted(tmp_path, monkeypatch) -> Path:
    """A file with a line each time that a data file is read or hashed, in any process. Reading takes a while."""
    from finepref.hosts import reading, row_cache

    log = tmp_path / "log.txt"
    log.touch()

    def noting(name: str, original):
        def call(path):
            with open(log, "a") as file:
                file.write(f"{name}\n")
            time.sleep(0.3)
            return original(path)

        return call

    monkeypatch.setattr(reading, "rows_of", noting("read", reading.rows_of))
    monkeypatch.setattr(reading, "digest", noting("hash", reading.digest))
    monkeypatch.setattr(row_cache, "digest", noting("hash", row_cache.digest))
    return log


def prepared(source, folder: Path):
    from finepref.formats.bad_rows import BadRows
    from finepref.hosts import row_cache

    return row_cache.prepared(source, BadRows(), folder)


def test_of_processes_that_start_together_one_reads_and_hashes_the_file_once(source, noted, tmp_path):
    def work(rank: int) -> None:
        found = prepared(source, tmp_path / "cache")
        assert found.entry.read == 12
        assert len(found.entry.files["sums.jsonl"]) == 64

    assert forked(3, work) == [0, 0, 0]
    assert noted.read_text().split() == ["hash", "read"]


def test_a_process_that_dies_while_it_reads_leaves_the_file_to_the_next_one(source, noted, tmp_path, monkeypatch):
    from finepref.hosts import row_cache

    def work(rank: int) -> None:
        row_cache.cached_row = lambda source: os._exit(9)
        prepared(source, tmp_path / "cache")

    assert forked(1, work) == [9]
    assert prepared(source, tmp_path / "cache").entry.read == 12


def test_a_rank_that_waits_for_the_first_one_is_not_bound_by_ddp_timeout(tmp_path):
    """The first rank takes five seconds, the limit of the group is three."""
    from finepref.hosts.llamafactory.workflow import patience
    from torch import distributed as dist

    order = tmp_path / "order.txt"

    def work(rank: int) -> None:
        where = f"file://{tmp_path}/rendezvous"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2, timeout=timedelta(seconds=3))
        training = SimpleNamespace(local_process_index=rank, process_index=rank)
        with patience(training), training.main_process_first(desc="read"):
            time.sleep(0 if rank else 5)
            with open(order, "a") as file:
                file.write(f"{rank}")
        assert not hasattr(training, "main_process_first")  # the host's own is there again

    assert forked(2, work) == [0, 0]
    assert order.read_text() == "01"
