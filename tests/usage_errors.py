"""What a command says of a wrong use of it, read without the box that is drawn around it."""

from __future__ import annotations


def unboxed(text: str) -> str:
    """The words of a text with a space between two, wherever the box broke its lines."""
    return " ".join(text.replace("│", " ").split())
