"""Records for OpenRLHF: data sets by name or by file, all checked before a model loads, and tokenised.

The host would load files with `datasets` and silently drop or cut rows that are too long. Here every row is checked,
and what happens to rows that do not fit is an option and is counted. Prompt and response are tokenised separately, so
that no token spans both, and the tokens are the same as on LLaMA-Factory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from tqdm import tqdm

from finepref.formats import dataset_info, jsonl, layouts, records
from finepref.formats.bad_rows import BadRows
from finepref.formats.problems import BadData, Problem
from finepref.formats.row import TOOLS
from finepref.hosts import row_cache
from finepref.hosts.openrlhf.notes import LONGEST, Notes
from finepref.hosts.reading import Sourced
from finepref.hosts.receipt import DatasetEntry
from finepref.hosts.run import Source
from finepref.methods import host_rules, overlong
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
from finepref.synth.data_sources import files
from finepref.synth.data_sources.hub import HubSet
from finepref.synth.engines.checkpoint import RefusedByTemplateError, ToolsRefusedError, rendered

_NEEDS_TEMPLATE = "{} are written by the chat template: give --data.apply_chat_template"
FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst")


def dpo_rule(prompt: int, response: int, longest: int) -> tuple[int, int] | None:
    """What `train_dpo` keeps (`overlong.HostRule`): it leaves out long prompts and cuts responses."""
    return None if prompt >= longest - 2 else (prompt, min(response, longest - prompt))


def reward_rule(prompt: int, response: int, longest: int) -> tuple[int, int] | None:
    """What `train_rm` keeps (`overlong.HostRule`): the beginning, also of a response of which nothing is left then."""
    return prompt, min(response, longest - prompt)


def cache_dir() -> Path:
    """Folder of what is made of rows, see `finepref.hosts.row_cache`."""
    return Path(datasets.config.HF_DATASETS_CACHE, "finepref").resolve()


def read(sources: Iterable[Source], bad_rows: BadRows) -> tuple[row_cache.CachedRecords, list[DatasetEntry]]:
    """Read all records of some data sets, or find them in the cache. Returns them, and the receipt's entries.

    Rows with a problem are collected in `bad_rows`.
    """
    found = [row_cache.prepared(source, bad_rows, cache_dir()) for source in sources]
    return row_cache.CachedRecords(each.file for each in found), [each.entry for each in found]


def sources(names: str, arguments: Any, formats: tuple[str, ...]) -> list[Source]:
    """The data sets in a comma-separated list of names and files, such as `--data.dataset`.

    A file of any kind is in the layout `--data.formatting`, recognised by all rows if it is not
    given, with the columns of the host's `--data.prompt_key`, `--data.chosen_key` and `--data.rejected_key`. For a
    name, dataset_info.json has all of this.

    Raises:
        BadData: an unknown name, a format that the method does not train on, a missing file, or a data set of a hub
            that cannot be read.
    """
    found = []
    for name in (part.strip() for part in names.split(",")):
        if Path(name).suffix in FILE_SUFFIXES or os.sep in name:
            found.append(_file(name, arguments, formats))
            continue
        folder, entry = dataset_info.find(name, arguments.dataset_dir)
        layout = layouts.of_entry(entry)
        if layout is None or layouts.native_format(layout) not in formats:
            text = f"{entry.get('formatting', 'alpaca')} cannot be trained on here; use {' or '.join(formats)}"
            table = str(Path(folder, dataset_info.FILE_NAME))
            raise BadData([Problem(table, 0, f"{name}.formatting", "FP201", text)])
        hub = None if "file_name" in entry else HubSet.of_entry(entry)
        paths = dataset_info.resolve(folder, entry) if hub is None else [row_cache.downloaded(hub, cache_dir())]
        options = (entry.get("columns", {}), entry.get("error_type"), entry.get("tags"))
        found.append(Source(name, layout, tuple(paths), *options))
    return found


def _file(name: str, arguments: Any, formats: tuple[str, ...]) -> Source:
    path = Path(name)
    if not path.exists():
        text = "there is no such file or folder; a data set's name has no slash and no suffix"
        raise BadData([Problem(name, 0, "", "FP075", text)])
    paths = files.shards(path) if path.is_dir() else [path]
    keys = {"prompt": arguments.prompt_key, "chosen": arguments.chosen_key, "rejected": arguments.rejected_key}
    columns = {field: key for field, key in keys.items() if key not in (None, field)}
    layout = arguments.formatting or _guessed(paths, columns)
    native = layouts.native_format(layout)
    if native not in formats and layout != layouts.UNKNOWN:
        text = f"the rows are {layout}, which cannot be trained on here; use {' or '.join(formats)}"
        raise BadData([Problem(name, 0, "", "FP201", text)])
    if layout in records.FIELDS:
        columns = {field: key for field, key in columns.items() if field in records.FIELDS[layout]}
    return Source(path.name, layout, tuple(paths), columns)


def _guessed(paths: list[Path], columns: dict[str, str]) -> str:
    """The layout of the rows of some files, which are looked at once."""
    digests = [row_cache.sha256(each, cache_dir()) for each in paths]
    known = [*map(str, paths), sorted(layouts.names()), columns]
    rows = jsonl.read_rows if all(map(files.is_plain, paths)) else files.rows_of
    folder = cache_dir() / row_cache.name_of([row_cache.SCHEMA, version("finepref"), digests, known])
    return row_cache.made_once(folder, lambda _: {"layout": layouts.guess(paths, rows, columns=columns)})["layout"]


class Encoded(NamedTuple):
    """A tokenised response with what ends it.

    Attributes:
        ids: its token ids.
        start: index of the first token of the response's text, -1 if the template changed the text.
        offsets: character range in the text of each token from there on.
    """

    ids: list[int]
    start: int
    offsets: list[tuple[int, int]]


class Encoder:
    """Tokenises prompts and responses, with or without the tokenizer's chat template.

    Without it (the host's default), a prompt is one user turn, inserted into `--data.input_template` if that is given,
    and the end token is added to the response.

    Args:
        tokenizer: a fast tokenizer.
        arguments: the host's `--data.*`.
        policy: what happens to records longer than `--data.max_len`, see `finepref.methods.overlong`.
        rule: the host's own way to cut.

    Raises:
        ValueError: the tokenizer is not fast, or the chat template is missing.
    """

    def __init__(
        self, tokenizer: Any, arguments: Any, *, policy: overlong.Overlong, rule: overlong.HostRule = dpo_rule
    ) -> None:
        self.tokenizer = tokenizer
        self.template = arguments.input_template
        self.chat = arguments.apply_chat_template
        self.longest = arguments.max_len
        self.policy, self.rule = policy, rule
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

    def encode(
        self, record: records.Record, texts: Mapping[str, str], problems: list[Problem]
    ) -> tuple[list[int], list[Encoded]]:
        """Tokenise a record.

        Args:
            record: the record.
            texts: field of each response, for messages -> its text.
            problems: list to which FP230, FP231, FP240 and FP242 are appended.

        Returns:
            The token ids of the prompt, and the responses; both empty if there is a problem.
        """
        try:
            before, written = self._prompt(record), []
            for field, text in texts.items():
                written.append(self._response(record, field, text, before))
        except BadData as error:
            problems += error.problems
            return [], []
        except RefusedByTemplateError as error:
            problems.append(problem_of_record(record, error.field or field, error.code, str(error)))
            return [], []
        return self.tokenizer(before, add_special_tokens=False)["input_ids"], written

    def _prompt(self, record: records.Record) -> str:
        if self.chat:
            return rendered(self.tokenizer, record.prompt)
        if record.prompt[0].role == TOOLS or record.prompt[-1].role == "observation":
            raise ToolsRefusedError(_NEEDS_TEMPLATE.format("tools"), "tools")
        if len(record.prompt) > 1:
            raise BadData([problem_of_record(record, "prompt", "FP230", "give --data.apply_chat_template")])
        text = record.prompt[0].content
        return self.template.format(text) if self.template else text

    def _response(self, record: records.Record, field: str, text: str, before: str) -> Encoded:
        """Tokenise a response with what ends it; `before` is the text of the prompt."""
        written = text + self.tokenizer.eos_token
        if isinstance(text, records.FunctionCall) and not self.chat:
            raise ToolsRefusedError(_NEEDS_TEMPLATE.format("calls of functions"), "")
        if self.chat:
            both = rendered(self.tokenizer, [*record.prompt, records.as_turn(text)], answer=False)
            if not both.startswith(before):
                message = "the chat template writes the earlier turns differently when a response follows"
                raise BadData([problem_of_record(record, field, "FP231", message)])
            written = both[len(before) :]
        encoded = self.tokenizer(written, add_special_tokens=False, return_offsets_mapping=True)
        place = written.find(text)
        if place < 0:
            return Encoded(encoded["input_ids"], -1, [])
        offsets = offsets_in(text, encoded["offset_mapping"], before=place)
        first = next((i for i, (start, end) in enumerate(offsets) if start < end), 0)
        return Encoded(encoded["input_ids"], first, offsets[first:])

    def fit(
        self, source: Sourced, prompt: Sequence[int], responses: Sequence[Sequence[int]], notes: Notes
    ) -> overlong.Fit | None:
        """What is kept of a record; None if it is left out, which is noted.

        Args:
            source: the record.
            prompt: token ids of its prompt.
            responses: token ids of each of its responses.
            notes: where it is noted.
        """
        lengths = [len(ids) for ids in responses]
        fit = overlong.fit(len(prompt), lengths, self.longest, policy=self.policy, host_rule=self.rule)
        if fit.refused:
            text = overlong.told(len(prompt), lengths, self.longest, LONGEST)
            notes.reject(source, [problem_of_record(source.record, "prompt", "FP203", text)])
        elif fit.skipped:
            notes.skip(source, fit.skipped)
        else:
            return fit
        return None

    def kept(self, response: Sequence[int], most: int) -> list[int]:
        """Indices of at most `most` tokens of a response: its beginning, and as on the host its end token."""
        return host_rules.kept_with_end(response, most, self.tokenizer.eos_token_id)

    def cut(self, response: Sequence[int], most: int) -> list[int]:
        """The tokens of a response that `kept` keeps."""
        return [response[i] for i in self.kept(response, most)]


class TokenisedPair(NamedTuple):
    """A pair, and the same pair as it would be without a cut.

    Attributes:
        row: a row of `finepref.methods.pair_rows`, also with {side}_input_ids.
        whole: the same without a cut.
        cut: what is cut, see `overlong.Fit`.
    """

    row: dict[str, Any]
    whole: dict[str, Any]
    cut: str


def tokenised_pair(source: Sourced, encoder: Encoder, notes: Notes) -> TokenisedPair | None:
    """Tokenise a pair; None if it is left out, which is noted."""
    record, problems = source.record, []
    prompt, encoded = encoder.encode(record, {"chosen": record.chosen, "rejected": record.rejected}, problems)
    sides = {}
    for side, (ids, start, offsets) in zip(SIDES, encoded, strict=False):
        weight, score = [1.0] * len(ids), [math.nan] * len(ids)
        if selects(record, side):
            weight, score = weights_and_scores(
                record, side, len(ids), start, offsets, tokenizer=encoder.tokenizer, problems=problems
            )
        sides[side] = ids, weight, score
    if problems:
        notes.reject(source, problems)
        return None
    responses = [response.ids for response in encoded]
    fit = encoder.fit(source, prompt, responses, notes)
    if fit is None:
        return None
    reason = overlong.same((1, 0), responses, [encoder.cut(ids, fit.response) for ids in responses])
    if reason:
        notes.skip(source, reason)
        return None
    about = facts(record, encoder.tokenizer, prompt, encoder.template_name)
    whole = about | _columns(prompt, sides)
    if not fit.cut:
        return TokenisedPair(whole, whole, "")
    kept = {}
    for side, (ids, *rest) in sides.items():
        places = encoder.kept(ids, fit.response)
        kept[side] = tuple([values[i] for i in places] for values in (ids, *rest))
    return TokenisedPair(about | _columns(prompt[fit.start : fit.stop], kept), whole, fit.cut)


def _columns(prompt: list[int], sides: dict[str, Any]) -> dict[str, Any]:
    """The columns of a tokenised pair about its tokens; `sides` has (ids, weight, score) of each response."""
    count = len(prompt)
    row = {}
    for side, (ids, weight, score) in sides.items():
        row[f"{side}_input_ids"] = prompt + ids
        row[f"{side}_labels"] = [IGNORED] * count + ids
        row[f"{side}_weight"] = [0.0] * count + weight
        row[f"{side}_score"] = [math.nan] * count + score
    return row


def watched(found: Iterable[Any], name: str) -> Iterable[Any]:
    """`found` with a progress bar; of the processes of a machine only one tokenises."""
    return tqdm(found, desc=f"finepref: tokens of {name}")
