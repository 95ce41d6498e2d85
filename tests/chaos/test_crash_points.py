"""A crash at every point where a run touches the disk: before and after each sync, each rename, inside each record.

The points are found, not listed: the n-th call of each kind is the one that kills, for n = 1, 2, ... until a run ends
without meeting it. After each crash one more run must give the bytes of a run that was never disturbed.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from finepref.formats.jsonl import write_jsonl
from finepref.synth import journal
from finepref.synth.engines.protocol import Completion, Request
from finepref.synth.seapo import inject

ROWS = [{"id": f"r{i}", "prompt": f"Number {i}?", "chosen": f"It is number {i} of three."} for i in range(3)]
KINDS = ("fsync", "replace", "truncate", "record")


class Echo:
    """Answers by the request's id; notes in a file what it was asked, as one who pays for it would."""

    model = "echo"

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        for request in requests:
            with open(self.notes, "a") as file:
                file.write(request.id + "\n")
            number = request.id[1]
            yield [Completion(request.id, f"It is number {number} of four.", "stop")]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def job(folder: Path, kind: str, number: int, before: bool) -> None:
    """The run, which dies at the given call; number 0 lets it live."""
    calls = 0

    def counted() -> bool:
        nonlocal calls
        calls += 1
        return calls == number

    def dying(function):
        def called(*arguments):
            fatal = counted()
            if fatal and before:
                die()
            result = function(*arguments)
            if fatal:
                die()
            return result

        return called

    class File(io.FileIO):
        def write(self, data) -> int:
            if kind != "record" or not counted():
                return super().write(data)
            super().write(bytes(data)[: len(data) // 2] if before else data)
            return die()

        def truncate(self, size=None) -> int:
            return dying(super().truncate)(size) if kind == "truncate" else super().truncate(size)

    def opened(path, mode="r", **options):
        return File(path, "a+") if mode == "a+b" else open(path, mode, **options)

    journal.open = opened
    if kind in ("fsync", "replace"):
        setattr(os, kind, dying(getattr(os, kind)))
    inject.inject(folder / "in.jsonl", folder / "out.jsonl", engine=Echo(folder / "asked"), types=["logic"])


def run(folder: Path, kind: str = "", number: int = 0, before: bool = False) -> int:
    """The exit code of the run in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=job, args=(folder, kind, number, before))
    process.start()
    process.join()
    return process.exitcode


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("out.jsonl", "out.report.json", "out.work/journal.jsonl")]


@pytest.mark.chaos
@pytest.mark.parametrize("torn", [False, True], ids=["fresh", "torn"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_at_every_point_loses_doubles_and_spoils_nothing(tmp_path, kind, before, torn):
    """`torn`: the run that dies goes on after another that died in the middle of its second record."""

    def prepared(name: str) -> Path:
        folder = tmp_path / name
        write_jsonl(folder / "in.jsonl", ROWS)
        if torn:
            assert run(folder, "record", 2, True) == -signal.SIGKILL
        return folder

    calm = prepared("calm")
    assert run(calm) == 0
    expected = contents(calm)
    points = 0
    while True:
        folder = prepared(f"{points + 1}")
        exit_code = run(folder, kind, points + 1, before)
        if exit_code == 0:
            break
        assert exit_code == -signal.SIGKILL
        points += 1
        paid = (folder / "asked").read_text().split() if (folder / "asked").exists() else []
        assert run(folder) == 0
        assert contents(folder) == expected
        again = (folder / "asked").read_text().split()
        assert len(again) <= 3 + 1 + torn, "a crash may cost the one request that was under way, no more"
        assert again[: len(paid)] == paid
    assert points >= {"fsync": 7, "replace": 2, "truncate": 1, "record": 2}[kind]
