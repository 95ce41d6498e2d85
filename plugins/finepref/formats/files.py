"""Atomic writes: a file appears complete or not at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` at the end of the block, flushed to disk.

    After an error or a crash `path` is unchanged. Its folder is created if it does not exist.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with named_if_full(target), open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


@contextmanager
def named_if_full(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in an error of the block that says that a disk, a quota or a file is full and names none."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and error.filename is None:
            error.filename = os.fspath(path)
        raise


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write one JSON document to `path`, atomically.

    Raises:
        ValueError: a number is NaN or infinite; the file is then unchanged.
    """
    with replacing(path) as file:
        file.write(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2).encode() + b"\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text to `path` in UTF-8, atomically."""
    with replacing(path) as file:
        file.write(text.encode())


def sync_folder(folder: Path) -> None:
    """Flush a folder's directory entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
