"""Random rows of LLaMA-Factory's own layouts become the turns and responses that its converters make of them."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from finepref.formats import layouts
from llamafactory.data.converter import AlpacaDatasetConverter, SharegptDatasetConverter
from llamafactory.data.parser import DatasetAttr

ALPACA = {name: name for name in ("system", "history", "chosen", "rejected")} | {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
}
SHAREGPT = {"messages": "talk", "system": "system", "chosen": "w", "rejected": "l"}
TAGS = {"role_tag": "who", "content_tag": "text", "user_tag": "me", "assistant_tag": "you", "system_tag": "rule"}
ENTRIES = {
    "alpaca": {"ranking": True, "columns": ALPACA},
    "alpaca_kto": {"columns": ALPACA | {"kto_tag": "good"}},
    "sharegpt": {"formatting": "sharegpt", "ranking": True, "columns": SHAREGPT, "tags": TAGS},
    "sharegpt_kto": {"formatting": "sharegpt", "columns": SHAREGPT | {"kto_tag": "good"}, "tags": TAGS},
}


def row_of(layout, draw):
    """A row with or without each part that the layout may have."""

    def text():
        return draw.choice("abc") + draw.choice(["", " ", "\n"]) + str(draw.randrange(10**9))

    turns = [(role, text()) for _ in range(draw.randrange(3)) for role in ("me", "you")]
    row = {"system": draw.choice(["", text()]), "good": draw.random() < 0.5}
    if layout.startswith("alpaca"):
        pairs = zip(turns[::2], turns[1::2], strict=True)
        row |= {"instruction": text(), "input": draw.choice(["", text()]), "output": text()}
        row |= {"history": [[user[1], other[1]] for user, other in pairs], "chosen": text(), "rejected": text()}
        return row
    turns.append(("me", text()))
    if layout == "sharegpt_kto":
        turns.append(("you", text()))
    if draw.random() < 0.5:
        turns.insert(0, ("rule", text()))  # beside a column `system` or without
    return row | {
        "talk": [{"who": role, "text": content} for role, content in turns],
        "w": {"who": "you", "text": text()},
        "l": {"who": "you", "text": text()},
    }


def host_row(layout, row):
    """What the host makes of a row: its turns with the system text first, and its responses."""
    entry = ENTRIES[layout]
    attributes = DatasetAttr("file", "mine")
    attributes.join({"formatting": "alpaca", **entry})
    converter = AlpacaDatasetConverter if layout.startswith("alpaca") else SharegptDatasetConverter
    made = converter(attributes, SimpleNamespace(media_dir=""))(row)
    system = [("system", made["_system"])] if made["_system"] else []
    return [*system, *((turn["role"], turn["content"]) for turn in made["_prompt"])], made["_response"]


@pytest.mark.parametrize("layout", ENTRIES)
def test_our_records_have_the_hosts_turns_and_responses(layout):
    draw = random.Random(layout)
    entry = ENTRIES[layout]
    assert layouts.of_entry(entry) == layout
    read = layouts.reader(layout, columns=entry["columns"], tags=entry.get("tags"))
    for _ in range(500):
        row = row_of(layout, draw)
        parsed = read(row, line=1)
        (record,) = parsed if isinstance(parsed, layouts.Noted) else (parsed,)  # FP121: the column is not used
        turns, responses = host_row(layout, row)
        assert [tuple(turn) for turn in record.prompt] == turns, row
        said = [response["content"] for response in responses]
        if layout.endswith("_kto"):
            assert said == ([record.response, ""] if record.label else ["", record.response]), row
        else:
            assert said == [record.chosen, record.rejected], row
