"""The sentences of an answer that can be rewritten alone: those of running text and of list items.

Markdown is read by markdown-it. Headings, tables, code, HTML and displayed maths hold no sentence, and a sentence lies
within one line, so that none of these is torn. The rules between sentences are careful: where an end is in doubt
("e.g.", "J. Smith", a lower-case letter after the mark) two sentences stay one, which costs nothing here, because what
is replaced is still whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from markdown_it import MarkdownIt

from finepref.synth.engines.thoughts import split as split_thought

_MARKDOWN = MarkdownIt("commonmark").enable("table")
_LINES = re.compile(r"\r\n|\n|\r")
_MATHS = re.compile(r"\$\$.*?\$\$|\\\[.*?\\\]|\\begin\{([^}]*)\}.*?\\end\{\1\}", re.DOTALL)
_CLOSING = r"""["'”’」』)\uff09\]】*_~]*"""
_OPENING = r"""["'“‘「『(\uff08\[*_~]*"""
_END = re.compile(
    rf"(?P<wide>[。\uff01\uff1f]+{_CLOSING})|(?P<mark>[.!?…]+{_CLOSING})(?=\s+{_OPENING}(?P<next>[^\W_]))"
    rf"|[.!?…:\uff1a]+{_CLOSING}\s*$"
)
_SHORT = re.compile(
    r"(?:^\d{1,2}|(?:^|[^\w.])(?:[^\W\d_]|[A-Za-z](?:\.[A-Za-z])+|mrs?|ms|dr|prof|st|mt|sr|jr|vs|etc|no|nos|fig|eq|ca|approx"
    r"|inc|ltd|co|corp|rs|vol|pp?|eds?|cf|al|dept|est|gen|gov|sen|rep|rev|capt|col|sgt))\.$",
    re.IGNORECASE,
)
_LABEL = re.compile(r"(?:(\*\*|__)(?:(?!\1).)+\1\s*[:\uff1a—–-]?|[-–•]|\d+[.)])\s+")
_HEADING = re.compile(r"(\*\*|__)(?:(?!\1).)+\1\W*")
_PAIRS = {"(": ")", "[": "]", "\uff08": "\uff09", "“": "”", "「": "」", "『": "』", "【": "】"}
_MARKS = ("**", "__", "`", '"')
_DOLLAR = re.compile(r"\$(?!\d)")


class Sentence(NamedTuple):
    """A sentence, `text[start:end]` of its answer.

    Attributes:
        ended: whether it has a mark at its end; a list item or an answer of one line may have none.
    """

    start: int
    end: int
    text: str
    ended: bool


def sentences(text: str) -> list[Sentence]:
    """The sentences of an answer that can be replaced, in their order; a thought at its beginning holds none.

    A bold label or a number at the beginning of a line ("**Cost:** It is ...") is no part of a sentence. Left out are
    lines that introduce something (they end in a colon or are all bold), sentences that go on in the next line, and
    those with half a pair of brackets, quotation marks, or marks of code, maths or bold text.
    """
    begin = len(split_thought(text)[0])
    maths = [match.span() for match in _MATHS.finditer(text)]
    return [
        each
        for each in _pieces(text, begin)
        if _whole(each.text) and not any(each.start < end and start < each.end for start, end in maths)
    ]


def count(line: str) -> int:
    """The number of sentences in one line of running text."""
    return len([*_cut(line)])


def first(line: str, n: int) -> str:
    """The first `n` sentences of one line of running text."""
    return line[: [*_cut(line)][:n][-1][1]] if line else line


def _pieces(text: str, begin: int) -> Iterator[Sentence]:
    """Every piece of a line between two ends that begins and ends a sentence."""
    breaks = [match.span() for match in _LINES.finditer(text, begin)]
    edges = pairwise([(begin, begin), *breaks, (len(text), len(text))])
    lines = [(left[1], right[0]) for left, right in edges]
    tokens = _MARKDOWN.parse(text[begin:])
    for opening, token in pairwise(tokens):
        if token.type != "inline" or opening.type != "paragraph_open" or token.map is None:
            continue
        begins = True
        contents = token.content.split("\n")
        for number, (place, content) in enumerate(zip(range(*token.map), contents, strict=False), start=1):
            end = lines[place][0] + len(text[slice(*lines[place])].rstrip())
            content = content.strip()
            start = end - len(content)
            if text[start:end] != content:
                begins = False
                continue
            if begins and (label := _LABEL.match(content)):
                start += label.end()
            cuts = [*_cut(text[start:end])]
            for place_in_line, (left, right, ended) in enumerate(cuts, start=1):
                piece = text[start + left : start + right]
                last = number == len(contents) and place_in_line == len(cuts)
                if begins and (ended or last) and piece[-1:] not in ("", ":", "\uff1a"):
                    yield Sentence(start + left, start + right, piece, ended)
                begins = ended


def _cut(line: str) -> Iterator[tuple[int, int, bool]]:
    """The sentences of a line as (start, end, whether it has a mark at its end), without white space around."""
    start = 0
    for match in _END.finditer(line):
        if match["mark"]:
            following = match["next"]
            if following.islower() or (match["mark"] == "." and _SHORT.search(line[start : match.end()])):
                continue
        yield from _trimmed(line, start, match.end(), True)
        start = match.end()
    yield from _trimmed(line, start, len(line), False)


def _trimmed(line: str, start: int, end: int, ended: bool) -> Iterator[tuple[int, int, bool]]:
    piece = line[start:end]
    if piece.strip():
        yield start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip()), ended


def _whole(piece: str) -> bool:
    """Whether a piece has no half of a pair."""
    pairs = all(piece.count(left) == piece.count(right) for left, right in _PAIRS.items())
    marks = all(piece.count(mark) % 2 == 0 for mark in _MARKS)
    return pairs and marks and not _HEADING.fullmatch(piece) and len(_DOLLAR.findall(piece)) % 2 == 0
