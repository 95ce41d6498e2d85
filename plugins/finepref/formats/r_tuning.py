"""R-Tuning (shizhediao/R-Tuning) and ReverseGen: files of multiple-choice questions by subject."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping

from finepref.formats.checked_rows import Checked
from finepref.formats.choice_text import Asked, parse_choice
from finepref.formats.jsonl import RawRow, refusing_loads
from finepref.formats.problems import Problem
from finepref.formats.records import parse_with
from finepref.formats.row import RowReader, kind_of


def read_r_tuning(path: str | os.PathLike[str]) -> Iterator[Checked]:
    """R-Tuning's files, {subject: [[question, option, ..., letter], ...]}, and ReverseGen's, {subject: [text, ...]}.

    A text holds the question, its options and its answer line. Problems name the line and the item, such as
    `anatomy[3]`.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except OSError as error:
        yield _whole(Problem(name, 0, "", "FP001", error.strerror or str(error)))
        return
    except UnicodeDecodeError as error:
        yield _whole(Problem(name, 0, "", "FP003", f"byte {error.start + 1} of the file is not UTF-8"))
        return
    content = refusing_loads(text, name)
    if isinstance(content, Problem):
        yield _whole(content)
    elif not isinstance(content, Mapping):
        yield _whole(Problem(name, 0, "", "FP005", f"expected an object {{subject: [...]}}, got {kind_of(content)}"))
    elif not content:
        yield _whole(Problem(name, 0, "", "FP002", "the file has no subject"))
    else:
        for subject, number, line, raw, item in _items(text):
            place = subject if number is None else f"{subject}[{number}]"
            yield _one(name, line, raw.encode(errors="surrogatepass"), place, subject, item, whole=number is None)


def _items(text: str) -> Iterator[tuple[str, int | None, int, str, object]]:
    """(subject, place in its list, line, text, value) of each item of a valid file; place None: the subject has none.

    Positions are followed, because a decoded value does not tell its line.
    """
    decode = json.JSONDecoder().raw_decode
    line, counted = 1, 0

    def after_space(at: int) -> int:
        while text[at] in " \t\r\n":
            at += 1
        return at

    at = after_space(after_space(0) + 1)
    while text[at] != "}":
        subject, at = decode(text, at)
        at = after_space(after_space(at) + 1)
        is_list = text[at] == "["
        at = after_space(at + 1) if is_list else at
        number = 0
        while text[at] != "]" if is_list else not number:
            line, counted = line + text.count("\n", counted, at), at
            value, end = decode(text, at)
            yield subject, number if is_list else None, line, text[at:end], value
            number += 1
            at = after_space(end)
            if is_list and text[at] == ",":
                at = after_space(at + 1)
        at = after_space(at + is_list)
        if text[at] == ",":
            at = after_space(at + 1)


def _one(name: str, line: int, raw: bytes, place: str, subject: str, item: object, *, whole: bool) -> Checked:
    """An item as a question.

    Args:
        name, line, raw, place: of the item.
        subject: of the question.
        item: a list of texts, or a text.
        whole: the item is all that the subject has, which is no list.
    """

    def bad(code: str, text: str) -> Checked:
        problem = Problem(name, line, place if place.isprintable() else ascii(place)[1:-1], code, text)
        return Checked(RawRow(line, raw, None, [problem]), (), [problem])

    if whole:
        return bad("FP284", f"expected a list of questions, got {kind_of(item)}")
    last = 0
    if isinstance(item, str):
        found = parse_choice(item)
        if not isinstance(found, Asked):
            return bad("FP280", f"no multiple-choice question: {found}")
        row: dict[str, object] = {"question": found.question, "options": [*found.options], "answer": found.answer}
    elif isinstance(item, list):
        if len(item) < 4:
            return bad("FP280", f"expected [question, option, option, ..., letter], got {len(item)} items")
        last = len(item) - 1
        row = {"question": item[0], "options": item[1:-1], "answer": item[-1]}
    else:
        return bad("FP011", f"expected a list or a text, got {kind_of(item)}")
    columns = {"question": f"{place}[0]", "options": place, "answer": f"{place}[{last}]"} if last else {}
    row["subject"] = subject
    reader = RowReader(row, columns=columns, file=name, line=line, nulls_absent=False, values={**row})
    record = parse_with(reader, "choice", error_type=None, error_types=None)
    return Checked(RawRow(line, raw, None, reader.problems), () if record is None else (record,), reader.problems)


def _whole(problem: Problem) -> Checked:
    return Checked(RawRow(0, b"", None, [problem]), (), [problem])
