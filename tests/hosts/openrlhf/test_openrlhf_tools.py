"""Rows with tools: the chat template writes them as `tools` and `tool_calls`, or the row is refused by name."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from finepref.formats.records import FunctionCall, Message, Pair
from sample_rows import span_rows
from tiny_llama import CHATML

TOOLED = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 2}'}}]}
PAIRS = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in span_rows()]


def asked(row: dict) -> list[dict]:
    return [{"role": "user", "content": row["prompt"]}, CALL, {"role": "tool", "content": "5"}]


def preference(row: dict) -> dict:
    """A row of TRL's conversational form; every other rejected response is a call."""
    sides = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    if len(row["prompt"]) % 2:
        sides["rejected"] = [CALL]
    return {"prompt": asked(row), "tools": TOOLS, **sides}


def labelled(row: dict) -> list[dict]:
    made = []
    for side, label in (("chosen", True), ("rejected", False)):
        said = {"role": "assistant", "content": row[side]}
        made.append({"messages": [*asked(row), said], "label": label, "error_type": None if label else "logic"})
    return [{name: value for name, value in each.items() if value is not None} | {"tools": TOOLS} for each in made]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["tdpo", "kto"])
def test_rows_with_tools_train_with_a_chat_template_that_writes_them(train, tmp_path, name):
    rows = [*map(preference, PAIRS)] if name == "tdpo" else [each for row in PAIRS for each in labelled(row)]
    given = {"tdpo__masks": "none"} if name == "tdpo" else {}
    file = write(tmp_path / "rows.jsonl", rows)
    done = train(name, data__dataset=file, data__tokenizer_chat_template=TOOLED, data__max_len=512, **given)
    assert done.receipt["rows"]["in_training_set"] == done.receipt["rows"]["read"] == len(rows)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"data__tokenizer_chat_template": CHATML}, "tools: the chat template does not write the tools"),
        ({"data__apply_chat_template": False}, "tools: tools are written by the chat template: give --data.apply"),
    ],
)
def test_rows_with_tools_that_no_template_writes_are_refused_with_file_and_line(attempt, tmp_path, given, told):
    file = write(tmp_path / "rows.jsonl", map(preference, PAIRS))
    done = attempt("tdpo", data__dataset=file, tdpo__masks="none", **given)
    assert done.code != 0
    assert f"FP242 {file}:1 {told}" in done.output
    assert done.output.count("Traceback") == 0


@pytest.fixture
def encoder(tiny_model):
    from finepref.hosts.openrlhf.data import Encoder
    from transformers import AutoTokenizer

    def made(**given):
        settings = {"max_len": 512, "apply_chat_template": True, "input_template": None} | given
        settings = {"tokenizer_chat_template": TOOLED} | settings
        return Encoder(AutoTokenizer.from_pretrained(tiny_model), SimpleNamespace(**settings), policy="host")

    return made


def test_prompt_and_call_have_the_tokens_of_the_chat_template_with_tools(encoder):
    made = encoder()
    call = FunctionCall('{"name": "add", "arguments": {"a": 2}}')
    prompt = (Message("tools", json.dumps(TOOLS)), Message("user", "2 + 3?"))
    problems = []
    ids, (response, text) = made.encode(Pair("a", prompt, call, "5"), {"chosen": call, "rejected": "5"}, problems)
    assert not problems
    turns = [{"role": "user", "content": "2 + 3?"}]
    host = made.tokenizer.apply_chat_template(turns, tools=TOOLS, tokenize=False, add_generation_prompt=True)
    assert made.tokenizer.decode(ids) == host
    assert made.tokenizer.decode(response.ids) == f"{call}<|im_end|>\n"
    assert response.start == 0
    assert made.tokenizer.decode(text.ids) == "5<|im_end|>\n"


def test_a_response_that_calls_functions_needs_the_chat_template(encoder):
    call = FunctionCall('{"name": "add", "arguments": {"a": 2}}')
    problems = []
    plain = encoder(apply_chat_template=False)
    assert plain.encode(
        Pair("a", (Message("user", "q"),), "5", call), {"chosen": "5", "rejected": call}, problems
    ) == (
        [],
        [],
    )
    assert [(each.code, each.field) for each in problems] == [("FP242", "rejected")]
