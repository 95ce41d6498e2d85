"""Mutated rows of every layout: whatever a row holds, reading gives records or problems, and never raises.

FINEPREF_MUTATED_ROWS is their number; 20,000 take a minute.
"""

from __future__ import annotations

import copy
import json
import os
import random

import pytest
from finepref.formats.catalogue import FORMATS_SHOWN
from finepref.formats.check import Problem, check_file
from finepref.formats.jsonl import dumps
from finepref.formats.layout_table import BUILT_IN
from finepref.formats.layouts import native_format, reader
from finepref.formats.records import FIELDS, FORMATS, parse, to_row
from hypothesis import given, settings
from hypothesis import strategies as st

settings.register_profile("formats", derandomize=True, deadline=None)
SETTINGS = settings.get_profile("formats")

TURNS = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
GOOD = {
    "pair": {"id": "a", "messages": TURNS, "chosen": "x y", "rejected": "z", "margin": 0.5},
    "span_pair": {
        "prompt": "q",
        "system": "s",
        "chosen": "one two",
        "rejected": "one three",
        "chosen_spans": [{"start": 0, "end": 3}, [4, 7, 0.5]],
    },
    "scored_pair": {
        "prompt": "q",
        "chosen": "one",
        "rejected": "two!",
        "tokenizer": "5d1f6d2c9b0e4a37",
        "chosen_scores": [0.5],
        "rejected_scores": [0.25, -1],
        "chosen_offsets": [[0, 3]],
        "rejected_offsets": [[0, 3], [3, 4]],
    },
    "ranked": {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 0.5, -2], "kind": "apo"},
    "feedback": {"messages": [*TURNS, {"from": "gpt", "value": "r"}], "label": False, "error_type": "logic"},
    "negatives": {
        "prompt": "q",
        "chosen": "good",
        "negatives": {"logic": "bad", "correctness": "worse"},
        "spans": {"logic": [{"start": 0, "end": 3, "weight": 2}]},
        "rejected": "meh",
    },
    "choice": {"id": "a", "question": "q?", "options": ["x", "y", "z"], "answer": "B", "subject": "law"},
    "granular": {"prompt": "q", "correct_response": "one", "incorrect_response": "two", "masked_region": [0, 2, 1]},
    "apo_rm": {"text": ["\n\nHuman: q\n\nAssistant:<sep> a", "\n\nHuman: q\n\nAssistant:<sep> b"], "scores": [1, 0]},
    "reversegen": {"prompt": "q", "positive": "a", "negative": "b"},
    "seapo": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": True},
    "train_detail": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {
            "from": "gpt",
            "value": "one two",
            "train_detail": [{"begin_offset": 0, "end_offset": 2, "train": True}],
        },
        "rejected": {"role": "assistant", "content": "two"},
    },
}
GOOD |= {layout.name: layout.sample for layout in BUILT_IN if layout.name not in GOOD and layout.by_row}
ROUNDS = int(os.environ.get("FINEPREF_MUTATED_ROWS", "5000")) // len(GOOD)
STRANGE = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2**63,
        -(2**63) - 1,
        10**400,
        10**5000,
        0.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *("", " ", "\u3000", "q", "good", "a" * 300, "\ud800", "\udfff\ud800", "\x00", "\x1b[2J", "b<sep>c"),
    *([], {}, [[]], [{}], [None], [0, 1], [0, 1, 2], [1, 0], [[0, 1], [0, 1]], {"start": 0}, {"role": "user"}),
    *(b"bytes", (0, 1), {1: 2}, {"\ud800": "x"}, {"logic": "good"}, {"start": 0, "end": 1, "weight": float("inf")}),
    [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}],
    object(),
]
HOST_KEYS = {"tools", "images", "videos", "audios"}
ODD_KEYS = {"role", "value", "start", "weight", "train_detail", "\ud800", "", "x y"} | HOST_KEYS
KEYS = sorted({name for fields in FIELDS.values() for name in fields} | ODD_KEYS)


def places(value, path=()):
    """The paths of all values inside a value, that of the value itself first."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in inner:
        yield from places(member, (*path, key))


def mutated(good, draw):
    """A good row after one to three changes: a value made strange, taken out, copied to another key, or doubled."""
    row = copy.deepcopy(good)
    for _ in range(draw.randint(1, 3)):
        inside = [path for path in places(row) if path]
        if not inside:
            break
        *way, last = draw.choice(inside)
        holder = row
        for key in way:
            holder = holder[key]
        match draw.randrange(4), holder:
            case 0, _:
                holder[last] = copy.deepcopy(draw.choice(STRANGE))
            case 1, _:
                del holder[last]
            case 2, dict():
                holder[draw.choice(KEYS)] = copy.deepcopy(holder[last])
            case 2, list():
                holder.append(copy.deepcopy(draw.choice(STRANGE)))
            case 3, dict():
                holder[draw.choice(KEYS)] = copy.deepcopy(draw.choice(STRANGE))
            case 3, list():
                holder.insert(0, copy.deepcopy(holder[last]))
    return row


def read(row, layout, **options):
    return reader(layout, file="f", **options)(row, line=7)


def records_of(parsed):
    return parsed if isinstance(parsed, tuple) else (parsed,)


@settings(SETTINGS, max_examples=ROUNDS)
@given(seed=st.integers(0, 2**64 - 1))
def test_a_mutated_row_of_each_layout_gives_records_or_problems_and_nothing_else(seed):
    draw = random.Random(seed)
    for layout in GOOD:
        row = mutated(GOOD[layout], draw)
        parsed = read(row, layout, nulls_absent=draw.random() < 0.3)
        if isinstance(parsed, list):
            assert parsed, row
            for problem in parsed:
                assert isinstance(problem, Problem)
                assert (problem.file, problem.line) == ("f", 7)
                assert str(problem).isprintable(), row
                if layout in FORMATS:
                    assert problem.code in (*FORMATS_SHOWN[layout].codes, "FP005")
        else:
            assert records_of(parsed), row
            for record in records_of(parsed):
                canonical = json.loads(dumps(to_row(record)))
                assert parse(canonical, native_format(layout)) == record, row


TURNS_OF_OLD = [["an old question", "an old answer"]]
HOST_COLUMNS = {"query": "MARK", "input": "MARK", "history": TURNS_OF_OLD}
HOST_COLUMNS |= {name: ["MARK"] for name in ("images", "videos", "audios")}
HOST_COLUMNS["tools"] = [{"name": "MARK"}]


@settings(SETTINGS, max_examples=ROUNDS)
@given(seed=st.integers(0, 2**64 - 1))
def test_no_column_of_the_hosts_is_lost_in_silence(seed):
    """What it holds is in the prompt of each record, or the row is refused."""
    draw = random.Random(seed)
    for layout in GOOD:
        row = mutated(GOOD[layout], draw) if draw.random() < 0.5 else copy.deepcopy(GOOD[layout])
        name = draw.choice([each for each in HOST_COLUMNS if each not in GOOD[layout]])
        row[name] = HOST_COLUMNS[name]
        parsed = read(row, layout)
        if not isinstance(parsed, list):
            mark = "an old answer" if name == "history" else "MARK"
            assert name not in HOST_KEYS - {"tools"}, (layout, row)
            for record in records_of(parsed):
                assert any(mark in turn.content for turn in record.prompt), (layout, row)


@pytest.mark.parametrize("layout", GOOD)
def test_the_rows_that_are_mutated_are_good_to_begin_with(layout):
    for record in records_of(read(GOOD[layout], layout)):
        assert isinstance(record, FORMATS[native_format(layout)])


@settings(SETTINGS, max_examples=1000)
@given(seed=st.integers(0, 2**64 - 1))
def test_a_file_with_damaged_bytes_is_read_to_its_end_and_every_row_is_counted(seed, tmp_path_factory):
    """Bytes are flipped, taken out, doubled or cut off; a good row that is untouched stays good."""
    draw = random.Random(seed)
    layout = draw.choice([*FORMATS])
    lines = [json.dumps(GOOD[layout] | {"id": f"{n}"}).encode() + b"\n" for n in range(4)]
    damaged = bytearray(lines[1])
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(damaged))
        match draw.randrange(4):
            case 0:
                damaged[at] = draw.randrange(256)
            case 1:
                del damaged[at : at + draw.randint(1, 9)]
            case 2:
                damaged[at:at] = bytes(draw.choices(range(256), k=3))
            case 3:
                del damaged[at:]
        damaged = damaged or bytearray(b"\n")
    content = lines[0] + bytes(damaged) + lines[2] + lines[3]
    path = tmp_path_factory.getbasetemp() / "damaged.jsonl"
    path.write_bytes(content)
    report = check_file(path, layout)
    rows = sum(bool(line.strip(b" \t\r")) for line in content.split(b"\n"))
    assert report.rows == rows
    assert report.total_problems >= report.rejected
    assert {problem.line for problem in report.problems} <= {0, *range(1, rows + 2)}
