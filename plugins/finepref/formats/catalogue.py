"""Documentation of the formats: an example row and dataset entry of each, its fields, and its error codes.

`markdown()` is dataset_info/README.md; a test checks that the file is current and its examples are valid.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

from finepref.formats.convert import TARGETS
from finepref.formats.jsonl import MAX_ARRAY, MAX_LINE, dumps
from finepref.formats.layout import Layout
from finepref.formats.layout_table import BUILT_IN, SUPERVISED
from finepref.formats.markdown_table import table
from finepref.formats.negatives import ERROR_TYPES
from finepref.formats.problems import CODES
from finepref.formats.records import FIELDS


class Format(NamedTuple):
    """A format's documentation: purpose, a row, a dataset entry, and the error codes its rows can have."""

    purpose: str
    row: dict[str, object]
    entry: dict[str, object]
    codes: tuple[str, ...]


FILE_CODES = tuple(code for code in CODES if code <= "FP009")
_PROMPT_CODES = (
    *("FP010", "FP011", "FP012", "FP013", "FP014", "FP015", "FP020", "FP021", "FP022", "FP023"),
    *("FP088", "FP089", "FP117", "FP118"),
)
_SPAN_CODES = ("FP007", "FP040", "FP041", "FP042", "FP043")

FIELD_TEXTS = {
    "id": "text (1 to 256 printable characters) or integer, optional; else a hash of the content",
    "prompt": "text: the user's turn",
    "system": "text, optional: the system turn before `prompt`",
    "query": "text, optional: joined to `prompt` in a new line, as the hosts do",
    "input": "the same",
    "history": "[[user, assistant], ...], optional: the turns before `prompt`",
    "messages": "instead of prompt: turns {role, content} or {from, value}, the user's or an observation last",
    "tools": "a list of objects, or its JSON as text, optional: what the assistant may call",
    "chosen": "text: the better response; or a call, see above",
    "rejected": "text: the worse response",
    "margin": "number, optional: how much better",
    "chosen_spans": "spans in chosen, optional; without any, all of it counts",
    "rejected_spans": "spans in rejected, optional; without any, all of it counts",
    "side": "1, -1 or 0, optional: use chosen only, rejected only, both",
    "tokenizer": "text: the fingerprint of the tokenizer, see above",
    "chosen_scores": "a number per token of chosen, and optionally one for the end token",
    "rejected_scores": "the same for rejected",
    "chosen_offsets": "[start, end] in chosen per score, optional: to map the scores to other tokenizers",
    "rejected_offsets": "the same for rejected",
    "template": "text, optional: the name of the template that the scored prompt was written with",
    "prompt_digest": "text, optional: a digest of the scored prompt's tokens, compared in training",
    "score_kind": '"log_ratio" or "contrast", optional: what the scores are, cDPO needs the latter',
    "responses": "two or more texts",
    "scores": "a number per response, not all equal; may be negative",
    "kind": '"human" or "apo", optional: apo is a golden answer above an LLM\'s sample',
    "response": "text; or the last turn of messages",
    "label": "true (desirable) or false, or 1 or 0",
    "error_type": "name, optional: the error in an undesirable response",
    "negatives": "{error type: text}; or one column per error type, named in `columns`",
    "spans": "{error type: spans}, optional: the injected error in each negative",
    "question": "text: the question without its options",
    "options": "{label: text}, or a list of texts: two or more different ones",
    "answer": "text, optional: the label of the right option, or its text",
    "subject": "text, optional: such as the subject of an exam",
}
"""What each field holds. In negatives rows, `rejected` is optional: the original rejected response."""

KIND_TEXTS = {
    "text": "text",
    "transcript": "transcript",
    "edited": "text with edits",
    "list": "list",
    "object": "object",
    "integer": "integer",
    "number": "number",
    "label": "boolean, 0 or 1",
    "message": "message",
    "messages": "messages",
    "single": "one message",
    "objects": "objects",
    "options": "list or object",
    "reply": "text or messages",
    "response": "text or a call",
}
"""Kind of a value, see `layout.KINDS` -> its name in the table."""

_QUESTION = "Tom has 3 bags of 4 apples. How many apples has he?"
_PARIS = "What is the capital of France?"

FORMATS_SHOWN: dict[str, Format] = {
    "negatives": Format(
        "A good response and, per error type, the same response with that error injected (SeaPO).",
        {
            "id": "gsm-7",
            "prompt": _QUESTION,
            "chosen": "3 * 4 = 12, so he has 12 apples.",
            "negatives": {
                "correctness": "3 * 4 = 14, so he has 14 apples.",
                "logic": "3 * 4 = 12, so he has no apples.",
            },
            "spans": {"correctness": [{"start": 8, "end": 10}, {"start": 22, "end": 24}]},
        },
        {"file_name": "samples/seapo_demo.jsonl", "formatting": "negatives"},
        (*_PROMPT_CODES, "FP008", "FP030", "FP031", "FP032", "FP033", "FP036", "FP045", *_SPAN_CODES, "FP060"),
    ),
    "feedback": Format(
        "One response and whether it is desirable (KTO; the files of the SeaPO release). A prompt may have one label.",
        {
            "messages": [
                {"role": "user", "content": _QUESTION},
                {"role": "assistant", "content": "3 * 4 = 14, so he has 14 apples."},
            ],
            "label": False,
            "error_type": "correctness",
        },
        {"file_name": "ultrafeedback-logic.json", "formatting": "feedback", "error_type": "logic"},
        (*_PROMPT_CODES, "FP008", "FP031", "FP035", "FP036", "FP060", "FP061"),
    ),
    "pair": Format(
        "A better and a worse response (DPO, SimPO; the output of every generator).",
        {"prompt": _PARIS, "chosen": "Paris.", "rejected": "Lyon.", "margin": 2.5},
        {"file_name": "pairs.jsonl", "formatting": "pair"},
        (*_PROMPT_CODES, "FP007", "FP008", "FP034", "FP060"),
    ),
    "span_pair": Format(
        "A pair with annotated character spans (masked TDPO, masked DPO).",
        {
            "prompt": _PARIS,
            "chosen": "It is Paris.",
            "rejected": "It is Lyon.",
            "chosen_spans": [{"start": 6, "end": 11}],
            "rejected_spans": [{"start": 6, "end": 10, "weight": 0.5}],
        },
        {"file_name": "spans.jsonl", "formatting": "span_pair"},
        (*_PROMPT_CODES, "FP008", "FP034", *_SPAN_CODES, "FP046", "FP060"),
    ),
    "scored_pair": Format(
        "A pair with a score per token, by which stages select tokens (SePO) or weigh them (TGDPO, TIS-DPO, cDPO).",
        {
            "prompt": _PARIS,
            "chosen": "It is Paris.",
            "rejected": "It is Lyon.",
            "tokenizer": "5d1f6d2c9b0e4a37",
            "chosen_scores": [0.01, 0.0, 1.5, 0.2],
            "rejected_scores": [0.0, 0.02, -2.25, 0.0, 0.125],
            "chosen_offsets": [[0, 2], [2, 5], [5, 11], [11, 12]],
            "rejected_offsets": [[0, 2], [2, 5], [5, 10], [10, 11], [11, 11]],
            "template": "qwen",
            "prompt_digest": "c1f0a9d2b7e84563",
        },
        {"file_name": "scores.jsonl", "formatting": "scored_pair"},
        (*_PROMPT_CODES, "FP007", "FP008", "FP034", "FP055", "FP056", "FP057", "FP060", "FP260", "FP261"),
    ),
    "ranked": Format(
        "Two or more scored responses (reward models, APO).",
        {"prompt": _PARIS, "responses": ["Paris.", "I do not know.", "Lyon."], "scores": [1.0, 0.2, -1.0]},
        {"file_name": "ranked.jsonl", "formatting": "ranked"},
        (*_PROMPT_CODES, "FP007", "FP008", "FP050", "FP051", "FP052", "FP053", "FP054", "FP060"),
    ),
    "choice": Format(
        "A multiple-choice question, for the commands that ask models, such as `reversegen`. No stage trains on it.",
        {
            "question": _PARIS,
            "options": {"A": "Lyon", "B": "Paris", "C": "Nice"},
            "answer": "B",
            "subject": "geography",
        },
        {"file_name": "questions.jsonl", "formatting": "choice"},
        (
            "FP008",
            "FP010",
            "FP011",
            "FP012",
            "FP015",
            "FP023",
            "FP060",
            "FP088",
            "FP117",
            "FP280",
            "FP281",
            "FP282",
            "FP283",
        ),
    ),
}


def fields_of(formatting: str, row: dict[str, object]) -> list[tuple[str, str]]:
    """(field, what it holds) for each field that the format's rows may have, those of the example first."""
    texts = dict(FIELD_TEXTS)
    if formatting == "negatives":
        texts["rejected"] = "text, optional: the rejected response of the source data"
    return [(name, texts[name]) for name in sorted(FIELDS[formatting], key=lambda name: name not in row)]


def markdown() -> str:
    """The text of dataset_info/README.md."""
    parts = [_INTRODUCTION]
    for name, shown in FORMATS_SHOWN.items():
        entry = json.dumps({f"my_{name}": shown.entry}, indent=2)
        targets = [target for target in TARGETS[name] if target != name]
        parts += [
            f"## {name}",
            shown.purpose,
            _box([("field", "what it holds"), *fields_of(name, shown.row)]),
            "One record:",
            f"```json\n{dumps(shown.row)}\n```",
            "Its entry in `dataset_info.json`:",
            f"```json\n{entry}\n```",
            f"`finepref convert --from {name} --to` {_code_list(targets)}",
            f"Error codes, besides those of any file: {_code_list(sorted({*shown.codes}))}.",
        ]
    foreign = [layout for layout in BUILT_IN if layout.name not in FORMATS_SHOWN]
    parts += [
        _LAYOUTS,
        _table(("layout", "gives", "source", "recognised by", "other columns read"), map(_told, foreign)),
    ]
    rows = [(layout.name, f"`{dumps(layout.sample)}`") for layout in foreign]
    parts += ["A row of each:", _table(("layout", "a row"), rows)]
    single = [(layout.name, layout.source, f"`{dumps(layout.sample)}`") for layout in SUPERVISED]
    parts += [_SUPERVISED, _table(("layout", "source", "a row"), single)]
    parts += [_CODES, _table(("code", "meaning"), list(CODES.items()))]
    return "\n\n".join(parts) + "\n"


def _told(layout: Layout) -> tuple[str, ...]:
    """A layout as a row of the table: name, format, source, what its rows must have, and what else is read of them."""
    needs = ", ".join(map(_need, layout.needs)) or "only named"
    if not layout.by_row:
        needs += "; by `finepref convert`"
    named = {path.partition(".")[0] for need in layout.needs for path in need.partition(":")[0].split("|")}
    others = sorted(layout.columns - named) if layout.by_row else []
    return layout.name, layout.gives, layout.source, needs, _code_list(others)


def _need(need: str) -> str:
    """A condition of `Layout.needs` in words."""
    names, _, kind = need.lstrip("!").partition(":")
    columns = " or ".join(f"`{name}`" for name in names.split("|"))
    if need.startswith("!"):
        return f"no {columns}"
    return f"{columns} ({KIND_TEXTS[kind]})" if kind else columns


def _code_list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _box(rows: list[tuple[str, str]]) -> str:
    """An ASCII table whose first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [f"| {left:{widths[0]}} | {right:{widths[1]}} |" for left, right in rows]
    return "\n".join(["```text", rule, lines[0], rule, *lines[1:], rule, "```"])


def _table(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return table(heading, [(f"`{row[0]}`", *row[1:]) for row in rows])


_INTRODUCTION = f"""\
<!-- Generated by `finepref formats --write`; edit plugins/finepref/formats/catalogue.py instead. -->
# Data formats

A file holds one row per record: JSON Lines, one JSON array, .csv, .tsv, .parquet or .arrow; .gz and .zst too, except
for parquet and arrow. A folder holds files of one kind. `finepref validate FILE --format NAME` or `finepref validate
DATASET` reports every problem of every row, with its code, line and field.
Training starts only if there is none, unless `bad_rows: skip` leaves such rows out and counts them. Nothing is filled
in or repaired.

In LLaMA-Factory's `dataset_info.json` (this folder is a `dataset_dir`), `formatting` names the format, and `columns`
maps fields to the columns of your file: `{{"prompt": "question"}}`. `file_name` may be a folder of files; a relative
path must stay inside the dataset folder. Besides LLaMA-Factory's own keys an entry may have
`error_type` (the type of undesirable `feedback` rows that name none) and `make` (the command that makes the file).

Rules for all formats:

- UTF-8, with or without a byte order mark. Only `\\n` ends a line; a `\\r` before it is white space. Empty lines are
  skipped. A line has {MAX_LINE // 2**20} MiB at most, an array {MAX_ARRAY // 2**30} GiB.
- A text must contain a character that is not white space. It is used unchanged, with the white space around it; two
  texts that differ only in that count as equal.
- A null is a value of the wrong type; omit the key instead. (Exceptions: a null or empty `system` is no system turn;
  in rows that a host read through Arrow, an absent key is a null.)
- A message may also have id, name, weight, train, training, loss and loss_scale, or any key that is null.
- Roles are system, user (human), assistant (gpt), function_call and observation (tool). User and observation take
  turns with assistant and function_call; several observations may follow one call of several functions.
- `tools` may stand in rows of every format and layout, as may OpenAI's `tool_calls`. The text of a function_call is
  JSON, {{name, arguments}} or a list of them. A response that calls functions is `{{"function_call": TEXT}}`, not a
  text. The template writes all of this; a row that it cannot write is refused (FP242).
- Columns that a format does not know are ignored; the report counts them. Not so `images`, `videos` and `audios` that
  are not empty: such rows are refused (FP088).
- In a table (.csv, .tsv) an empty cell is an absent key. Numbers, true and false, and JSON lists and objects are read
  where the format wants them; elsewhere a cell is a text. Parquet, arrow and zst need pyarrow (FP110).
- An entry with `hf_hub_url` or `ms_hub_url` and without a `file_name` is loaded by the package `datasets` or
  `modelscope`; without the package (FP110) or the hub (FP111) it is one problem.
- Ids are unique in a data set, in all its files. A row without one gets 16 hex digits of a hash: of the prompt for
  `negatives`, of prompt and response for `feedback`, of all content otherwise. The same content twice is therefore
  reported as FP060.
- A span is `{{"start": 0, "end": 5}}`, or with `"weight": 0.5`, or `[0, 5]`, or `[0, 5, 0.5]`: characters (code
  points, as in Python) from start up to, not including, end. Spans of one text may touch, but not overlap.
- A tokenizer's fingerprint is 16 hex digits of its normaliser, pre-tokeniser and model
  (`finepref.formats.scores.fingerprint`). Token scores are refused for any other tokenizer; with offsets they can be
  mapped to it.
- Token scores belong to one prompt. With a `prompt_digest` they are refused if a run with the same tokenizer gives the
  prompt other tokens, as another template does. A file without digests, or with scores that are mapped, is not
  compared.
- An error type is a letter, then up to 63 letters, digits, `_` or `-`. The paper's are {", ".join(ERROR_TYPES)};
  any other name is allowed too, unless a stage or `--error-types` restricts them."""

_LAYOUTS = """\
## Other layouts

Rows as hosts, hubs and the papers' code have them are read as they are: name the layout as `formatting` in
`dataset_info.json`, with `--format` or with `--from`. Without a name, `finepref validate FILE` recognises the layout,
by all rows, and says what it took the file for; a file of several layouts is refused (FP092). LLaMA-Factory's own
entries (`formatting` alpaca, sharegpt or openai with `ranking: true` or a `kto_tag` column, their `columns` and
`tags`) are read without a change. Another package adds layouts by an entry point of the group `finepref.layouts`.
Where messages have a system turn, a `system` column with another text is not used, as in LLaMA-Factory, and noted
(FP121). Scores beside two dialogues are no `margin`.

Of sets with spans or steps, what has no place in the record is told as a note (FP100 to FP103, FP122): the row is
good, and `finepref validate` counts the notes beside the problems. Rows that are right, and so give no pair (FP120),
are left out, counted among the rejected ones and named, but they stop no run and do not count for `max_bad`. Marks
that overlap are one span. Rows that hold one response (Math-Shepherd, ProcessBench, HaluEval) are `feedback`, which
has no spans.

The table has what a row must have to be recognised, and which other columns are read."""

_SUPERVISED = """\
Sets of single good answers, as for supervised training, are input of the commands that ask models (`seapo inject`,
`apo`, `reversegen`, `judge`, `dedup`), not of a stage, `validate` or `convert`:"""

_CODES = """\
## Error codes

FP001 to FP009 and FP097: any file. FP016, FP017 and FP070 to FP076: `dataset_info.json`. FP062 to FP066: feedback
rows joined by prompt, where a record needs both labels (`convert`, OpenRLHF). FP047, FP067 and FP068: conversions.
FP080 to FP087, FP090 and FP094 to FP096: other layouts. FP100 to FP108: layouts with spans or steps, of which FP100 to
FP103 are notes that leave a row good. FP091: `bad_rows: skip`. FP092 and FP093: recognising a layout. FP110 and FP111:
reading data. FP112: a command that needs other rows. FP120: a good row without a record. FP121 and FP122: notes.
FP280 to FP284: multiple-choice questions. FP320 to FP326: `finepref annotate`. All other FP2nn: a stage."""
