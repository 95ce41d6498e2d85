"""One HTML page with records and their tokens: self-contained, and no request leaves it.

The page is `view.html`, beside this file, with the records as JSON in it. `filled` makes it, and the annotator's page
(`annotate_page`), from parts that both have: `page.css` and `page.js`. A page's policy (Content-Security-Policy)
allows its own script and style by their hashes and nothing else, and its script writes texts as text, so that what a
record holds is never run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from finepref.hosts.token_view import Entry, Response

DIGITS = 6
"""Decimals of values in the page: those of score files, so that the page selects the tokens that training selects."""
_PLACE_OF_DATA, _PLACE_OF_POLICY, _PLACE_OF_TITLE = "__DATA__", "__POLICY__", "__TITLE__"
_PARTS = {"/*__PAGE_CSS__*/": "page.css", "/*__PAGE_JS__*/": "page.js"}
"""Place in a template -> the file that all pages have there."""


def page(entries: Iterable[Entry], *, title: str, about: Sequence[str] = (), colour: str = "") -> str:
    """The page as a text.

    Args:
        entries: the records.
        title: what they are, such as the name of their file.
        about: lines about all of them, such as the stage and the model.
        colour: the values to colour by at first; "" = the first of weight, reward, span and others that there are.
    """
    data = {"about": list(about), "colour": colour, "records": [*map(row_of, entries)]}
    return filled("view.html", data, title=title)


def filled(name: str, data: Mapping[str, Any], *, title: str, connects: str = "'none'") -> str:
    """A template of this folder as a page.

    Args:
        name: of the template.
        data: what its script reads, JSON-ready.
        title: of the page.
        connects: where its script may send requests, as the policy says it.
    """
    text = json.dumps({"title": title, **data}, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    template = _file(name)
    for place, part in _PARTS.items():
        template = template.replace(place, _file(part))
    policy = "; ".join(
        ["default-src 'none'", "base-uri 'none'", "form-action 'none'"]
        + ([] if connects == "'none'" else [f"connect-src {connects}"])
        + [f"{kind}-src '{_hash(template, kind)}'" for kind in ("script", "style")]
    )
    before, after = template.replace(_PLACE_OF_POLICY, policy).split(_PLACE_OF_DATA)
    return before.replace(_PLACE_OF_TITLE, _escaped(title)) + text.replace("<", "\\u003c") + after


def _file(name: str) -> str:
    return files("finepref.hosts").joinpath(name).read_text(encoding="utf-8")


def _hash(template: str, kind: str) -> str:
    """The hash of the page's script or style, as its policy has it."""
    (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", template, re.DOTALL)
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def row_of(entry: Entry) -> dict[str, Any]:
    """An entry as the script of a page reads it."""
    row: dict[str, Any] = {"id": entry.id, "at": entry.place, "turns": [*map(list, entry.prompt)]}
    row["responses"] = [*map(_response, entry.responses)]
    if entry.errors:
        row["errors"] = list(entry.errors)
    if entry.notes:
        row["notes"] = list(entry.notes)
    if entry.problems:
        row["problems"] = [[each.code, each.field, each.message] for each in entry.problems]
    return row


def _response(response: Response) -> dict[str, Any]:
    """A response; its text is there once, with the lengths of its pieces in UTF-16 units, as JavaScript counts."""
    row: dict[str, Any] = {"name": response.name, "sign": response.sign, "unit": response.unit}
    if response.about:
        row["about"] = response.about
    row["text"] = "".join(response.texts)
    row["sizes"] = [
        len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2 for text in response.texts
    ]
    row["values"] = {name: _numbers(values) for name, values in response.values.items()}
    return row


def _numbers(values: Sequence[float]) -> Any:
    """Values with few digits, null for NaN; one number if all are equal.

    As float32, in which scores are compared in training, they are what they were.
    """
    short = [None if math.isnan(value) else _short(value) for value in values]
    return short[0] if short and short[0] is not None and {*short} == {short[0]} else short


def _short(value: float) -> float | int:
    rounded = round(value, DIGITS)
    if array("f", [rounded]) != array("f", [value]):
        rounded = float(f"{value:.9g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 2**31 else rounded


def values_in(entries: Iterable[Entry]) -> Mapping[str, int]:
    """How many entries have values of each name."""
    found: dict[str, int] = {}
    for entry in entries:
        for name in {name for response in entry.responses for name in response.values}:
            found[name] = found.get(name, 0) + 1
    return found
