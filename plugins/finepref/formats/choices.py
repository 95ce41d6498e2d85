"""Multiple-choice questions: their letters, their text, and what reads their options and answer from a row.

    text((question), ("Paris", "Lyon"))   "What is the capital of France?\\nA. Paris\\nB. Lyon"

Options are lettered A, B, C, ... in their order, whatever labels the source has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from finepref.formats.row import RowReader, is_text, kind_of, shown

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FEWEST = 2
"""A question has as many options or more, and at most as many as there are letters."""


class Options(NamedTuple):
    """The options of a question in order, their labels in the source, and the column that they are in."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    place: str


def text(question: str, options: Sequence[str]) -> str:
    """A question with its options as it is asked: "A. ..." in a line each."""
    return "\n".join([question, *(f"{letter}. {option}" for letter, option in lettered(options).items())])


def lettered(options: Sequence[str]) -> dict[str, str]:
    """Letter -> option."""
    return dict(zip(LETTERS, options, strict=False))


def normal(option: str) -> str:
    """An option without what does not make it another one: case and white space."""
    return " ".join(option.casefold().split())


def read_options(reader: RowReader, value: object, place: str, labels: object = None) -> Options:
    """The options in a list, or in an object {label: option}; without them, with problems noted.

    Args:
        reader: of the row.
        value: the list or the object.
        place: its name, for the problems.
        labels: a list with the labels of a list's options, where the source has one; else they are A, B, C, ...
    """
    before = len(reader.problems)
    if isinstance(value, Mapping):
        members = reader.mapping(value, place)
        names: Sequence[object] = [*members]
        texts = [reader.text(each, f"{place}.{name:.80}") for name, each in members.items()]
    else:
        items = reader.items(value, place)
        names = [*LETTERS[: len(items)]] if labels is None else reader.items(labels, f"{place} labels")
        texts = reader.texts(items, place)
    if len(reader.problems) > before:
        return Options((), (), place)
    found = [_label(name) for name in names]
    if not FEWEST <= len(texts) <= len(LETTERS):
        reader.note(place, "FP280", f"a question has {FEWEST} to {len(LETTERS)} options, this one {len(texts)}")
    elif len(found) != len(texts):
        reader.note(place, "FP282", f"{len(texts)} options, {len(found)} labels")
    elif len({each.upper() for each in found}) < len(found) or "" in found:
        reader.note(place, "FP282", f"every option needs a label of its own, these are {', '.join(found)[:80]!a}")
    else:
        first: dict[str, int] = {}
        for i, option in enumerate(texts):
            if (j := first.setdefault(normal(option), i)) != i:
                reader.note(place, "FP280", f"the options {found[j]!a} and {found[i]!a} are equal")
    if len(reader.problems) > before:
        return Options((), (), place)
    return Options(tuple(texts), tuple(found), place)


def _label(value: object) -> str:
    """A label as a text, "" if it is none: a text, or a number that is not large."""
    if type(value) is int and abs(value) < 1000:
        return str(value)
    return value.strip() if type(value) is str else ""


def read_answer(reader: RowReader, value: object, place: str, options: Options, *, from_zero: bool = False) -> str:
    """The letter of the right option; "" if the row gives none (null, or an empty text).

    Args:
        reader: of the row.
        value: the label of an option, or its text. If both name an option, they must name the same one.
        place: the column of the answer, for the problems.
        options: of the question.
        from_zero: a number is not a label but the place of the option, from 0, as in MMLU.
    """
    if value is None or value == "":
        return ""
    given = value
    if type(value) is int and not from_zero:
        value = _label(value) or "-"
    found: set[int] = set()
    if type(value) is int:
        found |= {value} & {*range(len(options.texts))}
    elif type(value) is str:
        wanted = value.strip()
        if from_zero and wanted.isdecimal():
            found |= {int(wanted)} & {*range(len(options.texts))}
        label = wanted.removeprefix("(").removesuffix(".").removesuffix(")").upper()
        found |= {i for i, each in enumerate(options.labels) if each.upper() == label}
        found |= {i for i, each in enumerate(options.texts) if normal(each) == normal(wanted)}
    else:
        reader.note(place, "FP011", f"expected the label of an option, got {kind_of(value)}")
        return ""
    if len(found) != 1 and options.texts:
        which = ascii(", ".join(options.labels))[1:-1]
        told = "names none of the options" if not found else "is the label of one option and the text of another"
        reader.note(place, "FP281", f"{shown(given)} {told} ({which}); write the label of the right one")
    return LETTERS[found.pop()] if len(found) == 1 else ""


def options_of(row: Mapping[str, object]) -> dict[str, str] | None:
    """The options in the `options` of a row that a step has written, letter -> text; None if it has none."""
    found = row.get("options")
    if not isinstance(found, Mapping) or len(found) < FEWEST or not all(map(is_text, found.values())):
        return None
    return {str(letter): str(option) for letter, option in found.items()}
