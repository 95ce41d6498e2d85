"""Tools, calls of functions and their results in rows: one record, however the row writes them."""

from __future__ import annotations

import json

import pytest
from finepref.formats import layouts, tool_calls
from finepref.formats.layout_table import BUILT_IN, recognise
from finepref.formats.records import (
    FORMATS,
    Feedback,
    FunctionCall,
    Message,
    Negatives,
    Pair,
    Ranked,
    SpanPair,
    content_id,
    parse,
    revive,
    to_row,
)
from finepref.formats.row import Span

Q, A = "Weather in Paris?", "It is sunny."
TOOLS = [{"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]
TEXT = json.dumps(TOOLS)
CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
OPENAI_CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
OPENAI_TEXT = json.dumps([OPENAI_CALL["function"]])
OF_TOOLS, USER = Message("tools", TEXT), Message("user", Q)
PROMPT = (OF_TOOLS, USER)


def read(row, layout, **options):
    return layouts.reader(layout, file="f", **options)(row, line=3)


def codes(parsed):
    assert isinstance(parsed, list), parsed
    return [(problem.code, problem.field) for problem in parsed]


@pytest.mark.parametrize("given", [TOOLS, TEXT])
def test_tools_are_the_first_turn_of_the_prompt_however_they_are_written(given):
    row = {"id": "a", "prompt": Q, "chosen": A, "rejected": "No.", "tools": given}
    record = read(row, "pair")
    assert record == Pair("a", PROMPT, A, "No.")
    assert to_row(record) == {"id": "a", "prompt": Q, "tools": TEXT, "chosen": A, "rejected": "No."}


BY_ROW = [layout.name for layout in BUILT_IN if layout.by_row]
OF_CHOICES = [name for name in BY_ROW if layouts.native_format(name) == "choice"]


@pytest.mark.parametrize("layout", OF_CHOICES)
def test_tools_of_a_multiple_choice_question_are_refused(layout):
    assert ("FP283", "tools") in codes(read({**layouts.find(layout).sample, "tools": TOOLS}, layout))


@pytest.mark.parametrize("layout", [name for name in BY_ROW if name not in OF_CHOICES])
def test_tools_are_read_in_every_layout_and_are_not_an_ignored_column(layout):
    sample = layouts.find(layout).sample
    found = read({**sample, "tools": TOOLS}, layout)
    for record in found if isinstance(found, tuple) else (found,):
        assert record.prompt[0] == OF_TOOLS
        assert parse(to_row(record), layouts.native_format(layout)) == record
    assert "tools" in layouts.columns_read(layout)
    renamed = read({**sample, "functions": TEXT}, layout, columns={"tools": "functions"})
    assert (renamed[0] if isinstance(renamed, tuple) else renamed).prompt[0] == OF_TOOLS


CALLED = FunctionCall(CALL)
RECORDS = [
    Pair("a", PROMPT, CALLED, "No."),
    Pair("a", (OF_TOOLS, Message("system", "s"), USER), A, CALLED, 0.5),
    SpanPair("a", PROMPT, CALLED, FunctionCall(CALL.replace("Paris", "Lyon")), (), (Span(0, 3),)),
    Ranked("a", PROMPT, (A, CALLED), (1.0, 0.0)),
    Feedback("a", (*PROMPT, Message("function_call", CALL), Message("observation", "20 degrees")), A, True),
    Feedback("a", PROMPT, CALLED, False, "logic"),
    Negatives("a", PROMPT, CALLED, {"logic": FunctionCall(CALL.replace("Paris", "Lyon")), "other": "x"}, {}, CALLED),
    Pair("a", (Message("observation", "20 degrees"),), A, "No."),
]


@pytest.mark.parametrize(("record", "calls"), zip(RECORDS, (1, 1, 2, 1, 0, 1, 3, 0), strict=True))
def test_a_record_with_tools_and_calls_is_read_back_with_its_calls(record, calls):
    formatting = next(name for name, kind in FORMATS.items() if kind is type(record))
    row = json.loads(json.dumps(to_row(record)))
    assert json.dumps(row).count('"function_call":') == calls
    for again in (parse(row, formatting), revive(row, formatting)):
        assert again == record
        assert to_row(again) == row


def test_a_file_of_responses_that_call_functions_is_recognised(tmp_path):
    for formatting in ("pair", "negatives", "ranked", "feedback", "span_pair"):
        path = tmp_path / f"{formatting}.jsonl"
        rows = [to_row(record) for record in RECORDS[:-1] if type(record) is FORMATS[formatting]]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        assert layouts.guess([path]) == formatting
        assert {*map(recognise, rows)} == {formatting}


def test_an_id_made_of_the_content_tells_a_call_from_a_text_and_is_as_before_without_tools():
    text, call = (content_id((USER,), each, "No.") for each in (CALL, CALLED))
    assert text != call
    assert content_id((USER,), [CALL, A]) != content_id((USER,), [CALLED, A])
    assert content_id((Message("user", "q"),), "good", "bad") == "abbb255abcb35c53"


SHAREGPT = {
    "conversations": [
        {"from": "human", "value": Q},
        {"from": "function_call", "value": CALL},
        {"from": "observation", "value": "20 degrees"},
    ],
    "chosen": {"from": "gpt", "value": A},
    "rejected": {"from": "function_call", "value": CALL},
    "tools": TEXT,
}


def test_a_sharegpt_row_keeps_its_calls_and_their_results():
    record = read(SHAREGPT, "sharegpt")
    turns = (*PROMPT, Message("function_call", CALL), Message("observation", "20 degrees"))
    assert (record.prompt, record.chosen, record.rejected) == (turns, A, CALL)
    assert (type(record.chosen), type(record.rejected)) == (str, FunctionCall)


def openai_row(**of_call):
    call = {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]} | of_call
    asked = [{"role": "user", "content": Q}, call, {"role": "tool", "tool_call_id": "c1", "content": "20 degrees"}]
    said = [{"role": "assistant", "content": A}]
    return {"input": {"messages": asked, "tools": TOOLS}, "preferred_output": said, "non_preferred_output": [call]}


def test_openais_tool_calls_and_tool_turns_are_the_same_turns():
    record = read(openai_row(), "openai_preference")
    turns = (*PROMPT, Message("function_call", OPENAI_TEXT), Message("observation", "20 degrees"))
    assert (record.prompt, record.chosen, record.rejected) == (turns, A, OPENAI_TEXT)
    assert type(record.rejected) is FunctionCall


def test_the_text_beside_tool_calls_is_kept_in_front_of_them():
    record = read(openai_row(content="I look."), "openai_preference")
    assert record.rejected == f"I look.<tool_call>{OPENAI_TEXT}</tool_call>"
    assert tool_calls.read(record.rejected) == ("I look.", [OPENAI_CALL["function"]])


def test_a_thought_may_stand_before_the_calls():
    assert tool_calls.read(f"<think>hm</think>{CALL}") == ("<think>hm</think>", [json.loads(CALL)])


def test_dialogues_that_call_other_functions_are_not_taken_for_the_same_dialogue():
    def dialogue(city):
        call = {"function": {"name": "get_weather", "arguments": {"city": city}}}
        called = {"role": "assistant", "content": "", "tool_calls": [call]}
        return [{"role": "user", "content": Q}, called, {"role": "tool", "content": "20"}]

    answers = [{"role": "assistant", "content": text} for text in (A, "No.")]
    row = {"chosen": [*dialogue("Paris"), answers[0]], "rejected": [*dialogue("Paris"), answers[1]], "tools": TOOLS}
    assert len(read(row, "trl_implicit").prompt) == 4
    other = row | {"rejected": [*dialogue("Lyon"), answers[1]]}
    assert codes(read(other, "trl_implicit")) == [("FP095", "chosen"), ("FP095", "rejected")]


def test_results_of_several_calls_may_follow_one_another_and_other_orders_are_refused():
    call, result = {"from": "function_call", "value": CALL}, {"from": "observation", "value": "20"}
    human = {"from": "human", "value": Q}
    good = SHAREGPT | {"conversations": [human, call, result, result]}
    assert [turn.role for turn in read(good, "sharegpt").prompt[2:]] == ["function_call", "observation", "observation"]
    for wrong, place in (
        ([human, result], 1),
        ([human, call, call], 2),
        ([call], 0),
        ([human, call, human, human], 3),
    ):
        parsed = read(SHAREGPT | {"conversations": wrong}, "sharegpt")
        assert codes(parsed) == [("FP021", f"conversations[{place}]")]
    ends = read(SHAREGPT | {"conversations": [human, call]}, "sharegpt")
    assert codes(ends) == [("FP022", "conversations")]


def test_the_last_turn_of_a_kto_row_may_be_a_call():
    turns = [{"from": "human", "value": Q}, {"from": "function_call", "value": CALL}]
    record = read({"conversations": turns, "kto_tag": True, "tools": TEXT}, "sharegpt_kto")
    assert (record.prompt, record.response, type(record.response)) == (PROMPT, CALL, FunctionCall)
    native = [{"role": "user", "content": Q}, {"role": "function_call", "content": CALL}]
    same = read({"messages": native, "label": True, "tools": TEXT}, "feedback")
    assert (same.prompt, type(same.response)) == (PROMPT, FunctionCall)


@pytest.mark.parametrize(
    "value", ["{}", "[]", "[1]", '{"name": "x"}', '{"name": 1, "arguments": {}}', "{'name': 'x'}"]
)
def test_a_call_that_is_not_name_and_arguments_in_json_is_refused(value):
    row = SHAREGPT | {"rejected": {"from": "function_call", "value": value}}
    assert codes(read(row, "sharegpt")) == [("FP118", "rejected.value")]
    native = {"prompt": Q, "chosen": A, "rejected": {"function_call": value}}
    assert codes(read(native, "pair")) == [("FP118", "rejected.function_call")]


def test_calls_of_the_user_and_roles_that_may_mean_either_are_refused():
    call = {"role": "user", "content": Q, "tool_calls": [OPENAI_CALL]}
    assert codes(read({"messages": [call], "chosen": A, "rejected": "No."}, "pair")) == [("FP118", "messages[0].role")]
    for role in ("function", "ipython"):
        turns = [{"role": "user", "content": Q}, {"role": role, "content": "20"}]
        assert codes(read({"messages": turns, "chosen": A, "rejected": "No."}, "pair"))[0] == (
            "FP089",
            "messages[1].role",
        )


@pytest.mark.parametrize("value", ["get_weather", "{}x", '"a"', [1], [TOOLS], {"name": "x"}, 7, True, [{"a": b""}]])
def test_tools_that_are_no_list_of_objects_are_refused(value):
    row = {"prompt": Q, "chosen": A, "rejected": "No.", "tools": value}
    assert codes(read(row, "pair")) == [("FP117", "tools")]
    assert codes(read({"messages": [{"role": "user", "content": Q}]} | row | {"prompt": Q}, "pair")) == [
        ("FP117", "tools")
    ]


@pytest.mark.parametrize("value", [None, "", "[]", " [ ] ", []])
def test_a_row_with_no_tools_is_as_one_without_the_column(value):
    row = {"prompt": Q, "chosen": A, "rejected": "No."}
    assert read(row | {"tools": value}, "pair") == read(row, "pair")


def test_members_that_arrow_has_filled_with_null_are_absent_in_tools_and_calls():
    tools = [TOOLS[0] | {"strict": None}]
    call = {"function": {"name": "get_weather", "arguments": {"city": "Paris", "day": None}}, "id": None}
    turns = [{"role": "user", "content": Q, "tool_calls": None}, {"role": "assistant", "tool_calls": [call]}]
    row = {"messages": [*turns, {"role": "tool", "content": "20"}], "chosen": A, "rejected": "No.", "tools": tools}
    record = read(row, "pair", nulls_absent=True)
    assert record.prompt[0].content == TEXT
    assert tool_calls.read(record.prompt[2].content).calls == [json.loads(CALL)]


def test_the_case_of_a_user_is_read_with_its_tools():
    row = {"prompt": Q, "chosen": "<tool_call>get_weather(Paris)</tool_call>", "rejected": "Sunny."}
    record = read(row | {"tools": '[{"name": "get_weather", "parameters": {}}]'}, "pair")
    assert record.prompt[0].role == "tools"
    assert type(record.chosen) is str
