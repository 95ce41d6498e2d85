"""Dialogues that a chat template refuses: found before any work, with file, line and field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finepref.cli import app
from finepref.formats.bad_rows import BadRows
from finepref.formats.problems import BadData
from finepref.formats.records import FunctionCall, Message
from finepref.synth.encoding import by_chat_template, by_prompt_and_end_token
from finepref.synth.engines.checkpoint import (
    RefusedByTemplateError,
    ToolsRefusedError,
    prompt_ids,
    rendered,
    template_problems,
)
from finepref.synth.engines.hf import HfEngine
from finepref.synth.reversegen.answer import answer
from finepref.synth.seapo.margins import margins
from tiny_llama import byte_tokenizer, save_tiny_llama
from typer.testing import CliRunner

NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
SYSTEM = (Message("system", "Be terse."), Message("user", "Why?"))


@pytest.fixture(scope="module")
def strict(tmp_path_factory) -> Path:
    """A model whose template, like Gemma's, knows no system turn."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = NO_SYSTEM
    return save_tiny_llama(
        tmp_path_factory.mktemp("strict"), tokenizer, max_position_embeddings=256, tie_word_embeddings=True
    )


@pytest.fixture(scope="module")
def tokenizer(strict):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(strict)


def test_a_system_turn_that_is_refused_is_named_as_the_field(tokenizer):
    with pytest.raises(RefusedByTemplateError, match="System role not supported") as caught:
        rendered(tokenizer, SYSTEM)
    assert caught.value.field == "system"
    two = (Message("user", "a"), Message("user", "b"))
    with pytest.raises(RefusedByTemplateError, match="roles must alternate") as caught:
        rendered(tokenizer, two)
    assert caught.value.field == "prompt"
    (problem,) = template_problems(tokenizer, SYSTEM, file="x.jsonl", line=3)
    assert (problem.code, problem.line, problem.field) == ("FP240", 3, "system")
    assert template_problems(tokenizer, SYSTEM[1:], file="x.jsonl", line=3) == []


def test_a_merged_system_turn_stands_before_the_text_of_the_user(tokenizer):
    assert rendered(tokenizer, SYSTEM, merge_system=True) == "<user>Be terse.\n\nWhy?</s><assistant>"
    assert rendered(tokenizer, SYSTEM[1:], merge_system=True) == "<user>Why?</s><assistant>"
    assert rendered(tokenizer, SYSTEM[1:], answer=False) == "<user>Why?</s>"
    text = tokenizer.decode(prompt_ids(tokenizer, SYSTEM, merge_system=True))
    assert text == "<user>Be terse.\n\nWhy?</s><assistant>"


def test_a_template_that_knows_the_system_turn_is_not_changed_by_merging(tiny_model):
    from transformers import AutoTokenizer

    known = AutoTokenizer.from_pretrained(tiny_model)
    assert rendered(known, SYSTEM, merge_system=True) == rendered(known, SYSTEM)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_answers_of_such_a_model_name_the_row_before_it_is_loaded(strict, tmp_path):
    row = {"id": "p0", "system": "Be terse.", "prompt": "Why?"}
    source, output = write(tmp_path / "x.jsonl", row, {"id": "p1", "prompt": "How?"}), tmp_path / "o.jsonl"
    engine = HfEngine(str(strict))
    with pytest.raises(BadData) as caught:
        answer(source, output, engine=engine, max_new_tokens=2)
    assert str(caught.value).startswith(
        f"FP240 {source}:1 system: the model's chat template refuses the dialogue: System"
    )
    assert "_loaded" not in vars(engine)
    assert not output.exists()
    bad = BadRows(skip=True, max_bad=0.5)
    outcome = answer(source, output, engine=engine, max_new_tokens=2, bad_rows=bad)
    assert (outcome.rows + len(outcome.left_out), bad.codes) == (1, {"FP240": 1})


def test_the_commands_give_code_place_and_field_and_merge_if_asked(strict, tmp_path):
    row = {"id": "p0", "system": "Be terse.", "prompt": "Why?", "chosen": "It is.", "negatives": {"logic": "No."}}
    source = write(tmp_path / "x.jsonl", row)
    asked = [
        "reversegen",
        "answer",
        source,
        "--model",
        strict,
        "--max-new-tokens",
        2,
        "--output",
        tmp_path / "o.jsonl",
    ]
    measured = ["seapo", "margins", "--data", source, "--model", strict, "--output", tmp_path / "m.json"]
    for words in (asked, measured):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 1
        assert f"FP240 {source}:1 system: " in result.output
        merged = CliRunner().invoke(app, [*(str(word) for word in words), "--merge-system"])
        assert "FP240" not in merged.output
    assert json.loads((tmp_path / "m.json").read_text())["overall"]["n"] == 1


def test_margins_of_a_merged_system_turn_are_those_of_the_same_text_in_the_user_turn(strict, tmp_path):
    answers = {"chosen": "It is.", "negatives": {"logic": "No."}}
    one = write(tmp_path / "a.jsonl", {"id": "p", "system": "Be terse.", "prompt": "Why?", **answers})
    two = write(tmp_path / "b.jsonl", {"id": "p", "prompt": "Be terse.\n\nWhy?", **answers})
    found = [
        margins(path, tmp_path / "m.json", model=str(strict), merge_system=True)["records"] for path in (one, two)
    ]
    assert found[0] == found[1]


TOOLED = (
    "{% if tools %}<tools>{{ tools | map(attribute='function.name') | join(',') }}</tools>{% endif %}"
    "{% for m in messages %}<{{ m.role }}{{ m.tool_call_id or '' }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<{{ c.id }}>{{ c.function.name }}({{ c.function.arguments.city }}){% endfor %}"
    "</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
OF_TOOLS = Message("tools", '[{"name": "get_weather", "parameters": {}}]')
CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
OPENAI_CALL = '[{"name": "get_weather", "arguments": "{\\"city\\": \\"Lyon\\"}"}]'
ASKED = (
    OF_TOOLS,
    Message("user", "Weather?"),
    Message("function_call", f"[{CALL}, {CALL}]"),
    Message("observation", "20"),
    Message("observation", "21"),
    Message("function_call", OPENAI_CALL),
    Message("observation", "22"),
)


@pytest.fixture
def tooled():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TOOLED
    return tokenizer


def test_tools_calls_and_results_reach_the_chat_template_as_openai_has_them(tooled):
    assert rendered(tooled, ASKED) == (
        "<tools>get_weather</tools><user>Weather?</s>"
        "<assistant><call00000>get_weather(Paris)<call00001>get_weather(Paris)</s>"
        "<toolcall00000>20</s><toolcall00001>21</s>"
        "<assistant><call00002>get_weather(Lyon)</s><toolcall00002>22</s><assistant>"
    )


def test_a_response_that_calls_functions_is_written_as_a_call(tooled):
    encode = by_chat_template(tooled)
    tokens = encode(ASKED[:2], FunctionCall(CALL))
    assert tooled.decode(tokens.response) == "<call00000>get_weather(Paris)</s>"
    assert (tokens.start, tokens.offsets) == (-1, [])
    assert tooled.decode(encode(ASKED[:2], CALL).response) == f"{CALL}</s>"
    with pytest.raises(ToolsRefusedError, match="only a chat template can write"):
        by_prompt_and_end_token(tooled)(ASKED[:2], FunctionCall(CALL))


@pytest.mark.parametrize(
    ("cut", "told", "field"),
    [
        ("<tools>{{ tools | map(attribute='function.name') | join(',') }}</tools>", "the tools", "tools"),
        (
            "<{{ c.id }}>{{ c.function.name }}({{ c.function.arguments.city }})",
            r"calls of functions \(turn 2\)",
            "prompt",
        ),
    ],
)
def test_a_chat_template_that_leaves_out_tools_or_calls_is_refused_by_name(tooled, cut, told, field):
    tooled.chat_template = TOOLED.replace(cut, "")
    with pytest.raises(ToolsRefusedError, match=f"does not write {told}") as caught:
        rendered(tooled, ASKED)
    assert caught.value.field == field
    (problem,) = template_problems(tooled, ASKED, file="x.jsonl", line=3)
    assert (problem.code, problem.line, problem.field) == ("FP242", 3, field)
    assert rendered(tooled, [turn for turn in ASKED if turn.role == "user"]) == "<user>Weather?</s><assistant>"


def test_a_chat_template_that_leaves_out_results_or_a_call_that_is_none_is_refused_by_name(tooled):
    tooled.chat_template = TOOLED.replace("{{ m.content }}", "{% if m.role != 'tool' %}{{ m.content }}{% endif %}")
    with pytest.raises(ToolsRefusedError, match=r"does not write a tool's result \(turn 3\)"):
        rendered(tooled, ASKED)
    with pytest.raises(ToolsRefusedError, match="the calls are not JSON") as caught:
        rendered(tooled, [Message("user", "q"), Message("function_call", "I call")], answer=False)
    assert caught.value.field == ""


def test_a_system_turn_that_is_refused_is_merged_beside_tools_too(tooled):
    tooled.chat_template = NO_SYSTEM.replace("{% for m", "{% if tools %}<tools>{% endif %}{% for m", 1)
    text = rendered(tooled, [OF_TOOLS, *SYSTEM], merge_system=True)
    assert text == "<tools><user>Be terse.\n\nWhy?</s><assistant>"


def test_a_command_names_the_row_whose_tools_the_template_leaves_out(strict, tmp_path):
    row = {"id": "p0", "prompt": "Why?", "chosen": "It is.", "negatives": {"logic": "No."}}
    source = write(tmp_path / "x.jsonl", row | {"tools": [{"name": "get_weather"}]})
    call = write(tmp_path / "c.jsonl", row | {"chosen": {"function_call": CALL}})
    for path, told in (
        (source, "tools: the chat template does not write the tools"),
        (call, "chosen: the margins are"),
    ):
        words = ["seapo", "margins", "--data", path, "--model", strict, "--output", tmp_path / "m.json"]
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 1
        assert f"FP242 {path}:1 {told}" in result.output
