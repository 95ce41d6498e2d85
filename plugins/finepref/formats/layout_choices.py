"""What reads multiple-choice questions in the layouts of MMLU and ARC, see `finepref.formats.layout`."""

from __future__ import annotations

from collections.abc import Sequence

from finepref.formats.choices import LETTERS, Options, read_answer, read_options
from finepref.formats.layout import ABSENT, FAILED, Own, Taken, find
from finepref.formats.row import RowReader

_NO_OPTIONS = Options((), (), "")


def listed(reader: RowReader) -> Sequence[Own]:
    """MMLU: `choices` [text, ...], and `answer`, the place of the right one from 0, or its letter."""
    place, value = find(reader, "choices")
    options = _NO_OPTIONS if value is ABSENT else read_options(reader, value, place)
    return [_own(reader, "question", options, "answer", from_zero=True)]


def in_columns(reader: RowReader) -> Sequence[Own]:
    """MMLU as a table, C-Eval, CMMLU: an option in each of the columns A, B, ..., and `answer`, a letter."""
    texts = {}
    for letter in LETTERS:
        place, value = find(reader, letter)
        if value is ABSENT or (value is None and reader.nulls_absent):
            break
        texts[letter] = reader.text(value, place)
    options = read_options(reader, texts, "A") if all(texts.values()) else _NO_OPTIONS
    return [_own(reader, "question|Question", options, "answer|Answer|target")]


def by_labels(reader: RowReader) -> Sequence[Own]:
    """ARC, CommonsenseQA and OpenBookQA on the hub: `choices` {text: [...], label: [...]}, and `answerKey`."""
    place, value = find(reader, "choices")
    members = reader.mapping(value, place) if value is not ABSENT else {}
    return [_labelled(reader, "question|question_stem", place, members.get("text"), members.get("label"))]


def of_stem(reader: RowReader) -> Sequence[Own]:
    """ARC's own files: `question` {stem, choices: [{text, label}, ...]}, and `answerKey`."""
    place, value = find(reader, "question.choices")
    items = [
        reader.mapping(item, f"{place}[{i}]") for i, item in enumerate(reader.items(value, place)) if value is not None
    ]
    texts, labels = ([item.get(name) for item in items] for name in ("text", "label"))
    return [_labelled(reader, "question.stem", place, texts, labels)]


def _labelled(reader: RowReader, question: str, place: str, texts: object, labels: object) -> Own:
    options = _NO_OPTIONS
    if texts is None or labels is None:
        reader.note(place, "FP010", "the texts or the labels of the options are missing")
    else:
        options = read_options(reader, texts, place, labels)
    return _own(reader, question, options, "answerKey")


def _own(reader: RowReader, question: str, options: Options, answer: str, *, from_zero: bool = False) -> Own:
    """The fields of a question.

    Args:
        reader: of the row.
        question, answer: paths.
        options: as read; without texts if they could not be.
        from_zero: see `read_answer`.
    """
    where, value = find(reader, answer)
    letter = "" if value is ABSENT else read_answer(reader, value, where, options, from_zero=from_zero)
    own = {"id": find(reader, "id"), "question": find(reader, question), "subject": find(reader, "subject")}
    own["answer"] = Taken(where, letter) if options.texts else Taken(where, FAILED)
    if options.texts:
        own["options"] = Taken(options.place, [*options.texts])
    else:
        own["options"] = Taken("options" if not reader.problems else reader.problems[-1].field, FAILED)
        if not reader.problems:
            reader.missing("choices")
    return own
