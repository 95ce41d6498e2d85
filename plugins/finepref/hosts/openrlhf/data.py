"""Records for OpenRLHF: data sets by name or by file, all checked before a model loads, and tokenised.

The host would load files with `datasets`, silently drop rows that are too long, and tokenise prompt and response as
one text. Here every row is checked, and a row that cannot be used stops the run. Prompt and response are tokenised
separately, so that no token spans both, and the tokens are the same as on LLaMA-Factory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from finepref.formats import dataset_info, record_places, records
from finepref.formats.check import FileCheck, digest, parse_rows
from finepref.formats.jsonl import read_rows
from finepref.formats.problems import BadData, Problem
from finepref.hosts.receipt import DatasetEntry
from finepref.hosts.run import Source
from finepref.methods.pair_rows import (
    CHAT_TEMPLATE,
    IGNORED,
    SIDES,
    facts,
    offsets_in,
    problem_of_record,
    selects,
    weights_and_scores,
)


class Sourced(NamedTuple):
    """A record, its file and line, and the number of rows that it was made from."""

    file: str
    line: int
    record: records.Record
    rows: int = 1

    def places(self, problems: Iterable[Problem]) -> list[Problem]:
        """Add the record's file and line to its problems."""
        return record_places.pinpoint(problems, [self[:3]])


def read(sources: Iterable[Source]) -> tuple[list[Sourced], list[DatasetEntry]]:
    """Read all records of some data sets. Returns them, and the receipt's entries of the data sets.

    Raises:
        BadData: all problems of all files.
    """
    found: list[Sourced] = []
    entries: list[DatasetEntry] = []
    problems: list[Problem] = []
    total = 0
    for source in sources:
        digests: dict[str, str] = {}
        count = 0
        for path in source.files:
            check = FileCheck(str(path), source.formatting, columns=source.columns)
            for row in check.walk(parse_rows(read_rows(path), _parser(path, source))):
                found += [Sourced(str(path), row.raw.line, record) for record in row.records]
            report = check.report()
            digests[path.name], count = digest(path), count + report.rows
            problems += report.problems
            total += report.total_problems
        entries.append(DatasetEntry(source.name, source.formatting, digests, count))
    if problems:
        raise BadData(problems, total)
    return found, entries


def _parser(path: Path, source: Source) -> Any:
    def parse_row(value: object, line: int) -> records.Record | list[Problem]:
        return records.parse(
            value,
            source.formatting,
            columns=source.columns,
            file=str(path),
            line=line,
            error_type=source.error_type,
        )

    return parse_row


def sources(names: str, arguments: Any, formats: tuple[str, ...]) -> list[Source]:
    """The data sets in a comma-separated list of names and files, such as `--data.dataset`.

    A file is JSON Lines or a JSON array in the format `--data.formatting`, with the columns of the host's
    `--data.prompt_key`, `--data.chosen_key` and `--data.rejected_key`. For a name, dataset_info.json has all of this.

    Raises:
        BadData: an unknown name, a format that the method does not train on, or a missing file.
    """
    found = []
    for name in (part.strip() for part in names.split(",")):
        if Path(name).suffix in (".json", ".jsonl") or os.sep in name:
            found.append(_file(name, arguments))
            continue
        folder, entry = dataset_info.find(name, arguments.dataset_dir)
        formatting = str(entry.get("formatting", "alpaca"))
        if formatting not in formats:
            text = f"{formatting} cannot be trained on here; use {' or '.join(formats)}"
            table = str(Path(folder, dataset_info.FILE_NAME))
            raise BadData([Problem(table, 0, f"{name}.formatting", "FP201", text)])
        paths = tuple(dataset_info.resolve(folder, entry))
        found.append(Source(name, formatting, paths, entry.get("columns", {}), entry.get("error_type")))
    return found


def _file(name: str, arguments: Any) -> Source:
    path = Path(name)
    if not path.is_file():
        raise BadData([Problem(name, 0, "", "FP075", "is not a file; a data set's name has no slash and no suffix")])
    keys = {"prompt": arguments.prompt_key, "chosen": arguments.chosen_key, "rejected": arguments.rejected_key}
    known = records.FIELDS[arguments.formatting]
    columns = {field: key for field, key in keys.items() if key not in (None, field) and field in known}
    return Source(path.name, arguments.formatting, (path,), columns)


class Encoder:
    """Tokenises prompts and responses, with or without the tokenizer's chat template.

    Without it (the host's default), a prompt is one user turn, inserted into `--data.input_template` if that is given,
    and the end token is added to the response.

    Args:
        tokenizer: a fast tokenizer.
        arguments: the host's `--data.*`.

    Raises:
        ValueError: the tokenizer is not fast, or the chat template is missing.
    """

    def __init__(self, tokenizer: Any, arguments: Any) -> None:
        self.tokenizer = tokenizer
        self.template = arguments.input_template
        self.chat = arguments.apply_chat_template
        self.longest = arguments.max_len
        if not tokenizer.is_fast:
            raise ValueError("the model has no fast tokenizer, which is needed for the character offsets of tokens")
        if arguments.tokenizer_chat_template:
            tokenizer.chat_template = arguments.tokenizer_chat_template
        if self.chat and not tokenizer.chat_template:
            raise ValueError("--data.apply_chat_template: the tokenizer has no chat template")

    @property
    def template_name(self) -> str:
        """What writes the prompts, as score files name it."""
        return CHAT_TEMPLATE if self.chat else "none"

    def prompt(self, record: records.Record, problems: list[Problem], *, whole: bool = True) -> tuple[str, list[int]]:
        """Text and token ids of a record's prompt. With `whole`, the prompt must leave room for a response (FP203)."""
        turns = [message._asdict() for message in record.prompt]
        if self.chat:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        elif len(turns) > 1:
            problems.append(problem_of_record(record, "prompt", "FP230", "give --data.apply_chat_template"))
            return "", []
        else:
            text = self.template.format(turns[0]["content"]) if self.template else turns[0]["content"]
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if whole and len(ids) >= self.longest:
            message = f"the prompt has {len(ids)} tokens, --data.max_len is {self.longest}"
            problems.append(problem_of_record(record, "prompt", "FP203", message))
        return text, ids

    def response(
        self, record: records.Record, field: str, text: str, before: str, problems: list[Problem]
    ) -> tuple[list[int], int, list[tuple[int, int]]]:
        """Tokenise a response with what ends it.

        Args:
            record: the record.
            field: the response's field, for messages.
            text: the response.
            before: the text of the prompt.
            problems: list to which FP231 is appended.

        Returns:
            The token ids, the index of the first token of `text` (-1 if the template changed the text), and the
            character range in `text` of each token from there on.
        """
        written = text + self.tokenizer.eos_token
        if self.chat:
            turns = [message._asdict() for message in record.prompt]
            turns.append({"role": "assistant", "content": text})
            both = self.tokenizer.apply_chat_template(turns, tokenize=False)
            if not both.startswith(before):
                message = "the chat template writes the earlier turns differently when a response follows"
                problems.append(problem_of_record(record, field, "FP231", message))
                return [], -1, []
            written = both[len(before) :]
        encoded = self.tokenizer(written, add_special_tokens=False, return_offsets_mapping=True)
        place = written.find(text)
        if place < 0:
            return encoded["input_ids"], -1, []
        offsets = offsets_in(text, encoded["offset_mapping"], before=place)
        first = next((i for i, (start, end) in enumerate(offsets) if start < end), 0)
        return encoded["input_ids"], first, offsets[first:]


def pair_rows(found: Iterable[Sourced], encoder: Encoder) -> Iterator[tuple[dict[str, Any], list[Problem]]]:
    """Tokenise pairs: each one as a row (see `finepref.methods.pair_rows`), with its problems.

    The rows also have {side}_input_ids. All lists are cut on the right, at --data.max_len.
    """
    for source in found:
        record, problems = source.record, []
        before, prompt = encoder.prompt(record, problems)
        row = facts(record, encoder.tokenizer, prompt, encoder.template_name)
        for side, text in zip(SIDES, (record.chosen, record.rejected), strict=True):
            ids, start, offsets = encoder.response(record, side, text, before, problems)
            weight, score = [1.0] * len(ids), [math.nan] * len(ids)
            if selects(record, side):
                weight, score = weights_and_scores(
                    record, side, len(ids), start, offsets, tokenizer=encoder.tokenizer, problems=problems
                )
            row[f"{side}_input_ids"] = (prompt + ids)[: encoder.longest]
            row[f"{side}_labels"] = ([IGNORED] * len(prompt) + ids)[: encoder.longest]
            row[f"{side}_weight"] = ([0.0] * len(prompt) + weight)[: encoder.longest]
            row[f"{side}_score"] = ([math.nan] * len(prompt) + score)[: encoder.longest]
        yield row, source.places(problems)


def watched(found: list[Any], name: str) -> Iterable[Any]:
    """`found` with a progress bar, which only the first process of each machine shows."""
    return tqdm(found, desc=f"finepref: tokens of {name}", disable=os.environ.get("LOCAL_RANK", "0") != "0")
