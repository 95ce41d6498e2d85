"""Texts on the command line."""

from __future__ import annotations

from pathlib import Path


def text_of(given: str) -> str:
    """A text as given, or the content of FILE for @FILE, without the line end that editors put at its end.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8.
    """
    if not given.startswith("@"):
        return given
    path = Path(given[1:])
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start + 1}") from None
    return text.replace("\r\n", "\n").removesuffix("\n")
