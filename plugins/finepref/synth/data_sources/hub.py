"""Data sets from a hub, or from their files, in our formats.

    hub             any data set by name, rows unchanged
    ultrafeedback   HuggingFaceH4/ultrafeedback_binarized   {prompt_id, chosen: messages, rejected, score_*}   pair
    hh              Anthropic/hh-rlhf                       {chosen: "\\n\\nHuman: ...", rejected}               pair

A row that is not a valid pair (equal responses, an empty text, different prompts, two answers in a row) is left out,
listed with its problems, and counted. A row that cannot be read at all is a bad row, see `BadRows`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from finepref.formats.bad_rows import BadRows
from finepref.formats.check import SeenIds
from finepref.formats.checked_rows import Checked
from finepref.formats.jsonl import RawRow, dumps, write_jsonl
from finepref.formats.problems import BadData, Problem
from finepref.formats.records import parse, to_row
from finepref.formats.row import ROLES
from finepref.synth.left_out import PROBLEMS, Ledger, Written

_TURN = re.compile(r"\n\n(Human|Assistant):")


class HubUnreachable(RuntimeError):  # noqa: N818
    """The data set does not exist, or the hub cannot be reached."""


class Source(NamedTuple):
    """A public data set of pairs: its name and split, and what converts its rows to `pair`, or returns why not."""

    name: str
    split: str
    convert: Callable[[Mapping[str, object]], dict[str, object] | str]


def hub_rows(name: str, *, split: str, config: str | None = None, folder: str | None = None) -> Iterator[RawRow]:
    """The rows of a data set on the hub, or in a local folder, one at a time. No code of the data set is run.

    Raises:
        HubUnreachable: the data set does not exist, or the hub cannot be reached.
    """
    import datasets

    try:
        rows = datasets.load_dataset(name, config, data_dir=folder, split=split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield RawRow(number, dumps(row).encode(), row, [])
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        advice = "if the hub cannot be reached from here, download a file elsewhere and pass it with --from-file"
        raise HubUnreachable(f"{name} (split {split}) cannot be read: {reason}; {advice}") from error


class HubSet(NamedTuple):
    """A data set on a hub, as an entry of the host's dataset_info.json names it.

    Attributes:
        name: on the hub.
        modelscope: whether it is on ModelScope (`ms_hub_url`) and not on Hugging Face (`hf_hub_url`).
        subset, split, folder: of the entry.
    """

    name: str
    modelscope: bool = False
    subset: str | None = None
    split: str = "train"
    folder: str | None = None

    @classmethod
    def of_entry(cls, entry: Mapping[str, Any]) -> HubSet | None:
        """The data set that an entry names, None if it names none; Hugging Face before ModelScope, as the host."""
        name = entry.get("hf_hub_url") or entry.get("ms_hub_url")
        if not name:
            return None
        options = (entry.get("subset"), entry.get("split") or "train", entry.get("folder"))
        return cls(name, not entry.get("hf_hub_url"), *options)

    def rows(self) -> Iterator[RawRow]:
        """Its rows, one at a time; that it cannot be read is a row with line 0 (FP110, FP111)."""
        try:
            if self.modelscope:
                yield from self._of_modelscope()
            else:
                yield from hub_rows(self.name, split=self.split, config=self.subset, folder=self.folder)
        except (ImportError, OSError, RuntimeError, ValueError) as error:  # HubUnreachable is a RuntimeError
            yield RawRow(0, b"", None, [unreadable(self.name, error)])

    def downloaded(self) -> Any:
        """All of it, as a `datasets.Dataset` in the cache of that library.

        Raises:
            BadData: it cannot be read (FP110, FP111).
        """
        try:
            if self.modelscope:
                found = self._modelscope()
                return found.to_hf_dataset() if hasattr(found, "to_hf_dataset") else found
            import datasets

            return datasets.load_dataset(self.name, self.subset, data_dir=self.folder, split=self.split)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise BadData([unreadable(self.name, error)]) from None

    def _modelscope(self) -> Any:
        from modelscope import MsDataset

        return MsDataset.load(self.name, subset_name=self.subset, data_dir=self.folder, split=self.split)

    def _of_modelscope(self) -> Iterator[RawRow]:
        for number, row in enumerate(self._modelscope(), start=1):
            yield RawRow(number, json.dumps(row, default=str).encode(), row, [])


def unreadable(name: str, error: Exception) -> Problem:
    """Why a data set of a hub cannot be read: a package is missing (FP110), or the data cannot be had (FP111)."""
    told = " ".join(str(error).split())
    missing = re.search(r"No module named '([^'.]+)", told)
    if isinstance(error, ImportError) or missing:
        package = missing[1] if missing else (error.name if isinstance(error, ImportError) else "") or "its package"
        text = f"{package} is not installed: pip install {package}; or download the data and name a file_name"
        return Problem(name, 0, "", "FP110", text)
    if name not in told:
        told = f"{name} cannot be read: {told}"
    advice = "download the data elsewhere and name a file_name in the entry"
    return Problem(name, 0, "", "FP111", f"{told[:300].partition('; if the hub')[0]}; {advice}")


def ultrafeedback(row: Mapping[str, object]) -> dict[str, object] | str:
    """A row of UltraFeedback binarized: two dialogues with one prompt, each ends with its response.

    The margin is that of the scores.
    """
    dialogues = [row.get(side) for side in ("chosen", "rejected")]
    whole = [each for each in dialogues if isinstance(each, list) and all(isinstance(turn, Mapping) for turn in each)]
    if len(whole) < 2 or not all(whole):
        return "chosen and rejected are not two lists of messages"
    chosen, rejected = whole
    for side, each in (("chosen", chosen), ("rejected", rejected)):
        if ROLES.get(str(each[-1].get("role"))) != "assistant":
            return f"{side} does not end in a turn of the assistant"
    asked, also = ([(turn.get("role"), turn.get("content")) for turn in each[:-1]] for each in whole)
    if asked != also:
        return "chosen and rejected answer different prompts"
    made: dict[str, object] = {"messages": chosen[:-1]}
    made |= {"chosen": chosen[-1].get("content"), "rejected": rejected[-1].get("content")}
    if "prompt_id" in row:
        made["id"] = row["prompt_id"]
    scores = row.get("score_chosen"), row.get("score_rejected")
    if all(isinstance(score, int | float) for score in scores):
        made["margin"] = scores[0] - scores[1]  # type: ignore[operator]
    return made


def hh(row: Mapping[str, object]) -> dict[str, object] | str:
    """A row of HH: two transcripts that are equal up to the last "Assistant:" turn.

    The turns become messages in the order of the transcript. `parse` then refuses a prompt whose turns are not in
    order (two answers in a row) or empty.
    """
    texts = [row.get("chosen"), row.get("rejected")]
    if not all(isinstance(text, str) for text in texts):
        return "chosen and rejected are not two transcripts"
    mark = "\n\nAssistant:"
    ends = [str(text).rfind(mark) + len(mark) for text in texts]
    prompts = [str(text)[:end] for text, end in zip(texts, ends, strict=True)]
    if prompts[0] != prompts[1] or ends[0] < len(mark):
        return "the transcripts differ before the last turn of the assistant"
    before, *parts = _TURN.split(prompts[0].removesuffix(mark))
    if before.strip() or not parts:
        return "the transcripts do not begin with a turn"
    roles = {"Human": "user", "Assistant": "assistant"}
    messages = [
        {"role": roles[name], "content": text.strip()} for name, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    responses = [str(text)[end:].strip() for text, end in zip(texts, ends, strict=True)]
    if any(map(_TURN.search, responses)):
        return "the transcripts do not end in a turn of the assistant"
    return {"messages": messages, "chosen": responses[0], "rejected": responses[1]}


SOURCES = {
    "ultrafeedback": Source("HuggingFaceH4/ultrafeedback_binarized", "train_prefs", ultrafeedback),
    "hh": Source("Anthropic/hh-rlhf", "train", hh),
}


def write_pairs(
    rows: Iterable[RawRow], output: Path, source: Source, *, name: str, bad_rows: BadRows | None = None
) -> Written:
    """Write the valid pairs, and `<stem>.left_out.jsonl` with the other rows and their problems.

    The reason of a row is the code of its first problem.

    Args:
        rows: of the public data set.
        output: the JSON Lines file of pairs.
        source: converts a row to a pair.
        name: of the file or data set, for the problems.
        bad_rows: collects the rows that cannot be read; None = each is an error.

    Raises:
        BadData: see `BadRows.settle`; nothing is written then.
    """
    left_out = Ledger()
    bad = BadRows() if bad_rows is None else bad_rows
    readable = (row.raw for row in bad.good(name, (Checked(raw, (), raw.problems) for raw in rows)))

    def pairs() -> Iterator[dict[str, object]]:
        with SeenIds() as seen:
            for raw in tqdm(readable, desc=name, unit="row", disable=None):
                found: list[Problem] = []
                made = source.convert(raw.value or {})
                parsed = [] if isinstance(made, str) else parse(made, "pair", file=name, line=raw.line)
                if isinstance(made, str):
                    found.append(Problem(name, raw.line, "", "FP015", made))
                elif isinstance(parsed, list):
                    found += parsed
                elif (first := seen.line_of(parsed.id, raw.line)) is not None:
                    found.append(Problem(name, raw.line, "id", "FP060", f"{parsed.id} is the id of row {first}"))
                else:
                    yield to_row(parsed)
                    continue
                left_out.add({"row": raw.line, "problems": [str(each) for each in found]}, found[0].code)
        bad.settle()

    written = write_jsonl(output, pairs())
    left_out.write(output, PROBLEMS)
    return Written(written, left_out)
