"""What `finepref view` and `finepref tokens` look at: records of any layout, scores.parquet, files of bad rows."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from finepref.formats import records, scores
from finepref.formats.jsonl import RawRow
from finepref.formats.problems import CODES, BadData, Problem
from finepref.hosts.reading import Sourced
from finepref.hosts.token_view import CHARACTERS, SIGNS, TOKENS, Entry, Response, of_bad_row, of_data, token_texts
from finepref.methods.pair_rows import SIDES
from finepref.synth.data_sources import files
from finepref.synth.data_sources.inputs import Input, file_check, find_inputs, read_file
from finepref.synth.sepo.score import DIGITS

REJECTED, SCORES = "rejected", "scores"


def kind_of(path: Path) -> str:
    """What a file is: `REJECTED`, bad rows as a run or a command has written them; `SCORES`, the exact
    log-probabilities of `finepref sepo score`; "" for all others, which hold records."""
    if not path.is_file():
        return ""
    first = next(islice(files.rows_of(path), 1), None)
    value = first.value if first is not None and isinstance(first.value, Mapping) else {}
    if "problems" in value and ("row" in value or "row_base64" in value):
        return REJECTED
    return SCORES if {f"{side}_tokens" for side in SIDES} <= value.keys() else ""


def sources_of(inputs: Iterable[Input], formats: Collection[str], wanted: str) -> Iterator[Sourced | Entry]:
    """The records of files; a bad row is an entry with its problems.

    Args:
        inputs: the files.
        formats: those that are wanted.
        wanted: who wants them, for messages.

    Raises:
        BadData: FP201, a record of another format; or a file that cannot be read.
    """
    for source, _ in _read(inputs):
        if isinstance(source, Sourced):
            formatting = next(each for each, kind in records.FORMATS.items() if type(source.record) is kind)
            if formatting not in formats:
                text = f"{wanted} trains on {' or '.join(formats)}, this file is {formatting}"
                raise BadData([Problem(source.file, 0, "formatting", "FP201", text)])
        yield source


def entries_of_data(inputs: Iterable[Input]) -> Iterator[Entry]:
    """The records of files as they are, with the KL of their tokens if they have it; and their bad rows.

    Raises:
        BadData: a file cannot be read.
    """
    for source, value in _read(inputs):
        yield source if isinstance(source, Entry) else with_values(of_data(source), _kl_of(source.record, value))


def _read(inputs: Iterable[Input]) -> Iterator[tuple[Sourced | Entry, object]]:
    """Records and bad rows, with the row as it was read."""
    for file in inputs:
        name, check = str(file.path), file_check(file, repeats=True)
        for row in check.walk(read_file(file)):
            if row.problems and not row.raw.line:
                raise BadData(row.problems)
            if row.problems:
                yield _bad(name, row.raw, row.problems), None
            for number, record in enumerate(() if row.problems else row.records):
                yield Sourced(name, row.raw.line, record, int(number == 0)), row.raw.value


def _bad(file: str, raw: RawRow, problems: Sequence[Problem]) -> Entry:
    return of_bad_row(file, raw.line, raw.raw.decode(errors="replace").rstrip("\n"), problems, raw.value)


def _kl_of(record: records.Record, row: object) -> dict[str, dict[str, list[float]]]:
    """The KL of each scored token, from the columns chosen_kl and rejected_kl of a row, if they fit."""
    if not isinstance(record, records.ScoredPair) or not isinstance(row, Mapping):
        return {}
    return {side: {"kl": row[f"{side}_kl"]} for side in SIDES if _numbers(row.get(f"{side}_kl"))}


def _numbers(values: object) -> bool:
    return isinstance(values, list) and all(type(value) in (int, float) for value in values)


def with_values(entry: Entry, more: Mapping[str, Mapping[str, Sequence[float]]]) -> Entry:
    """An entry with more values of its tokens, by side and name; a list of another length is told, and left out."""
    responses, notes = [], [*entry.notes]
    for response in entry.responses:
        values = dict(response.values)
        for name, given in more.get(response.name, {}).items():
            known = max((len(each) for each in values.values()), default=len(response.texts))
            if len(given) == known:
                values[name] = [*given]
            else:
                notes.append(f"{response.name}_{name} has {len(given)} numbers for {known} tokens: not shown")
        responses.append(response._replace(values=values))
    return entry._replace(responses=responses, notes=notes)


def rejected_rows(path: Path) -> Iterator[Entry]:
    """The bad rows in a file that a run or a command has written."""
    for raw in files.rows_of(path):
        row = raw.value
        if not isinstance(row, dict) or not isinstance(row.get("problems"), list):
            problem = Problem(str(path), raw.line, "problems", "FP312", "expected a row of a file of rejected rows")
            raise BadData([*raw.problems] or [problem])
        text = str(row.get("row", ""))
        if "row_base64" in row:  # of bytes that are not UTF-8
            text = base64.b64decode(str(row["row_base64"])).decode(errors="replace")
        file, line = str(row.get("file", path)), row.get("line", 0)
        problems = [_problem(file, line, each) for each in row["problems"]]
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        yield of_bad_row(file, line, text, problems, value)


def _problem(file: str, line: Any, given: Any) -> Problem:
    given = given if isinstance(given, Mapping) else {"message": str(given)}
    code, message = str(given.get("code", "")), str(given.get("message", ""))
    if code not in CODES:
        code, message = "FP312", f"{code}, a code that is not installed here: {message}"
    return Problem(file, line if isinstance(line, int) else 0, str(given.get("field", "")), code, message)


def scored_rows(path: Path, texts: Path | None, tokenizer: Any = None) -> Iterator[Entry]:
    """The rows of the parquet file of `finepref sepo score`, with the reward and both log-probabilities of each token.

    Args:
        path: the file, which has token ids and no texts.
        texts: the JSON Lines file of the same job, for the texts.
        tokenizer: the models', in its place: texts are then those of the tokens, and prompts are not known.

    Raises:
        BadData: neither is given (FP310); the tokenizer is another one (FP212); a row is not in the file of texts, or
            has another number of tokens there (FP311).
    """
    if texts is None and tokenizer is None:
        text = f"it has token ids: give --model, or put {path.with_suffix('.jsonl').name} beside it"
        raise BadData([Problem(str(path), 0, "", "FP310", text)])
    known = {} if texts is None else _by_id(texts)
    own = "" if tokenizer is None else scores.fingerprint(tokenizer.backend_tokenizer.to_str())
    for raw in files.rows_of(path):
        row = raw.value
        if not isinstance(row, dict):
            raise BadData([*raw.problems])
        if tokenizer is not None and row.get("tokenizer") != own:
            text = f"the file's is {row.get('tokenizer')!r}, the model's {own!r}"
            raise BadData([Problem(str(path), raw.line, "tokenizer", "FP212", text)])
        more = {side: _columns(row, side) for side in SIDES}
        if texts is None:
            made = [
                Response(side, "", SIGNS[side], TOKENS, token_texts(tokenizer, row[f"{side}_tokens"]), more[side])
                for side in SIDES
            ]
            yield Entry(row["id"], f"{path}:{raw.line}", [], made)
            continue
        source = known.get(row["id"])
        entry = None if source is None else of_data(source)
        fits = entry is not None and all(
            response.unit == CHARACTERS or len(next(iter(response.values.values()))) >= len(row[f"{side}_tokens"])
            for side, response in zip(SIDES, entry.responses, strict=True)
        )
        if entry is None or not fits:
            text = f"{texts} has no row of this id with as many tokens: it is of another job"
            raise BadData([Problem(str(path), raw.line, "id", "FP311", text, row["id"])])
        yield with_values(entry, {side: _padded(more[side], response) for side, response in _sides(entry)})


def _sides(entry: Entry) -> Iterable[tuple[str, Response]]:
    return zip(SIDES, entry.responses, strict=True)


def _padded(values: Mapping[str, list[float]], response: Response) -> dict[str, list[float]]:
    """Values of the tokens as those of the pieces: what is after the last token has none."""
    return {name: [*each, *[float("nan")] * (len(response.texts) - len(each))] for name, each in values.items()}


def _columns(row: Mapping[str, Any], side: str) -> dict[str, list[float]]:
    """The numbers of each token in a row of the parquet file, by name; the reward is that of the score file."""
    prefix = f"{side}_"
    named = {name.removeprefix(prefix): each for name, each in row.items() if name.startswith(prefix)}
    tokens = named.pop("tokens")
    found = {name: list(each) for name, each in named.items() if _numbers(each) and len(each) == len(tokens)}
    if {"oracle", "reference"} <= found.keys():
        pairs = zip(found["oracle"], found["reference"], strict=True)
        found = {"reward": [round(a - b, DIGITS) for a, b in pairs], **found}
    return found


def _by_id(path: Path) -> dict[str, Sourced]:
    inputs = find_inputs(str(path), "scored_pair", Path(), {}, None)
    return {each.record.id: each for each, _ in _read(inputs) if isinstance(each, Sourced)}
