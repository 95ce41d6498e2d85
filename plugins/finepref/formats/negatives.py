"""SeaPO negatives: the number behind every draw (`finepref.methods.draws`), and feedback rows joined into records."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from finepref.formats.problems import Problem
from finepref.formats.records import Feedback, Negatives, Prompt, content_id

EQUALS_DESIRABLE = "the negative equals the desirable response"

ERROR_TYPES = ("correctness", "logic", "hallucination")
"""The error types of the paper. A record may use any other name; a stage or `validate --error-types` may restrict."""


def pick(n: int, *, seed: int, epoch: int, record_id: str) -> int:
    """A number in [0, n) that depends on its arguments only: 8 bytes of blake2b of "seed:epoch:id", modulo n."""
    digest = hashlib.blake2b(f"{seed}:{epoch}:{record_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % n


Placed = tuple[str, int, Feedback]
"""A row with its file and line."""

LACKING = ("FP062", "FP063", "FP066")
"""What a prompt lacks whose rows can be trained on one by one, but not drawn from (see `join_feedback`)."""


class Joined(NamedTuple):
    """A record with the rows that it was made from: the place of the first, their number, and the places of all.

    Where a prompt has several records, each row is counted to one of them, so that the numbers add up.
    """

    file: str
    line: int
    record: Negatives
    rows: int
    places: tuple[tuple[str, int], ...]


def group_feedback(rows: Iterable[Placed]) -> tuple[list[Negatives], list[Problem]]:
    """The records of `join_feedback`, without their places."""
    joined, problems = join_feedback(rows)
    return [each.record for each in joined], problems


def join_feedback(rows: Iterable[Placed]) -> tuple[list[Joined], list[Problem]]:
    """Feedback rows (file, line, record) of any number of files, joined by prompt, in order of first appearance.

    The desirable response of a prompt may appear once per file, as in the SeaPO release, which has one file per error
    type. A prompt may have several desirable responses, and several undesirable ones of a type: it then has several
    records, each answer with its own negatives where the rows tell which these are (see `_owners`), else dealt out in
    turn, so that each text is in a record. The id of a prompt's only record is the content id of the prompt; of
    several, that of prompt and texts. Rows of a prompt with a problem give no record; every such prompt is named by a
    Problem at its first row or at the row that contradicts an earlier one.
    """
    groups: dict[Prompt, list[Placed]] = {}
    for file, line, row in rows:
        groups.setdefault(row.prompt, []).append((file, line, row))
    joined: list[Joined] = []
    problems: list[Problem] = []
    for prompt, group in groups.items():
        found = _incomplete(group) or _contradictions(group)
        problems += found
        if not found:
            joined += _counted(_join(prompt, group), group)
    return joined, problems


def _counted(records: Sequence[Negatives], group: Sequence[Placed]) -> Iterator[Joined]:
    """The records of a prompt, each row counted to one that has its text; each record has a row of its own."""
    texts = [{("", record.chosen), *record.negatives.items()} for record in records]
    shared = Counter(text for each in texts for text in each)
    left: dict[tuple[str, str], list[int]] = {}
    for number, (_, _, row) in enumerate(group):
        left.setdefault(("" if row.label else row.error_type or "", row.response), []).append(number)
    own: list[list[int]] = []
    for each in texts:  # the row whose text the fewest records have
        rarest = min((text for text in each if left[text]), key=lambda text: (shared[text], text), default=None)
        own.append([left[rarest].pop(0)] if rarest else [])
    for text, numbers in left.items():
        own[next(i for i, each in enumerate(texts) if text in each)] += numbers
    for record, numbers in zip(records, own, strict=True):
        places = tuple(group[number][:2] for number in sorted(numbers))
        file, line = places[0] if places else group[0][:2]
        yield Joined(file, line, record, len(places), places)


def _incomplete(group: Sequence[Placed]) -> list[Problem]:
    """What a prompt's rows lack."""
    file, line, _ = group[0]
    problems = [
        Problem(
            each_file,
            each_line,
            "error_type",
            "FP066",
            "an undesirable response needs an error type, in its row or in the dataset entry",
        )
        for each_file, each_line, row in group
        if not row.label and row.error_type is None
    ]
    if not any(row.label for _, _, row in group):
        problems.append(Problem(file, line, "label", "FP062", "the prompt has no desirable response"))
    if all(row.label for _, _, row in group):
        problems.append(Problem(file, line, "label", "FP063", "the prompt has no undesirable response"))
    return problems


def labelled_both(group: Sequence[Placed]) -> list[Problem]:
    """FP032 for undesirable responses that equal a desirable one of the prompt, whatever their error types."""
    good = {row.response.strip() for _, _, row in group if row.label}
    return [
        Problem(file, line, "response", "FP032", EQUALS_DESIRABLE)
        for file, line, row in group
        if not row.label and row.response.strip() in good
    ]


def _contradictions(group: Sequence[Placed]) -> list[Problem]:
    """Undesirable responses that equal a desirable one, or one of another type, of the prompt."""
    good = {row.response.strip() for _, _, row in group if row.label}
    types: dict[str, str] = {}
    problems = []
    for file, line, row in group:
        if row.label or row.error_type is None:
            continue
        text = row.response.strip()
        other = types.setdefault(text, row.error_type)
        if text in good:
            problems.append(Problem(file, line, "response", "FP032", EQUALS_DESIRABLE))
        elif other != row.error_type:
            problems.append(Problem(file, line, "response", "FP033", f"the negative equals that of {other}"))
    return problems


def _join(prompt: Prompt, group: Sequence[Placed]) -> list[Negatives]:
    """The records of a prompt whose rows are complete."""
    owners = _owners(group)
    dealt: list[tuple[str, dict[str, str]]] = []
    if owners is None:
        goods = list(dict.fromkeys(row.response for _, _, row in group if row.label))
        texts = _by_type(row for _, _, row in group if not row.label)
        count = max(len(goods), *map(len, texts.values()))
        dealt = [(goods[i % len(goods)], _each(texts, i)) for i in range(count)]
    else:
        for good, rows in owners.items():
            texts = _by_type(rows)
            dealt += [(good, _each(texts, i)) for i in range(max(map(len, texts.values())))]
    if len(dealt) == 1:
        return [Negatives(content_id(prompt), prompt, *dealt[0])]
    return [
        Negatives(content_id(prompt, good, *negatives.items()), prompt, good, negatives) for good, negatives in dealt
    ]


def _owners(group: Sequence[Placed]) -> dict[str, list[Feedback]] | None:
    """Desirable response -> its undesirable rows, as far as the rows tell it; None if they do not.

    They tell it by ids ("r7:chosen", "r7:logic", as `finepref convert` writes them), or by their order, if in each
    file every desirable response is followed by its undesirable ones, as the SeaPO release writes them.
    """
    if len({row.response for _, _, row in group if row.label}) == 1:
        good = next(row.response for _, _, row in group if row.label)
        return {good: [row for _, _, row in group if not row.label]}
    split = [(row, *row.id.rpartition(":")[::2]) for _, _, row in group]
    if all(part == ("chosen" if row.label else row.error_type) for row, _, part in split):
        by_id = {source: row.response for row, source, _ in split if row.label}
        pairs = [(by_id.get(source), row) for row, source, _ in split if not row.label]
    else:
        last: dict[str, str] = {}
        pairs = []
        for file, _, row in group:
            if row.label:
                last[file] = row.response
            else:
                pairs.append((last.get(file), row))
        if not _alternate(group):
            return None
    owned: dict[str, list[Feedback]] = {}
    for owner, row in pairs:
        if owner is None:
            return None
        owned.setdefault(owner, []).append(row)
    return owned if owned.keys() == {row.response for _, _, row in group if row.label} else None


def _alternate(group: Sequence[Placed]) -> bool:
    """Whether in each file a desirable row comes first, and an undesirable one follows each."""
    before: dict[str, bool] = {}
    for file, _, row in group:
        if row.label and before.get(file, False):
            return False
        if not row.label and file not in before:
            return False
        before[file] = row.label
    return not any(before.values())


def _by_type(rows: Iterable[Feedback]) -> dict[str, list[str]]:
    """Error type -> the different responses of that type, in order."""
    texts: dict[str, list[str]] = {}
    for row in rows:
        known = texts.setdefault(row.error_type or "", [])
        if row.response not in known:
            known.append(row.response)
    return dict(sorted(texts.items()))


def _each(texts: Mapping[str, Sequence[str]], number: int) -> dict[str, str]:
    """One response of each type, in turn."""
    return {name: each[number % len(each)] for name, each in texts.items()}
