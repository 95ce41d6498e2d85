"""APO's queries, samples and golden answers (Linear95/APO, 4282775), joined by query_id.

    queries  {query_id, query}                            or ours: {id?, prompt or messages}
    golden   {query_id, query, golden}                    or ours: {id?, prompt or messages, chosen}
    samples  {query_id, query, sample_0, sample_1, ...}

The query of our dialogue is the text of its only turn, or its HH transcript ("\\n\\nHuman: ...\\n\\nAssistant:").
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from finepref.formats.bad_rows import BadRows
from finepref.formats.check import Checked
from finepref.formats.jsonl import RawRow, read_rows
from finepref.formats.problems import BadData, Problem
from finepref.formats.records import Prompt, Ranked, content_id, parse
from finepref.formats.released import dialogue, query_id, transcript
from finepref.formats.row import RowReader

_SAMPLE = re.compile(r"sample_(\d+)")
_NEXT_TURN = re.compile(r"\nHuman(:|\Z)")


class ApoItem(NamedTuple):
    """A row of an APO file: `texts` is {"golden": text}, or {sample name: text} in order; `raw` is its bytes."""

    line: int
    query: str
    texts: dict[str, str]
    raw: bytes = b""

    @property
    def prompt(self) -> Prompt:
        """The query as turns."""
        return dialogue(self.query, [])[0]


def read_items(
    path: str | os.PathLike[str],
    kind: str,
    *,
    bad_rows: BadRows | None = None,
    check: Callable[[str, ApoItem], list[Problem]] = lambda key, item: [],
) -> dict[str, ApoItem]:
    """The good rows of a file by query_id.

    Args:
        path: the file.
        kind: "query", "golden" or "sample"; only samples may be empty.
        bad_rows: collects the other rows and decides about them; None = each is an error.
        check: gives further problems of an item, from its query_id and the item.

    Raises:
        BadData: there are bad rows and `bad_rows` does not accept them, or the file has no row.
    """
    name, bad = os.fspath(path), BadRows() if bad_rows is None else bad_rows
    items: dict[str, ApoItem] = {}

    def rows() -> Iterator[Checked]:
        for raw in read_rows(path):
            parsed = _apo_item(raw, name, kind, empty=kind == "sample")
            if isinstance(parsed, list):
                yield Checked(raw, (), parsed)
                continue
            key, item = parsed
            problems = check(key, item) if key not in items else []
            if key in items:
                message = f"{key!a} is the query_id of line {items[key].line} too"
                problems.append(Problem(name, raw.line, "query_id", "FP060", message))
            elif not problems:
                items[key] = item
            yield Checked(raw, (), problems)

    before = bad.read
    deque(bad.good(name, rows()), maxlen=0)
    if bad.read == before and not any(problem.file == name for problem in bad.problems):
        bad.problems.append(Problem(name, 0, "", "FP002", "there is no row"))
    bad.settle()
    return items


def cut_at_next_turn(text: str) -> str:
    """Cut a response at "\\nHuman:" (or a final "\\nHuman"), where the model continued with the next turn."""
    return _NEXT_TURN.split(text, maxsplit=1)[0]


def read_apo_samples(
    samples: str | os.PathLike[str], golden: str | os.PathLike[str], *, cut: bool = True
) -> Iterator[Checked]:
    """Golden answers above samples (APO): one ranked record of kind "apo" per sample, scores 1 and 0.

    Args:
        samples: rows {query_id, query, sample_0, sample_1, ...}.
        golden: rows {query_id, query, golden}; held in memory.
        cut: cut responses at "\\nHuman:", where the model continued with the next turn.

    Yields:
        Each row of `samples` with its records or problems (one bad sample rejects the row); then problems of `golden`.
    """
    golden_name = os.fspath(golden)
    answers: dict[str, ApoItem] = {}
    bad = BadRows(skip=True, max_bad=1.0)
    with suppress(BadData):  # of the file as a whole; all problems are in `bad`
        answers = read_items(golden, "golden", bad_rows=bad)
    of_golden, unused = bad.problems, dict(answers)
    for raw in read_rows(samples):
        item = _apo_item(raw, os.fspath(samples), "sample", empty=False)
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


def check_apo_samples(samples: str | os.PathLike[str]) -> Iterator[Checked]:
    """Each row of a file of samples with its problems, without golden answers and so without records."""
    lines: dict[str, int] = {}
    for raw in read_rows(samples):
        item = _apo_item(raw, os.fspath(samples), "sample", empty=False)
        if isinstance(item, list):
            yield Checked(raw, (), item)
            continue
        first = lines.setdefault(item[0], raw.line)
        text = f"{item[0]!a} is the query_id of line {first} too"
        repeated = [Problem(os.fspath(samples), raw.line, "query_id", "FP060", text)] if first != raw.line else []
        yield Checked(raw, (), repeated)


def _apo_item(raw: RawRow, file: str, kind: str, *, empty: bool) -> tuple[str, ApoItem] | list[Problem]:
    if raw.value is None:
        return raw.problems
    reader = RowReader(raw.value, columns={}, file=file, line=raw.line, nulls_absent=False)
    if kind != "sample" and "query" not in raw.value and {"prompt", "messages"} & raw.value.keys():
        return _own_item(reader, raw, kind)
    key = query_id(raw.value.get("query_id"))
    if type(key) is not str or not key:
        reader.note("query_id", "FP010", "expected a string or an integer")
    query = reader.required_text("query")
    fields = {"query": re.compile(r"(?!)"), "golden": re.compile("golden"), "sample": _SAMPLE}[kind]
    texts = {name: value for name, value in raw.value.items() if fields.fullmatch(name)}
    if not texts and kind != "query":
        reader.note("golden" if kind == "golden" else "sample_0", "FP010", "the field is missing")
    for name, value in texts.items():
        if not empty or type(value) is not str or value.strip():
            reader.text(value, name)
    if reader.problems:
        return reader.problems
    in_order = sorted(texts, key=lambda name: int(name.removeprefix("sample_")) if kind == "sample" else 0)
    return str(key), ApoItem(raw.line, query, {name: str(texts[name]) for name in in_order}, raw.raw)


def _own_item(reader: RowReader, raw: RawRow, kind: str) -> tuple[str, ApoItem] | list[Problem]:
    """A row {id?, prompt or messages} in our layout; golden answers also have `chosen`."""
    given, prompt = reader.id(), reader.prompt()
    texts = {"golden": reader.required_text("chosen")} if kind == "golden" else {}
    query = "" if reader.problems else transcript(prompt)
    if query is None:
        reader.note(
            "messages", "FP086", "a system turn, tools, a turn with white space around it or with a mark of HH's turns"
        )
    if reader.problems or query is None:
        return reader.problems
    return given or content_id(prompt), ApoItem(raw.line, query, texts, raw.raw)


def _golden_above_samples(
    key: str, sample: ApoItem, golden: ApoItem | None, file: str, cut: bool
) -> tuple[list[Ranked], list[Problem]]:
    if golden is None:
        return [], [Problem(file, sample.line, "query_id", "FP067", f"{key!a} has no golden answer")]
    if golden.query != sample.query:
        message = f"the query differs from that of the golden answer in line {golden.line}"
        return [], [Problem(file, sample.line, "query", "FP067", message)]
    records, problems = [], []
    for name in sample.texts:
        parsed = golden_above_sample(key, sample, golden, name, file=file, cut=cut)
        if isinstance(parsed, Ranked):
            records.append(parsed)
        else:
            problems += parsed
    return records, problems


def golden_above_sample(
    key: str, sample: ApoItem, golden: ApoItem, name: str, *, file: str, cut: bool
) -> Ranked | list[Problem]:
    """The record of one sample, such as "sample_0", or its problems."""
    texts = [golden.texts["golden"], sample.texts[name]]
    prompt, responses = dialogue(sample.query, [cut_at_next_turn(text) if cut else text for text in texts])
    row = {"id": f"{key}:{name}", "messages": [turn._asdict() for turn in prompt], "kind": "apo"}
    parsed = parse(row | {"responses": responses, "scores": [1, 0]}, "ranked", file=file, line=sample.line)
    if isinstance(parsed, Ranked):
        return parsed
    assert isinstance(parsed, list)
    return [Problem(p.file, p.line, name, p.code, p.message) for p in parsed]
