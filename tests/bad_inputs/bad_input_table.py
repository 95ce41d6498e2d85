"""The catalogue of bad inputs: what a file holds, and every problem that must be found in it, as code, line and field.

Each case also says how many rows there are and how many are good, so that a row can neither be lost nor let through.
"""

from __future__ import annotations

import json
from typing import NamedTuple

Found = tuple[str, int, str]
"""(code, line, field)"""


class Case(NamedTuple):
    """One bad file. `columns`, `error_type` and `error_types` are passed to `check_file`."""

    name: str
    formatting: str
    content: bytes
    rows: int
    good: int
    found: list[Found]
    options: dict[str, object] = {}


PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
SPAN_PAIR = {"prompt": "q", "chosen": "a good answer", "rejected": "a bad answer", "rejected_spans": [[2, 5]]}
SCORED_PAIR = PAIR | {"tokenizer": "0123456789abcdef", "chosen_scores": [0.5, 1.0], "rejected_scores": [-1.0]}
RANKED = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [2, 1, 0]}
FEEDBACK = {"prompt": "q", "response": "a", "label": True}
NEGATIVES = {"prompt": "q", "chosen": "a good answer", "negatives": {"logic": "a bad answer"}}
MIB = 2**20


def lines(*rows: object) -> bytes:
    """Rows as JSON Lines; bytes stand for themselves."""
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def one(name: str, formatting: str, row: object, *found: tuple[str, str], **options: object) -> Case:
    """A good row, then the bad one in line 2, then a good one (feedback: with both labels)."""
    base = {
        "pair": PAIR,
        "span_pair": SPAN_PAIR,
        "scored_pair": SCORED_PAIR,
        "ranked": RANKED,
        "feedback": FEEDBACK,
        "negatives": NEGATIVES,
    }[formatting]
    before = base | {"prompt": "first"}
    after = base | {"prompt": "last"} | ({"label": False} if formatting == "feedback" else {})
    columns = options.get("columns")
    if isinstance(columns, dict):
        before, after = ({columns.get(name, name): value for name, value in good.items()} for good in (before, after))
    return Case(
        name, formatting, lines(before, row, after), 3, 2, [(code, 2, field) for code, field in found], options
    )


def raw(name: str, line: bytes, *found: tuple[str, str]) -> Case:
    """Bytes that cannot be decoded to a row, between two good rows."""
    return one(name, "pair", line + b"\n", *found)


def without(row: dict[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in row.items() if name not in names}


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"turn {i}"} for i, role in enumerate(roles)]


ENCODINGS = [
    raw("latin-1 bytes", '{"prompt": "é", "chosen": "a", "rejected": "b"}'.encode("latin-1"), ("FP003", "")),
    raw("a truncated multi-byte character", '{"prompt": "é'.encode()[:-1], ("FP003", "")),
    raw("an overlong encoding", b'{"prompt": "\xc0\xaf", "chosen": "a", "rejected": "b"}', ("FP003", "")),
    raw("a surrogate in CESU-8", b'{"prompt": "\xed\xa0\x80", "chosen": "a", "rejected": "b"}', ("FP003", "")),
    raw("a lone surrogate escape", b'{"prompt": "\\ud83d", "chosen": "a", "rejected": "b"}', ("FP008", "prompt")),
    raw(
        "surrogate escapes in the wrong order",
        b'{"chosen": "\\udc00\\ud83d", "prompt": "q", "rejected": "b"}',
        ("FP008", "chosen"),
    ),
    raw(
        "a lone surrogate in a key",
        b'{"\\udfff": 1, "prompt": "q", "chosen": "a", "rejected": "b"}',
        ("FP008", "\\udfff"),
    ),
    raw(
        "a lone surrogate deep inside",
        b'{"prompt": "q", "chosen": "a", "rejected": "b", "x": [{"y": "\\uD800"}]}',
        ("FP008", "x"),
    ),
    Case("UTF-16 with a byte order mark", "pair", json.dumps(PAIR).encode("utf-16"), 0, 0, [("FP003", 0, "")]),
    Case("UTF-8 with two byte order marks", "pair", b"\xef\xbb\xbf" * 2 + lines(PAIR), 1, 0, [("FP004", 1, "")]),
    Case(
        "a byte order mark in the middle", "pair", lines(PAIR, b"\xef\xbb\xbf" + lines(PAIR)), 2, 1, [("FP004", 2, "")]
    ),
    Case(
        "a damaged gzip file",
        "pair",
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\x56\x50\x4a\xff\n",
        0,
        0,
        [("FP001", 0, "")],
    ),
    raw("a zero byte", b'{"prompt": "\x00", "chosen": "a", "rejected": "b"}', ("FP004", "")),
    raw("a control character in a text", b'{"prompt": "\x1b[31m", "chosen": "a", "rejected": "b"}', ("FP004", "")),
]

JSON_SHAPES = [
    Case("an empty file", "pair", b"", 0, 0, [("FP002", 0, "")]),
    Case("only white space", "pair", b" \n\r\n\t\n", 0, 0, [("FP002", 0, "")]),
    Case("an empty array", "pair", b"[\n]\n", 0, 0, [("FP002", 0, "")]),
    raw("a torn line", b'{"prompt": "q", "chosen": "a", "rej', ("FP004", "")),
    raw("single quotes", b"{'prompt': 'q', 'chosen': 'a', 'rejected': 'b'}", ("FP004", "")),
    raw("a trailing comma", b'{"prompt": "q", "chosen": "a", "rejected": "b",}', ("FP004", "")),
    raw("two objects in a line", lines(PAIR, PAIR).replace(b"\n", b" "), ("FP004", "")),
    raw("a lone carriage return as line end", lines(PAIR, PAIR)[:-1].replace(b"\n", b"\r"), ("FP004", "")),
    raw("a comment", b"// good pairs", ("FP004", "")),
    raw("an array as a row", b'["q", "a", "b"]', ("FP005", "")),
    raw("a string as a row", b'"q"', ("FP005", "")),
    raw("null as a row", b"null", ("FP005", "")),
    raw("a number as a row", b"17", ("FP005", "")),
    raw("a key twice", b'{"prompt": "q", "chosen": "a", "chosen": "c", "rejected": "b"}', ("FP006", "chosen")),
    raw(
        "a key twice deep inside",
        b'{"prompt": "q", "chosen": "a", "rejected": "b", "x": {"y": 1, "y": 2}}',
        ("FP006", "y"),
    ),
    raw("NaN", b'{"prompt": "q", "chosen": "a", "rejected": "b", "margin": NaN}', ("FP007", "")),
    raw("minus Infinity", b'{"prompt": "q", "chosen": "a", "rejected": "b", "margin": -Infinity}', ("FP007", "")),
    raw(
        "a number beyond a double", b'{"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1e999}', ("FP007", "")
    ),
    raw(
        "an integer beyond 64 bits",
        b'{"prompt": "q", "chosen": "a", "rejected": "b", "margin": 9223372036854775808}',
        ("FP007", "margin"),
    ),
    raw("an integer of 5000 digits", b'{"prompt": "q", "margin": ' + b"9" * 5000 + b"}", ("FP007", "")),
    raw("brackets nested 100,000 deep", b'{"prompt": ' + b"[" * 100_000, ("FP009", "")),
    raw("a line over 16 MiB", b'{"prompt": "' + b"q" * (16 * MIB) + b'"}', ("FP009", "")),
    Case(
        "an array with a bad row",
        "pair",
        json.dumps([PAIR, {}, PAIR | {"id": "x"}], indent=1).encode(),
        3,
        2,
        [("FP010", 7, name) for name in ("prompt", "chosen", "rejected")],
    ),
    Case(
        "an array whose second row is torn",
        "pair",
        b"[" + lines(PAIR)[:-1] + b',\n{"prompt": ',
        2,
        1,
        [("FP004", 2, "")],
    ),
    Case("an array without its end", "pair", b"[\n" + lines(PAIR), 2, 1, [("FP004", 3, "")]),
    Case("an array without commas", "pair", b"[\n" + lines(PAIR, PAIR) + b"]", 2, 1, [("FP004", 3, "")]),
    Case("an array with text after it", "pair", b"[" + lines(PAIR) + b"]\n{}", 2, 1, [("FP004", 3, "")]),
    Case(
        "an array with a key twice in a row",
        "pair",
        b'[{"prompt": 1, "prompt": 2},\n' + lines(PAIR) + b"]",
        2,
        1,
        [("FP006", 1, "prompt")],
    ),
    Case("an array that is not UTF-8", "pair", b"[\n" + lines(PAIR) + b',\n"\xff"]', 1, 0, [("FP003", 4, "")]),
    Case("JSON Lines that begin with an array", "pair", lines([], PAIR), 1, 0, [("FP004", 2, "")]),
]

FIELDS = [
    one("no prompt", "pair", without(PAIR, "prompt"), ("FP010", "prompt")),
    one("no chosen", "pair", without(PAIR, "chosen"), ("FP010", "chosen")),
    one("an empty object", "negatives", {}, ("FP010", "prompt"), ("FP010", "chosen"), ("FP010", "negatives")),
    one("an empty chosen", "pair", PAIR | {"chosen": ""}, ("FP012", "chosen")),
    one("a chosen of white space", "pair", PAIR | {"chosen": " \n\u3000\t"}, ("FP012", "chosen")),
    one("an empty prompt", "negatives", NEGATIVES | {"prompt": ""}, ("FP012", "prompt")),
    one("a null chosen", "pair", PAIR | {"chosen": None}, ("FP011", "chosen")),
    one("a number as a text", "pair", PAIR | {"rejected": 12}, ("FP011", "rejected")),
    one("a list of messages as chosen", "pair", PAIR | {"chosen": turns("assistant")}, ("FP011", "chosen")),
    one("a margin as a text", "pair", PAIR | {"margin": "1.5"}, ("FP011", "margin")),
    one("a margin that is true", "pair", PAIR | {"margin": True}, ("FP011", "margin")),
    one("chosen equal to rejected", "pair", PAIR | {"rejected": "good"}, ("FP034", "rejected")),
    one(
        "chosen and rejected that differ in white space", "pair", PAIR | {"rejected": " good\n"}, ("FP034", "rejected")
    ),
    one("an id that is a fraction", "pair", PAIR | {"id": 7.5}, ("FP011", "id")),
    one("an id that is true", "pair", PAIR | {"id": True}, ("FP011", "id")),
    one("images", "pair", PAIR | {"images": ["cat.png"]}, ("FP088", "images")),
    one("two sides of a turn of history missing", "pair", PAIR | {"history": [["q"]]}, ("FP021", "history[0]")),
    one("an input that is a number", "pair", PAIR | {"input": 3}, ("FP011", "input")),
    one("an empty id", "pair", PAIR | {"id": ""}, ("FP023", "id")),
    one("an id with a line break", "pair", PAIR | {"id": "a\nb"}, ("FP023", "id")),
    one("an id of 257 characters", "pair", PAIR | {"id": "x" * 257}, ("FP023", "id")),
    one("a blank system turn", "pair", PAIR | {"system": " "}, ("FP012", "system")),
    one(
        "a field under a name that columns give away",
        "pair",
        PAIR,
        ("FP010", "question"),
        columns={"prompt": "question"},
    ),
]

MESSAGES = [
    one("prompt and messages", "pair", PAIR | {"messages": turns("user")}, ("FP013", "prompt")),
    one("no message", "pair", without(PAIR, "prompt") | {"messages": []}, ("FP012", "messages")),
    one("messages as a text", "pair", without(PAIR, "prompt") | {"messages": "q"}, ("FP011", "messages")),
    one("a message as a text", "pair", without(PAIR, "prompt") | {"messages": ["q"]}, ("FP011", "messages[0]")),
    one(
        "an unknown role",
        "pair",
        without(PAIR, "prompt") | {"messages": turns("critic")},
        ("FP020", "messages[0].role"),
    ),
    one(
        "a role in capitals",
        "pair",
        without(PAIR, "prompt") | {"messages": turns("User")},
        ("FP020", "messages[0].role"),
    ),
    one(
        "a message without content",
        "pair",
        without(PAIR, "prompt") | {"messages": [{"role": "user"}]},
        ("FP010", "messages[0].content"),
    ),
    one(
        "a message with an empty content",
        "pair",
        without(PAIR, "prompt") | {"messages": [{"role": "user", "content": ""}]},
        ("FP012", "messages[0].content"),
    ),
    one(
        "a message with more than role and content",
        "pair",
        without(PAIR, "prompt") | {"messages": [{"role": "user", "content": "q", "thinking": "hm"}]},
        ("FP014", "messages[0].thinking"),
    ),
    one(
        "a prompt that ends in an assistant turn",
        "pair",
        without(PAIR, "prompt") | {"messages": turns("user", "assistant")},
        ("FP022", "messages"),
    ),
    one(
        "two user turns in a row",
        "pair",
        without(PAIR, "prompt") | {"messages": turns("user", "user")},
        ("FP021", "messages[1]"),
    ),
    one(
        "an assistant turn first",
        "pair",
        without(PAIR, "prompt") | {"messages": turns("assistant", "user")},
        ("FP021", "messages[0]"),
    ),
    one(
        "a system turn in the middle",
        "pair",
        without(PAIR, "prompt") | {"messages": turns("user", "system", "user")},
        ("FP021", "messages[1]"),
    ),
    one("only a system turn", "pair", without(PAIR, "prompt") | {"messages": turns("system")}, ("FP022", "messages")),
]

IDENTITIES = [
    one("no negatives field", "negatives", without(NEGATIVES, "negatives"), ("FP010", "negatives")),
    one("no negative in it", "negatives", NEGATIVES | {"negatives": {}}, ("FP030", "negatives")),
    one("negatives as a list", "negatives", NEGATIVES | {"negatives": ["bad"]}, ("FP011", "negatives")),
    one("an empty negative", "negatives", NEGATIVES | {"negatives": {"logic": ""}}, ("FP012", "negatives.logic")),
    one(
        "a negative equal to the positive",
        "negatives",
        NEGATIVES | {"negatives": {"logic": "a good answer "}},
        ("FP032", "negatives.logic"),
    ),
    one(
        "two equal negatives",
        "negatives",
        NEGATIVES | {"negatives": {"logic": "bad", "correctness": "bad"}},
        ("FP033", "negatives.logic"),
    ),
    one(
        "an error type with a space",
        "negatives",
        NEGATIVES | {"negatives": {"bad logic": "b"}},
        ("FP031", "negatives.bad logic"),
    ),
    one("an error type that is empty", "negatives", NEGATIVES | {"negatives": {"": "b"}}, ("FP031", "negatives.")),
    one(
        "an error type that is no ASCII name",
        "negatives",
        NEGATIVES | {"negatives": {"λogic": "b"}},
        ("FP031", "negatives.λogic"),
    ),
    one(
        "an error type that moves the cursor",
        "negatives",
        NEGATIVES | {"negatives": {"\x1b[2J": "b"}},
        ("FP031", "negatives.\\x1b[2J"),
    ),
    one(
        "an unknown error type where some are asked for",
        "negatives",
        NEGATIVES | {"negatives": {"style": "b"}},
        ("FP036", "negatives.style"),
        error_types=["correctness", "logic", "hallucination"],
    ),
    one(
        "an unknown error type in feedback",
        "feedback",
        FEEDBACK | {"label": False, "error_type": "style"},
        ("FP036", "error_type"),
        error_types=["logic"],
    ),
    one(
        "an error type on a desirable response",
        "feedback",
        FEEDBACK | {"error_type": "logic"},
        ("FP035", "error_type"),
    ),
    one(
        "negatives and one column per type",
        "negatives",
        NEGATIVES | {"l": "b"},
        ("FP013", "negatives"),
        columns={"logic": "l"},
    )._replace(good=2),
    one(
        "a negatives column for a type that is empty",
        "negatives",
        without(NEGATIVES, "negatives") | {"l": " "},
        ("FP012", "l"),
        columns={"hallucination": "l"},
    )._replace(good=2),
]

LABELS_AND_SCORES = [
    one("no label", "feedback", without(FEEDBACK, "label"), ("FP010", "label")),
    one("a label that is 2", "feedback", FEEDBACK | {"label": 2}, ("FP011", "label")),
    one("a label as a text", "feedback", FEEDBACK | {"label": "true"}, ("FP011", "label")),
    one("no response", "feedback", without(FEEDBACK, "response"), ("FP010", "response")),
    one(
        "messages that do not end in a response",
        "feedback",
        {"messages": turns("user"), "label": True},
        ("FP010", "messages"),
    ),
    one("one response", "ranked", RANKED | {"responses": ["a"], "scores": [1]}, ("FP050", "responses")),
    one("a score too many", "ranked", RANKED | {"scores": [1, 2, 3, 4]}, ("FP051", "scores")),
    one("equal scores", "ranked", RANKED | {"scores": [1, 1, 1.0]}, ("FP052", "scores")),
    one("a null score", "ranked", RANKED | {"scores": [1, None, 2]}, ("FP011", "scores[1]")),
    one("an empty response in a list", "ranked", RANKED | {"responses": ["a", "", "c"]}, ("FP012", "responses[1]")),
    one("an unknown kind", "ranked", RANKED | {"kind": "robot"}, ("FP053", "kind")),
    one(
        "equal responses with different scores",
        "ranked",
        RANKED | {"responses": ["a", "b", "a"]},
        ("FP054", "responses[2]"),
    ),
]

TOKEN_SCORES = [
    one("no token score", "scored_pair", SCORED_PAIR | {"chosen_scores": []}, ("FP057", "chosen_scores")),
    one(
        "a null token score",
        "scored_pair",
        SCORED_PAIR | {"chosen_scores": [1.0, None]},
        ("FP011", "chosen_scores[1]"),
    ),
    one(
        "a token score that is true",
        "scored_pair",
        SCORED_PAIR | {"rejected_scores": [True]},
        ("FP011", "rejected_scores[0]"),
    ),
    one("token scores as a number", "scored_pair", SCORED_PAIR | {"chosen_scores": 1.0}, ("FP011", "chosen_scores")),
    one("token scores without a tokenizer", "scored_pair", without(SCORED_PAIR, "tokenizer"), ("FP010", "tokenizer")),
    one(
        "one side without token scores",
        "scored_pair",
        without(SCORED_PAIR, "rejected_scores"),
        ("FP010", "rejected_scores"),
    ),
    one("an offset too few", "scored_pair", SCORED_PAIR | {"chosen_offsets": [[0, 4]]}, ("FP055", "chosen_offsets")),
    one(
        "an offset beyond the text",
        "scored_pair",
        SCORED_PAIR | {"chosen_offsets": [[0, 2], [2, 5]]},
        ("FP056", "chosen_offsets[1]"),
    ),
    one(
        "offsets out of order",
        "scored_pair",
        SCORED_PAIR | {"chosen_offsets": [[2, 4], [0, 2]]},
        ("FP056", "chosen_offsets[1]"),
    ),
    one(
        "an offset of one number",
        "scored_pair",
        SCORED_PAIR | {"rejected_offsets": [[0]]},
        ("FP056", "rejected_offsets[0]"),
    ),
    one(
        "an offset at a fraction",
        "scored_pair",
        SCORED_PAIR | {"rejected_offsets": [[0, 2.5]]},
        ("FP011", "rejected_offsets[0]"),
    ),
    one("an unknown kind of scores", "scored_pair", SCORED_PAIR | {"score_kind": "logits"}, ("FP260", "score_kind")),
    one(
        "a contrast that is no probability",
        "scored_pair",
        SCORED_PAIR | {"score_kind": "contrast", "rejected_scores": [1.5]},
        ("FP261", "rejected_scores"),
    ),
]

SPANS = [
    one("spans as a text", "span_pair", SPAN_PAIR | {"rejected_spans": "2-5"}, ("FP011", "rejected_spans")),
    one(
        "a span as a number",
        "span_pair",
        SPAN_PAIR | {"rejected_spans": [2, 5]},
        ("FP011", "rejected_spans[0]"),
        ("FP011", "rejected_spans[1]"),
    ),
    one("a span of one number", "span_pair", SPAN_PAIR | {"rejected_spans": [[2]]}, ("FP040", "rejected_spans[0]")),
    one(
        "a span of four numbers",
        "span_pair",
        SPAN_PAIR | {"rejected_spans": [[2, 5, 1, 1]]},
        ("FP040", "rejected_spans[0]"),
    ),
    one(
        "a span without its end",
        "span_pair",
        SPAN_PAIR | {"rejected_spans": [{"start": 2}]},
        ("FP040", "rejected_spans[0]"),
    ),
    one(
        "a span with an unknown key",
        "span_pair",
        SPAN_PAIR | {"rejected_spans": [{"start": 2, "end": 5, "label": "x"}]},
        ("FP040", "rejected_spans[0]"),
    ),
    one(
        "a span at a fraction",
        "span_pair",
        SPAN_PAIR | {"rejected_spans": [[2.0, 5]]},
        ("FP011", "rejected_spans[0].start"),
    ),
    one(
        "a span of booleans",
        "span_pair",
        SPAN_PAIR | {"rejected_spans": [[False, True]]},
        ("FP011", "rejected_spans[0].start"),
        ("FP011", "rejected_spans[0].end"),
    ),
    one(
        "a span before the text",
        "span_pair",
        SPAN_PAIR | {"rejected_spans": [[-3, 5]]},
        ("FP041", "rejected_spans[0]"),
    ),
    one(
        "a span beyond the text",
        "span_pair",
        SPAN_PAIR | {"rejected_spans": [[2, 13]]},
        ("FP041", "rejected_spans[0]"),
    ),
    one(
        "a span in bytes instead of characters",
        "span_pair",
        SPAN_PAIR | {"rejected": "é" * 4, "rejected_spans": [[0, 8]]},
        ("FP041", "rejected_spans[0]"),
    ),
    one(
        "a span without a character",
        "span_pair",
        SPAN_PAIR | {"rejected_spans": [[5, 5]]},
        ("FP042", "rejected_spans[0]"),
    ),
    one(
        "a span that ends before it starts",
        "span_pair",
        SPAN_PAIR | {"rejected_spans": [[5, 2]]},
        ("FP042", "rejected_spans[0]"),
    ),
    one(
        "spans that overlap",
        "span_pair",
        SPAN_PAIR | {"rejected_spans": [[4, 6], [2, 5]]},
        ("FP043", "rejected_spans"),
    ),
    one("a span twice", "span_pair", SPAN_PAIR | {"rejected_spans": [[2, 5], [2, 5]]}, ("FP043", "rejected_spans")),
    one(
        "a weight as a text",
        "span_pair",
        SPAN_PAIR | {"rejected_spans": [[2, 5, "1"]]},
        ("FP011", "rejected_spans[0].weight"),
    ),
    one(
        "spans for a negative that is not there",
        "negatives",
        NEGATIVES | {"spans": {"hallucination": [[0, 1]]}},
        ("FP045", "spans.hallucination"),
    ),
    one(
        "a span beyond its negative",
        "negatives",
        NEGATIVES | {"spans": {"logic": [[0, 99]]}},
        ("FP041", "spans.logic[0]"),
    ),
    one("side 2", "span_pair", SPAN_PAIR | {"side": 2}, ("FP046", "side")),
    one("side 1 with spans in rejected", "span_pair", SPAN_PAIR | {"side": 1}, ("FP046", "side")),
    one("side -1 without spans", "span_pair", without(SPAN_PAIR, "rejected_spans") | {"side": -1}, ("FP046", "side")),
    one("side true", "span_pair", SPAN_PAIR | {"side": True}, ("FP046", "side")),
]

OTHER_FORMATS = [
    one("a pair among negatives", "negatives", PAIR, ("FP015", "negatives")),
    one("a negatives row among pairs", "pair", NEGATIVES, ("FP015", "rejected")),
    one("a ranked row among pairs", "pair", RANKED, ("FP015", "chosen")),
    one("a pair among scored pairs", "scored_pair", PAIR, ("FP015", "tokenizer")),
    one("a feedback row among negatives", "negatives", FEEDBACK, ("FP015", "chosen")),
    one("a pair among feedback", "feedback", PAIR, ("FP015", "response")),
    one(
        "a masked_region row among span pairs",
        "span_pair",
        {"prompt": "q", "correct_response": "a", "incorrect_response": "b", "masked_region": [0, 1, 1]},
        ("FP015", "chosen"),
    ),
    one("an APO row among ranked", "ranked", {"text": ["q<sep>a", "q<sep>b"], "scores": [1, 0]}, ("FP015", "prompt")),
    one(
        "a ReverseGen row among pairs", "pair", {"prompt": "q", "positive": "a", "negative": "b"}, ("FP015", "chosen")
    ),
]

SETS = [
    Case(
        "an id twice",
        "pair",
        lines(PAIR | {"id": "x"}, PAIR | {"id": "y"}, PAIR | {"id": "x", "prompt": "other"}),
        3,
        2,
        [("FP060", 3, "id")],
    ),
    Case("a row twice", "pair", lines(PAIR, PAIR), 2, 1, [("FP060", 2, "id")]),
    Case(
        "a prompt twice in negatives without ids",
        "negatives",
        lines(NEGATIVES, NEGATIVES | {"chosen": "another"}),
        2,
        1,
        [("FP060", 2, "id")],
    ),
    Case(
        "a response with both labels",
        "feedback",
        lines(FEEDBACK, FEEDBACK | {"label": False}, FEEDBACK | {"response": "b", "label": False}),
        3,
        2,
        [("FP060", 2, "id")],
    ),
    Case(
        "only desirable feedback",
        "feedback",
        lines(FEEDBACK, FEEDBACK | {"prompt": "p"}),
        2,
        2,
        [("FP061", 0, "label")],
    ),
    Case("only undesirable feedback", "feedback", lines(FEEDBACK | {"label": False}), 1, 1, [("FP061", 0, "label")]),
    Case(
        "only bad rows of one label",
        "feedback",
        lines(FEEDBACK, FEEDBACK | {"label": False, "response": ""}),
        2,
        1,
        [("FP061", 0, "label"), ("FP012", 2, "response")],
    ),
    Case("an unknown format", "negativs", lines(NEGATIVES), 0, 0, [("FP016", 0, "formatting")]),
    Case(
        "a column mapping of an unknown field",
        "pair",
        lines(PAIR),
        0,
        0,
        [("FP017", 0, "columns.choosen")],
        {"columns": {"choosen": "best"}},
    ),
    Case(
        "a column mapping of a host column",
        "negatives",
        lines(NEGATIVES),
        0,
        0,
        [("FP017", 0, "columns.kto_tag")],
        {"columns": {"kto_tag": "label"}},
    ),
    Case(
        "two fields from one column",
        "pair",
        lines(PAIR),
        0,
        0,
        [("FP017", 0, "columns.rejected")],
        {"columns": {"chosen": "x", "rejected": "x"}},
    ),
    Case(
        "a column name that is a number",
        "pair",
        lines(PAIR),
        0,
        0,
        [("FP017", 0, "columns.chosen")],
        {"columns": {"chosen": 3}},
    ),
]

CASES = [
    *ENCODINGS,
    *JSON_SHAPES,
    *FIELDS,
    *MESSAGES,
    *IDENTITIES,
    *LABELS_AND_SCORES,
    *TOKEN_SCORES,
    *SPANS,
    *OTHER_FORMATS,
    *SETS,
]
