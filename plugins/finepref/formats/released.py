"""Readers for the files of the papers' code: a row becomes a record, or a list of problems.

    layout        source                               a row                                             record
    granular      TDPO fork with span masks, e17d5cc   prompt, correct_response, incorrect_response,     span_pair
                                                       masked_region [start, end, flag]
    apo_rm        Linear95/APO, 4282775                text ["query<sep>response", ...], scores,         ranked
                                                       optional query_id and type "apo"
    reversegen    qtli/ReverseGen, 9b48b88             prompt, positive, negative                        pair
    seapo, kto    yunjie777/SeaPO, 47335d0; KTO data   messages that end in the response, label          feedback
    train_detail  axolotl's spans in a preference row  conversations, chosen and rejected messages with  span_pair
                                                       train_detail [{begin_offset, end_offset, train}]

Two released layouts need more than one row: `apo_samples.py` (two files) and `sepo_csv.py` (the tokenizer).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from finepref.formats.problems import Problem
from finepref.formats.records import Message, Record, parse
from finepref.formats.row import RowReader, kind_of, shown

Parsed = Record | list[Problem]

HUMAN, ASSISTANT, _SEPARATOR = "\n\nHuman:", "\n\nAssistant:", "<sep>"
_TURN = re.compile(f"({HUMAN}|{ASSISTANT})")


def parse_granular(row: object, *, file: str = "<row>", line: int = 0) -> Parsed:
    """A row of the span-mask fork of TDPO. Flag 1: the span is in the correct response, -1: in the incorrect one,
    0: no span. Offsets are those of a Python slice. Flags 1 and -1 give the one-sided `side` of the released loss.
    """
    reader = _reader(row, file, line)
    if isinstance(reader, list):
        return reader
    own = {
        name: reader.row[name]
        for name in ("id", "prompt", "correct_response", "incorrect_response")
        if name in reader.row
    }
    columns = {"chosen": "correct_response", "rejected": "incorrect_response"}
    region = reader.row.get("masked_region")
    if "masked_region" not in reader.row:
        reader.missing("masked_region")
    elif not isinstance(region, list | tuple) or len(region) != 3 or any(type(number) is not int for number in region):
        reader.note("masked_region", "FP080", "expected [start, end, flag], three integers")
    elif region[2] not in (1, -1, 0):
        reader.note("masked_region", "FP080", f"the flag is {shown(region[2])}, not 1, -1 or 0")
    elif region[2]:
        own |= {"masked_region": [list(region[:2])], "side": region[2]}
        columns["chosen_spans" if region[2] == 1 else "rejected_spans"] = "masked_region"
    return with_problems(parse(own, "span_pair", columns=columns, file=file, line=line), reader.problems)


def parse_apo_rm(row: object, *, file: str = "<row>", line: int = 0) -> Parsed:
    """A text/scores row of APO. A query in the transcript layout of HH becomes messages, see `dialogue`."""
    reader = _reader(row, file, line)
    if isinstance(reader, list):
        return reader
    if "text" not in reader.row:
        reader.missing("text")
        return reader.problems
    queries, responses = [], []
    for i, text in enumerate(reader.items(reader.row["text"], "text")):
        good = reader.text(text, f"text[{i}]")
        parts = good.split(_SEPARATOR)
        if len(parts) == 2:
            queries.append(parts[0])
            responses.append(parts[1])
        elif good:
            reader.note(f"text[{i}]", "FP081", f"expected one {_SEPARATOR}, got {len(parts) - 1}")
    for i, query in enumerate(queries):
        if query != queries[0]:
            reader.note(f"text[{i}]", "FP082", "the query differs from that of text[0]")
        elif not query.strip():
            reader.note(f"text[{i}]", "FP012", "the query is empty")
    if reader.problems or not queries:
        return reader.problems or [
            Problem(file, line, "text", "FP050", "a ranking needs two responses or more, got 0")
        ]
    prompt, cleaned = dialogue(queries[0], responses)
    own: dict[str, object] = {"messages": [turn._asdict() for turn in prompt], "text": cleaned}
    own |= {name: reader.row[name] for name in ("scores", "type") if name in reader.row}
    if "query_id" in reader.row:
        own["query_id"] = query_id(reader.row["query_id"])
    columns = {"id": "query_id", "messages": "messages", "responses": "text", "kind": "type"}
    return parse(own, "ranked", columns=columns, file=file, line=line)


def parse_reversegen(row: object, *, file: str = "<row>", line: int = 0) -> Parsed:
    """A pair of ReverseGen: `positive` is the instruction that made the target fail, `negative` one that it solved."""
    return parse(row, "pair", columns={"chosen": "positive", "rejected": "negative"}, file=file, line=line)


def parse_messages_label(row: object, *, file: str = "<row>", line: int = 0, error_type: str | None = None) -> Parsed:
    """A row of the SeaPO release or of KTO data; `error_type` is that of the file's undesirable rows."""
    return parse(row, "feedback", file=file, line=line, error_type=error_type)


def parse_train_detail(row: object, *, file: str = "<row>", line: int = 0) -> Parsed:
    """A preference row whose chosen and rejected messages have axolotl's `train_detail`: both offsets are inclusive.

    Only characters with `train` true are in a span. A message without train_detail has no spans: all of it counts.
    """
    reader = _reader(row, file, line)
    if isinstance(reader, list):
        return reader
    own: dict[str, object] = {name: reader.row[name] for name in ("id", "prompt", "system") if name in reader.row}
    columns = {}
    for name in ("messages", "conversations"):
        if name in reader.row:
            own[name] = reader.row[name]
            columns["messages"] = name
    for side in ("chosen", "rejected"):
        if side not in reader.row:
            continue
        message = reader.mapping(reader.row[side], side)
        text = "value" if "value" in message else "content"
        if text in message:
            own[f"{side}.{text}"] = message[text]
        columns[side] = f"{side}.{text}"
        if "train_detail" in message:
            own[f"{side}.train_detail"] = _inclusive(reader, message["train_detail"], f"{side}.train_detail")
            columns[f"{side}_spans"] = f"{side}.train_detail"
    return with_problems(parse(own, "span_pair", columns=columns, file=file, line=line), reader.problems)


def _inclusive(reader: RowReader, value: object, field: str) -> list[dict[str, object]]:
    spans: list[dict[str, object]] = []
    for i, item in enumerate(reader.items(value, field)):
        detail = reader.mapping(item, f"{field}[{i}]")
        begin, end, train = detail.get("begin_offset"), detail.get("end_offset"), detail.get("train")
        known = detail.keys() == {"begin_offset", "end_offset", "train"}
        if not known or type(begin) is not int or type(end) is not int or type(train) is not bool:
            reader.note(f"{field}[{i}]", "FP085", "expected integers begin_offset and end_offset, and a boolean train")
        elif train:
            spans.append({"start": begin, "end": end + 1})
    if not spans and not reader.problems:
        reader.note(field, "FP042", "no character has train: true")
    return spans


READERS: dict[str, tuple[str, Callable[..., Parsed]]] = {
    "granular": ("span_pair", parse_granular),
    "apo_rm": ("ranked", parse_apo_rm),
    "reversegen": ("pair", parse_reversegen),
    "seapo": ("feedback", parse_messages_label),
    "kto": ("feedback", parse_messages_label),
    "train_detail": ("span_pair", parse_train_detail),
}
"""Layout -> the format of its records, and the reader of one row."""


def dialogue(query: str, responses: Sequence[str]) -> tuple[tuple[Message, ...], list[str]]:
    """Prompt and responses of a query in the HH layout, "\\n\\nHuman: ...\\n\\nAssistant:".

    If the query is such a transcript, with alternating, non-empty turns, its turns become messages. The turns
    and responses are then stripped, since their white space belongs to the layout. Any other query becomes one user
    turn; it and the responses stay unchanged.
    """
    parts = _TURN.split(query)
    turns = [part.strip() for part in parts[2:-1:2]]
    marks = parts[1::2]
    in_order = all(mark == (HUMAN, ASSISTANT)[i % 2] for i, mark in enumerate(marks))
    if parts[0].strip() or parts[-1].strip() or not in_order or len(marks) % 2 or not marks or not all(turns):
        return (Message("user", query),), list(responses)
    roles = ("user", "assistant")
    prompt = tuple(Message(roles[i % 2], turn) for i, turn in enumerate(turns))
    return prompt, [response.strip() for response in responses]


def transcript(prompt: Sequence[Message]) -> str | None:
    """The query that `dialogue` turns into this prompt; None if there is none."""
    text = "".join(f"{HUMAN if turn.role == 'user' else ASSISTANT} {turn.content}" for turn in prompt)
    for query in (prompt[0].content, f"{text}{ASSISTANT}"):
        if dialogue(query, [])[0] == tuple(prompt):
            return query
    return None


def query_id(value: object) -> object:
    """APO's query_id as our id; the released files have strings and integers."""
    return str(value) if type(value) is int else value


def _reader(row: object, file: str, line: int) -> RowReader | list[Problem]:
    if isinstance(row, Mapping):
        return RowReader(row, columns={}, file=file, line=line, nulls_absent=False)
    return [Problem(file, line, "", "FP005", f"expected an object, got {kind_of(row)}")]


def with_problems(parsed: Parsed, problems: list[Problem]) -> Parsed:
    """Add earlier problems to the result of `parse`."""
    if isinstance(parsed, list):
        return [*problems, *parsed]
    return problems or parsed
