"""Spans of characters: found by comparing two texts or from token scores, and turned into weights of tokens."""

from __future__ import annotations

import difflib
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

from finepref.formats.row import Span

_WORD = re.compile(r"\w+|\s+|[^\w\s]")


def diff_spans(original: str, changed: str) -> tuple[Span, ...]:
    """Where `changed` differs from `original`, as spans of `changed`; none only if they are equal or it is empty.

    Words, runs of white space and other characters are compared (difflib), then each replaced piece is trimmed to its
    differing characters. Where something was only taken out, the word at the seam is marked: the shortened word,
    or else the next word, or else the last one; so every change can be seen in `changed`.
    """
    before, after = _WORD.findall(original), _WORD.findall(changed)
    same = _common_prefix(before, after)
    position = sum(map(len, after[:same]))
    before, after = before[same:], after[same:]
    tail = len(after) - _common_prefix(before[::-1], after[::-1])
    before, after = before[: len(before) - len(after) + tail], after[:tail]
    starts = [*accumulate(map(len, after), initial=position)]
    found: list[tuple[int, int]] = []
    matcher = difflib.SequenceMatcher(str.isspace, before, after, autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            continue
        old, new = "".join(before[i1:i2]), "".join(after[j1:j2])
        head = _common_prefix(old, new)
        tail = _common_prefix(old[head:][::-1], new[head:][::-1])
        start, end = starts[j1] + head, starts[j2] - tail
        found.append((start, end) if start < end else _seam(changed, start, shortened=j1 < j2))
    return tuple(span for span in merge_spans(found) if span.start < span.end)


def _common_prefix(a: Sequence[str], b: Sequence[str]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _seam(text: str, seam: int, *, shortened: bool) -> tuple[int, int]:
    words = [match.span() for match in _WORD.finditer(text) if not match[0].isspace()]
    if shortened:
        for start, end in words:
            if start <= seam <= end:
                return start, end
    for start, end in words:
        if end > seam:
            return start, end
    return words[-1] if words else (0, len(text))


def merge_spans(ranges: Iterable[tuple[int, int]]) -> tuple[Span, ...]:
    """Half-open ranges of characters as sorted spans; those that touch or overlap become one."""
    merged: list[Span] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1].end:
            merged[-1] = Span(merged[-1].start, max(end, merged[-1].end))
        else:
            merged.append(Span(start, end))
    return tuple(merged)


def token_weights(spans: Iterable[Span], offsets: Sequence[tuple[int, int]], *, start: int = 0) -> list[float]:
    """The weight of each of T tokens: that of the span it overlaps by at least one character, else 0.

    A token that overlaps several spans gets the largest of their weights; special tokens, with empty offsets, get 0.

    Args:
        spans: disjoint spans of one text.
        offsets: [T] half-open character offsets of the tokens, as a fast tokenizer gives them.
        start: where the text of the spans begins in the text that was tokenised.

    Raises:
        ValueError: two spans overlap.
    """
    ordered = sorted(spans)
    for left, right in pairwise(ordered):
        if right.start < left.end:
            raise ValueError(f"spans overlap: [{left.start}, {left.end}) and [{right.start}, {right.end})")
    starts = [start + span.start for span in ordered]
    ends = [start + span.end for span in ordered]
    weights = [span.weight for span in ordered]
    return [
        max(weights[bisect_right(ends, a) : bisect_left(starts, b)], default=0.0) if a < b else 0.0 for a, b in offsets
    ]


def covering(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The offsets of T tokens, widened so that each character of the text is in a token; white space may be in none.

    A tokenizer with a normaliser (NFC in all Qwen models, or one that strips accents) gives a token the place of the
    base letter only, and no token the place of the mark that was composed with it or taken off. Such a character
    belongs to the tokens that end before it, or to the first ones if there are none.

    Args:
        text: what was tokenised.
        offsets: [T] half-open character offsets of all its tokens, as a fast tokenizer gives them.
    """
    covered = bytearray(len(text))
    for start, end in offsets:
        covered[start:end] = b"\x01" * (end - start)
    left = [i for i, char in enumerate(text) if not covered[i] and not char.isspace()]
    ends = sorted({end for start, end in offsets if start < end})
    if not left or not ends:
        return [*offsets]
    first = min(start for start, end in offsets if start < end)
    reach: dict[int, int] = {}
    for i in left:
        if before := bisect_right(ends, i):
            reach[ends[before - 1]] = i + 1
    begin = min(left[0], first)
    return [
        (begin if start == first else start, reach.get(end, end)) if start < end else (start, end)
        for start, end in offsets
    ]


def spans_from_scores(
    scores: Sequence[float],
    offsets: Sequence[tuple[int, int]],
    *,
    threshold: float | None = None,
    ratio: float | None = None,
    highest: bool = True,
) -> tuple[Span, ...]:
    """The characters of the tokens with the highest (or lowest) scores; touching ones become one span.

    Tokens without characters (special tokens) are never picked. A character that several tokens share (a byte-level
    emoji) is in a span when one of them is picked.

    Args:
        scores: [T], one per token.
        offsets: [T] half-open character offsets of the tokens.
        threshold: picks scores >= threshold (<= when `highest` is false), or
        ratio: picks this share of the tokens, at least one; ties go to the earliest token.

    Raises:
        ValueError: neither or both of threshold and ratio, a ratio outside (0, 1], a score that is NaN, or lengths
            that differ.
    """
    if len(scores) != len(offsets):
        raise ValueError(f"{len(scores)} scores for {len(offsets)} tokens")
    if any(math.isnan(score) for score in scores):
        raise ValueError(f"the score of token {next(i for i, s in enumerate(scores) if math.isnan(s))} is NaN")
    sign = -1.0 if highest else 1.0
    tokens = [i for i, (a, b) in enumerate(offsets) if a < b]
    if threshold is not None and ratio is None:
        picked = [i for i in tokens if sign * scores[i] <= sign * threshold]
    elif ratio is not None and threshold is None:
        if not 0 < ratio <= 1:
            raise ValueError(f"the ratio {ratio} is not in (0, 1]")
        picked = sorted(tokens, key=lambda i: sign * scores[i])[: max(1, int(ratio * len(tokens)))]
    else:
        raise ValueError("give threshold or ratio, one of them")
    return merge_spans(offsets[i] for i in picked)
