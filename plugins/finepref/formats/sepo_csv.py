"""SePO's top_K.csv (SteveKGYang/SePO, 82fab6c): read it as character spans, write it from token rewards."""

from __future__ import annotations

import codecs
import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from finepref.formats.check import Checked
from finepref.formats.files import replacing
from finepref.formats.jsonl import MAX_LINE, RawRow, dumps
from finepref.formats.problems import Problem
from finepref.formats.records import Message, Prompt, Record, parse
from finepref.formats.released import ASSISTANT, HUMAN, dialogue
from finepref.formats.row import RowReader, Span
from finepref.formats.spans import merge_spans

Tokens = tuple[Sequence[int], Sequence[tuple[int, int]]]
"""Token ids, and the half-open character offsets of each."""
ScoredText = tuple[str, Sequence[int], Sequence[float]]
"""A response with the text of its end token, its token ids, and their rewards."""

_SIDES = (
    ("chosen", "chosen_response", "chosen_selected_args", "chosen_responses_ids"),
    ("rejected", "rejected_response", "rejected_unselected_args", "rejected_responses_ids"),
)
_WRITTEN = (
    "prompt",
    *(f"{side}_response" for side in ("chosen", "rejected")),
    *(f"{side}_{name}_args" for name in ("selected", "unselected") for side in ("chosen", "rejected")),
    *(f"{side}_{name}_ids" for name in ("selected", "unselected") for side in ("chosen", "rejected")),
    *(f"{side}_responses_ids" for side in ("chosen", "rejected")),
)
_COLUMNS = ("prompt", *(column for _, *columns in _SIDES for column in columns))


def read_sepo_csv(
    path: str | os.PathLike[str],
    tokenize: Callable[[str], Tokens],
    *,
    eos: str = "</s>",
    escape: str | None = "\\",
) -> Iterator[Checked]:
    """The selected tokens of SePO's top_K.csv as spans: `selected` ones of chosen, `unselected` ones of rejected.

    Position p of the file is response token p + 1 (label space): the released scoring never scores the first response
    token, and its training code adds the same shift back. A selected EOS has no characters, so no span can hold it.
    A prompt that `prompt_text` has written is read as its turns; the release has single turns only.

    Args:
        path: columns prompt, chosen_response, rejected_response, chosen_selected_args, rejected_unselected_args,
            chosen_responses_ids, rejected_responses_ids, and others.
        tokenize: response text -> token ids and character offsets, by the tokenizer that the scoring used, without
            special tokens. Its ids must equal the stored ones from the second token on.
        eos: the text that the scoring appended to each response.
        escape: the escape character that the file was written with. Python before 3.10 did not escape backslashes:
            pass None for its files.
    """
    name = os.fspath(path)
    limit = csv.field_size_limit(MAX_LINE)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, escapechar=escape, restkey="", strict=True)
            missing = [column for column in _COLUMNS if column not in (rows.fieldnames or ())]
            if missing:
                yield _whole(Problem(name, 1, missing[0], "FP010", "the column is missing"))
                return
            line = rows.line_num + 1
            for row in rows:
                parsed = _sepo_record(row, name, line, tokenize, eos)
                problems = parsed if isinstance(parsed, list) else []
                raw = RawRow(line, dumps(row).encode(), dict(row), problems)
                yield Checked(raw, () if isinstance(parsed, list) else (parsed,), problems)
                line = rows.line_num + 1
    except OSError as error:
        yield _whole(Problem(name, 0, "", "FP001", error.strerror or str(error)))
    except UnicodeDecodeError as error:
        yield _whole(Problem(name, 0, "", "FP003", f"byte 0x{error.object[error.start]:02x} is not UTF-8"))
    except csv.Error as error:
        yield _whole(Problem(name, rows.line_num, "", "FP083", str(error)))
    finally:
        csv.field_size_limit(limit)


def write_sepo_csv(
    path: str | os.PathLike[str], rows: Iterable[tuple[str, Sequence[ScoredText]]], *, share: float
) -> int:
    """Write the released layout, atomically, and return the number of rows.

    Of each response the `share` of the tokens with the highest rewards is "selected", that with the lowest
    "unselected": int(share N) positions of the N scored tokens, at least one (the released code fails on none). The
    first token of a response is not scored; position and id are those of the token before, as the release has them.

    Args:
        rows: (prompt, (chosen, rejected)); see `prompt_text`.
        share: in (0, 1].
    """
    count = 0
    with replacing(path) as file:
        writer = csv.DictWriter(codecs.getwriter("utf-8")(file), _WRITTEN, escapechar="\\", lineterminator="\n")
        writer.writeheader()
        for prompt, texts in rows:
            row = {"prompt": prompt}
            for side, (text, ids, rewards) in zip(("chosen", "rejected"), texts, strict=True):
                row |= {f"{side}_response": text, f"{side}_responses_ids": _joined(ids)}
                for name, sign in (("selected", -1), ("unselected", 1)):
                    order = sorted(range(len(rewards) - 1), key=lambda i: sign * rewards[i + 1])
                    picked = order[: max(1, int(share * len(order)))]
                    row[f"{side}_{name}_args"] = _joined(picked)
                    row[f"{side}_{name}_ids"] = _joined(ids[i] for i in picked)
            writer.writerow(row)
            count += 1
    return count


def prompt_text(prompt: Prompt) -> str | None:
    """A dialogue as the column `prompt` has it, None if the column has no form for it.

    A single user turn is its text. Several turns are in HH's layout, "\\n\\nHuman: ...\\n\\nAssistant: ...", with the
    text of a system turn before it.
    """
    system, turns = ("", prompt) if prompt[0].role != "system" else (prompt[0].content, prompt[1:])
    told = "".join(f"{HUMAN if turn.role == 'user' else ASSISTANT} {turn.content}" for turn in turns)
    texts = (prompt[0].content, f"{system}{told}{ASSISTANT}")
    return next((text for text in texts if _turns(text) == prompt), None)


def _turns(text: str) -> Prompt:
    prompt, _ = dialogue(text, [])
    system, mark, rest = text.partition(HUMAN)
    if prompt == (Message("user", text),) and system.strip() and mark:
        inner, _ = dialogue(mark + rest, [])
        if inner != (Message("user", mark + rest),):
            return (Message("system", system), *inner)
    return prompt


def _joined(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _sepo_record(
    row: Mapping[str, str], file: str, line: int, tokenize: Callable[[str], Tokens], eos: str
) -> Record | list[Problem]:
    if "" in row or None in row.values():
        return [Problem(file, line, "", "FP083", "the row has more or fewer values than the header has columns")]
    reader = RowReader(row, columns={}, file=file, line=line, nulls_absent=False)
    own: dict[str, object] = {"prompt": row["prompt"]}
    if (turns := _turns(row["prompt"])) != (Message("user", row["prompt"]),):
        own = {"messages": [turn._asdict() for turn in turns]}
    for side, column, positions, ids in _SIDES:
        text = row[column]
        if not text.endswith(eos):
            reader.note(column, "FP084", f"the text does not end in {eos}")
        own[column] = text.removesuffix(eos)
        selected = _selected(
            reader, _integers(reader, positions), _integers(reader, ids), tokenize(text.removesuffix(eos)), positions
        )
        own[f"{side}_spans"] = [[start, end] for start, end, _ in selected]
    parsed = parse(
        own, "span_pair", columns={"chosen": "chosen_response", "rejected": "rejected_response"}, file=file, line=line
    )
    if isinstance(parsed, list):
        return [*reader.problems, *parsed]
    return reader.problems or parsed


def _integers(reader: RowReader, column: str) -> list[int]:
    values = str(reader.row[column]).split(",")
    if not all(value.isascii() and value.isdigit() and len(value) < 10 for value in values):
        reader.note(column, "FP011", "expected integers with commas between them")
        return []
    return [int(value) for value in values]


def _selected(
    reader: RowReader, positions: list[int], stored: list[int], tokens: Tokens, field: str
) -> tuple[Span, ...]:
    if not positions or not stored:
        return ()
    ids, offsets = tokens
    count = len(stored) - 1  # without EOS, which also replaced the last token of a truncated response
    if list(ids[1:count]) != stored[1:count] or len(ids) < count:
        reader.note(field, "FP084", "the tokenizer gives other token ids than the file has")
    elif max(positions) >= count:
        reader.note(field, "FP084", f"position {max(positions)} is beyond the {count + 1} tokens of the response")
    elif not any(position + 1 < count for position in positions):
        reader.note(field, "FP042", "only EOS is selected, which has no characters")
    else:
        return merge_spans(offsets[position + 1] for position in positions if position + 1 < count)
    return ()


def _whole(problem: Problem) -> Checked:
    return Checked(RawRow(problem.line, b"", None, [problem]), (), [problem])
