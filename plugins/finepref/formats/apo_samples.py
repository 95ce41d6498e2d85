"""APO's samples and golden answers (Linear95/APO, 4282775): two files, joined by query_id into ranked records."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from finepref.formats.check import Checked
from finepref.formats.jsonl import RawRow, read_rows
from finepref.formats.problems import Problem
from finepref.formats.records import Ranked, parse
from finepref.formats.released import dialogue, query_id
from finepref.formats.row import RowReader

_SAMPLE = re.compile(r"sample_(\d+)")


class ApoItem(NamedTuple):
    """A row of an APO samples or golden file."""

    line: int
    query: str
    texts: dict[str, str]


def read_apo_samples(
    samples: str | os.PathLike[str], golden: str | os.PathLike[str], *, cut: bool = True
) -> Iterator[Checked]:
    """Golden answers above samples (APO): one ranked record of kind "apo" per sample, scores 1 and 0.

    Args:
        samples: rows {query_id, query, sample_0, sample_1, ...}.
        golden: rows {query_id, query, golden}; held in memory.
        cut: drop what follows "\\nHuman:" in a response, where a model went on to write the next turn.

    Yields:
        Each row of `samples` with its records or problems (one bad sample rejects the row); then problems of `golden`.
    """
    answers: dict[str, ApoItem] = {}
    golden_name = os.fspath(golden)
    of_golden: list[Problem] = []
    for raw in read_rows(golden):
        item = _apo_item(raw, golden_name, re.compile("golden"))
        if isinstance(item, list):
            of_golden += item
        elif answers.setdefault(item[0], item[1]) is not item[1]:
            message = f"{item[0]!a} is the query_id of line {answers[item[0]].line} too"
            of_golden.append(Problem(golden_name, raw.line, "query_id", "FP060", message))
    unused = dict(answers)
    for raw in read_rows(samples):
        item = _apo_item(raw, os.fspath(samples), _SAMPLE)
        if isinstance(item, list):
            yield Checked(raw, (), item)
            continue
        key, sample = item
        unused.pop(key, None)
        records, problems = _golden_above_samples(key, sample, answers.get(key), os.fspath(samples), cut)
        yield Checked(raw, () if problems else records, problems)
    of_golden += [
        Problem(golden_name, item.line, "query_id", "FP067", f"{key!a} has no samples") for key, item in unused.items()
    ]
    for problem in of_golden:
        yield Checked(RawRow(0, b"", None, [problem]), (), [problem])


def _apo_item(raw: RawRow, file: str, fields: re.Pattern[str]) -> tuple[str, ApoItem] | list[Problem]:
    if raw.value is None:
        return raw.problems
    reader = RowReader(raw.value, columns={}, file=file, line=raw.line, nulls_absent=False)
    key = query_id(raw.value.get("query_id"))
    if type(key) is not str or not key:
        reader.note("query_id", "FP010", "expected a string or an integer")
    query = reader.required_text("query")
    texts = {name: value for name, value in raw.value.items() if fields.fullmatch(name)}
    if not texts:
        reader.note("golden" if fields.pattern == "golden" else "sample_0", "FP010", "the field is missing")
    for name, value in texts.items():
        reader.text(value, name)
    if reader.problems:
        return reader.problems
    return str(key), ApoItem(raw.line, query, {name: str(text) for name, text in texts.items()})


def _golden_above_samples(
    key: str, sample: ApoItem, golden: ApoItem | None, file: str, cut: bool
) -> tuple[list[Ranked], list[Problem]]:
    if golden is None:
        return [], [Problem(file, sample.line, "query_id", "FP067", f"{key!a} has no golden answer")]
    if golden.query != sample.query:
        message = f"the query differs from that of the golden answer in line {golden.line}"
        return [], [Problem(file, sample.line, "query", "FP067", message)]
    records, problems = [], []
    for name, text in sorted(sample.texts.items(), key=lambda item: int(item[0].removeprefix("sample_"))):
        pair = [golden.texts["golden"], text]
        prompt, responses = dialogue(sample.query, [part.split("\nHuman:")[0] if cut else part for part in pair])
        row = {"id": f"{key}:{name}", "messages": [turn._asdict() for turn in prompt], "kind": "apo"}
        parsed = parse(row | {"responses": responses, "scores": [1, 0]}, "ranked", file=file, line=sample.line)
        if isinstance(parsed, Ranked):
            records.append(parsed)
        else:
            assert isinstance(parsed, list)
            problems += [Problem(p.file, p.line, name, p.code, p.message) for p in parsed]
    return records, problems
