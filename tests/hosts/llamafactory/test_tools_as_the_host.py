"""Rows with tools have the turns of the host's converters and the tokens of its processors, with every template."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
from finepref.formats import layouts
from finepref.formats.records import FunctionCall, Message, Pair
from finepref.hosts.llamafactory.tokenized import encode, encoded, located
from finepref.synth.engines.checkpoint import ToolsRefusedError
from llamafactory.data.converter import OpenAIDatasetConverter, SharegptDatasetConverter
from llamafactory.data.formatter import EmptyFormatter
from llamafactory.data.mm_plugin import get_mm_plugin
from llamafactory.data.parser import DatasetAttr
from llamafactory.data.processor.pairwise import PairwiseDatasetProcessor
from llamafactory.data.template import TEMPLATES

TOOLS = [
    {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    }
]
TOOL_TEXT = json.dumps(TOOLS)
CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
Q, A = "What is the weather in Paris?", "It is sunny."

COLUMNS = {"messages": "talk", "system": "system", "tools": "tools", "chosen": "w", "rejected": "l"}
OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
OPENAI_TAGS |= {"observation_tag": "tool", "function_tag": "function_call", "system_tag": "system"}
OWN_TAGS = {"role_tag": "who", "content_tag": "text", "user_tag": "me", "assistant_tag": "you", "system_tag": "rule"}
OWN_TAGS |= {"observation_tag": "seen", "function_tag": "do"}


def called(draw):
    return {"name": f"f{draw.randrange(9)}", "arguments": {"city": f"c{draw.randrange(99)}"}}


def sharegpt_row(draw, role, content, tags):
    """A row with turns of tools, in the tags of an entry."""

    def answer():
        if draw.random() < 0.5:
            return {role: tags["function_tag"], content: json.dumps(called(draw))}
        return {role: tags["assistant_tag"], content: f"a{draw.randrange(99)}"}

    def ask():
        name = draw.choice(["user_tag", "observation_tag"])
        return {role: tags[name], content: f"q{draw.randrange(99)}"}

    talk = [each for _ in range(draw.randrange(3)) for each in (ask(), answer())]
    return {"talk": [*talk, ask()], "system": "", "tools": TOOL_TEXT, "w": answer(), "l": answer()}


def openai_row(draw):
    """A row with `tool_calls`, and one or more results after each."""

    def calls():
        count = draw.randrange(1, 3)
        return [{"id": f"c{n}", "type": "function", "function": called(draw)} for n in range(count)]

    talk = [{"role": "user", "content": "q"}]
    for _ in range(draw.randrange(3)):
        made = calls()
        talk.append({"role": "assistant", "content": "", "tool_calls": made})
        talk += [{"role": "tool", "content": f"r{draw.randrange(9)}", "tool_call_id": each["id"]} for each in made]
        talk += [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]
    answers = [{"role": "assistant", "content": f"a{n}", "tool_calls": None} for n in range(2)]
    return {"talk": talk, "tools": TOOLS, "w": answers[0], "l": answers[1]}


def host_row(formatting, tags, row):
    attributes = DatasetAttr("file", "mine")
    entry = {"formatting": formatting, "ranking": True, "columns": COLUMNS}
    attributes.join(entry | ({"tags": tags} if tags else {}))
    converter = SharegptDatasetConverter if formatting == "sharegpt" else OpenAIDatasetConverter
    return converter(attributes, SimpleNamespace(media_dir=""))(row)


def as_host(turns):
    """Turns as the host's messages, with results that follow one another joined as it joins OpenAI's."""
    made = []
    for role, content in turns:
        if made and role == "observation" == made[-1][0]:
            made[-1] = (role, f"{made[-1][1]}\n</tool_response>\n<tool_response>\n{content}")
        else:
            made.append(("function" if role == "function_call" else role, content))
    return made


@pytest.mark.parametrize("case", ["sharegpt", "own_tags", "openai"])
def test_our_records_have_the_hosts_turns_tools_and_responses(case):
    draw = random.Random(case)
    tags = {"sharegpt": {}, "own_tags": OWN_TAGS, "openai": OPENAI_TAGS}[case]
    formatting = "openai" if case == "openai" else "sharegpt"
    read = layouts.reader("sharegpt", columns=COLUMNS, tags=tags or None)
    default = {"function_tag": "function_call", "assistant_tag": "gpt", "user_tag": "human"}
    default["observation_tag"] = "observation"
    for _ in range(200):
        if case == "openai":
            row = openai_row(draw)
        else:
            names = ("who", "text") if tags else ("from", "value")
            row = sharegpt_row(draw, *names, tags or default)
        record = read(row, line=1)
        if isinstance(record, list):  # the two responses are the same
            assert {problem.code for problem in record} == {"FP034"}, (record, row)
            continue
        made = host_row(formatting, tags, row)
        assert record.prompt[0] == Message("tools", made["_tools"])
        assert as_host(record.prompt[1:]) == [(each["role"], each["content"]) for each in made["_prompt"]], row
        for ours, theirs in zip((record.chosen, record.rejected), made["_response"], strict=True):
            assert ours == theirs["content"]
            assert isinstance(ours, FunctionCall) == (theirs["role"] == "function"), row


PROMPTS = {
    "a question": [("user", Q)],
    "system and result": [("system", "Be terse."), ("user", Q), ("function_call", CALL), ("observation", "20")],
    "parallel": [("user", Q), ("function_call", f"[{CALL}, {CALL}]"), ("observation", "20"), ("observation", "21")],
}
CALLED = FunctionCall(CALL)
ONE_CALL_ONLY = {"chatglm3", "glm4", "glm4v", "glm_ocr", "glmz1"}
"""Templates that write one call at a time; the host ends in a ValueError."""


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def host_messages(turns):
    return [{"role": role, "content": content} for role, content in as_host(turns) if role != "system"]


def by_the_host(processor, turns, responses, tools):
    """(chosen, rejected) token ids of prompt and response, by the host's own processor."""
    said = [
        {"role": "function" if isinstance(each, FunctionCall) else "assistant", "content": str(each)}
        for each in responses
    ]
    system = next((content for role, content in turns if role == "system"), "")
    chosen, _, rejected, _ = processor._encode_data_example(
        prompt=host_messages(turns), response=said, system=system, tools=tools, images=[], videos=[], audios=[]
    )
    return chosen, rejected


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("responses", [(CALLED, A), (A, CALLED)], ids=["call", "text"])
def test_prompt_and_responses_have_the_hosts_tokens_with_every_template_or_are_refused_where_it_fails(
    tokenizer, prompt, responses
):
    """What is refused is what the host cannot write: it raises an error, or has the same tokens without the tools."""
    turns = PROMPTS[prompt]
    ours = tuple(Message(*turn) for turn in (("tools", TOOL_TEXT), *turns))
    refused = set()
    settings = SimpleNamespace(cutoff_len=10**6)
    for name, registered in TEMPLATES.items():
        template = replace(registered, mm_plugin=get_mm_plugin("base"))  # others want a processor of images
        host = PairwiseDatasetProcessor(template=template, tokenizer=tokenizer, processor=None, data_args=settings)
        try:
            made = [encode(host, ours, each) for each in responses]
        except ToolsRefusedError:
            refused.add(name)
            try:
                with_tools = by_the_host(host, turns, responses, TOOL_TEXT)
            except (RuntimeError, LookupError, TypeError, ValueError, AttributeError):
                continue
            assert with_tools == by_the_host(host, turns, responses, ""), name
            continue
        assert tuple(before + after for before, after in made) == by_the_host(host, turns, responses, TOOL_TEXT), name
    assert refused == (ONE_CALL_ONLY if prompt == "parallel" else set())


def records_processor(tokenizer, **settings):
    template = replace(TEMPLATES[settings.pop("template", "qwen")], **settings)
    return SimpleNamespace(template=template, tokenizer=tokenizer)


def refusal(processor, prompt, response=A):
    with pytest.raises(ToolsRefusedError) as caught:
        encode(processor, prompt, response)
    return caught.value.field, str(caught.value)


USER = Message("user", Q)


def test_a_template_that_leaves_out_the_tools_is_refused_although_the_host_would_train(tokenizer):
    of_tools = (Message("tools", TOOL_TEXT), USER)
    silent = records_processor(tokenizer, format_system=EmptyFormatter(slots=["<s>"]))
    assert encode(silent, (Message("system", "x"), USER), A)  # as the host
    assert refusal(silent, of_tools) == ("tools", "the template does not write the tools")


def test_tools_and_calls_on_which_the_template_fails_are_refused_with_its_error(tokenizer):
    bare = Message("tools", '[{"name": "get_weather", "parameters": {}}]')
    told = "the template cannot write the tools: KeyError: 'properties'"
    assert refusal(records_processor(tokenizer, template="chatml"), (bare, USER)) == ("tools", told)
    assert encode(records_processor(tokenizer), (bare, USER), A)
    thought = "I think: " + CALL
    for prompt, response, field in (
        ((USER,), FunctionCall(thought), ""),
        ((USER, Message("function_call", thought), Message("observation", "20")), A, "prompt"),
    ):
        place, told = refusal(records_processor(tokenizer), prompt, response)
        assert place == field
        assert told.startswith("the template cannot write the calls: RuntimeError: Invalid JSON format")


def test_a_text_in_front_of_calls_is_written_in_front_of_them(tokenizer):
    """The host leaves the text beside `tool_calls` out; its templates can write it."""
    text = f"I look.<tool_call>{CALL}</tool_call>"
    processor = records_processor(tokenizer)
    _, ids = encode(processor, (USER,), FunctionCall(text))
    assert tokenizer.decode(ids).startswith(f"I look.<tool_call>\n{CALL}\n</tool_call>")


def test_a_refused_record_still_has_tokens_and_is_refused_once_for_its_tools(tokenizer):
    record = Pair("a", (Message("tools", "[{}]"), USER), CALLED, A)
    processor, problems = records_processor(tokenizer, template="chatml"), []
    prompt, responses = encoded(processor, record, {"chosen": record.chosen, "rejected": A}, problems)
    assert [(each.code, each.field) for each in problems] == [("FP242", "tools")]
    assert (prompt, responses["rejected"]) == encode(processor, (USER,), A)


def test_the_tokens_of_a_call_are_found_where_the_template_writes_it_as_it_is(tokenizer):
    processor = records_processor(tokenizer)
    _, ids = encode(processor, (USER,), CALLED)
    start, offsets = located(processor, CALLED, ids)
    begin, end = CALL.index("Paris"), CALL.index("Paris") + 5
    picked = [i for i, (left, right) in enumerate(offsets, start) if left < end and right > begin]
    assert tokenizer.decode([ids[i] for i in picked]).strip('" ') == "Paris"
    other = FunctionCall(CALL.replace(" ", ""))  # the template writes it with spaces
    _, ids = encode(processor, (USER,), other)
    assert located(processor, other, ids) == (-1, [])
