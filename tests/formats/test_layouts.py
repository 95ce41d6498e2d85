"""Rows of hosts, hubs and papers, read as records; recognised by all rows of a file."""

from __future__ import annotations

import json
import pickle
from types import SimpleNamespace

import pytest
from finepref.formats import layout_table, layouts
from finepref.formats.jsonl import write_jsonl
from finepref.formats.layout import Layout
from finepref.formats.layout_table import BUILT_IN, recognise
from finepref.formats.problems import BadData
from finepref.formats.records import Feedback, Message, Pair, Ranked, Span, SpanPair

Q, A, B = "What color is the sky?", "Blue.", "Green."
USER, SYSTEM = Message("user", Q), Message("system", "Be terse.")
TURN, GOOD, BAD = ({"role": role, "content": text} for role, text in (("user", Q), ("assistant", A), ("assistant", B)))
HUMAN, GPT, GPT_BAD = ({"from": role, "value": text} for role, text in (("human", Q), ("gpt", A), ("gpt", B)))
TOLD = {"role": "system", "content": "Be terse."}
DIALOGUE = [TURN, {"role": "assistant", "content": "It depends."}, {"role": "user", "content": "On a clear day?"}]


def read(row, layout, **options):
    return layouts.reader(layout, file="f", **options)(row, line=3)


def codes(parsed):
    assert isinstance(parsed, list), parsed
    return [(problem.code, problem.field) for problem in parsed]


def parts(message, weight=None):
    """A message as LLaMA-Factory's v1 sets have it, its text in two parts."""
    text = message["content"]
    content = [{"type": "text", "value": text[:2]}, {"type": "text", "value": text[2:]}]
    return {"role": message["role"], "content": content, "loss_weight": weight}


PAIRS = {
    "openai_preference": [
        {"input": {"messages": [TURN]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        {"input": {"messages": [TURN], "tools": []}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    ],
    "openrlhf_context": [
        {"context_messages": [TURN], "chosen": [GOOD], "rejected": [BAD]},
        {"context_messages": [TURN], "chosen": A, "rejected": B},
    ],
    "ms_swift": [{"messages": [TURN, GOOD], "rejected_response": B}],
    "sharegpt": [
        {"conversations": [HUMAN], "chosen": GPT, "rejected": GPT_BAD},
        {"messages": [TURN], "chosen": GOOD, "rejected": BAD},
        {"conversations": [HUMAN | {"train": False}], "chosen": GPT | {"train": True}, "rejected": GPT_BAD},
        {"conversations": [HUMAN], "chosen": [GPT], "rejected": [GPT_BAD]},
        {"conversations": [HUMAN], "system": "", "chosen": GPT, "rejected": GPT_BAD, "tools": "[]", "images": None},
    ],
    "trl_explicit": [
        {"prompt": [TURN], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [TURN], "chosen": A, "rejected": B},
        {"prompt": [TURN], "chosen": [TURN, GOOD], "rejected": [TURN, BAD]},
    ],
    "ms_swift_dialogues": [
        {"messages": [TURN, GOOD], "rejected_messages": [TURN, BAD]},
    ],
    "llamafactory_v1": [
        {"chosen_messages": [parts(TURN, 0.0), parts(GOOD, 1.0)], "rejected_messages": [parts(TURN), parts(BAD)]},
        {"chosen_messages": [TURN, parts(GOOD)], "rejected_messages": [TURN, BAD]},
    ],
    "sharegpt_texts": [{"conversations": [HUMAN], "chosen": A, "rejected": B}],
    "trl_implicit": [
        {"chosen": [TURN, GOOD], "rejected": [TURN, BAD]},
        {"prompt": Q, "chosen": [TURN, GOOD], "rejected": [TURN, BAD], "messages": [TURN, GOOD], "prompt_id": "aa"},
        {"prompt": Q, "chosen": [GOOD], "rejected": [BAD]},
    ],
    "rewardbench": [{"prompt": Q, "chosen": A, "chosen_model": "a", "rejected": B, "rejected_model": "b"}],
    "alpaca": [
        {"instruction": Q, "chosen": A, "rejected": B},
        {"instruction": Q, "input": "", "history": [], "system": None, "chosen": A, "rejected": B},
        {"instruction": "", "input": Q, "chosen": A, "rejected": B},
    ],
    "orca": [{"system": "", "question": Q, "chosen": A, "rejected": B}],
    "hh": [{"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {B}"}],
    "shp": [
        {"history": Q, "human_ref_A": A, "human_ref_B": B, "labels": 1, "score_A": 8},
        {"history": Q, "human_ref_A": B, "human_ref_B": A, "labels": 0},
    ],
    "stack_exchange_paired": [{"qid": 7, "question": Q, "response_j": A, "response_k": B}],
    "saferlhf": [
        {"prompt": Q, "response_0": A, "response_1": B, "better_response_id": 0, "safer_response_id": 1},
        {"prompt": Q, "response_0": B, "response_1": A, "better_response_id": 1},
    ],
    "reversegen": [{"prompt": Q, "positive": A, "negative": B}],
    "pair": [{"prompt": Q, "chosen": A, "rejected": B}, {"messages": [TURN], "chosen": A, "rejected": B}],
}


@pytest.mark.parametrize(("layout", "row"), [(name, row) for name, rows in PAIRS.items() for row in rows])
def test_a_row_of_each_layout_of_pairs_is_recognised_and_is_the_same_pair(layout, row):
    assert recognise(row) == layout
    record = read(row, layout)
    assert isinstance(record, Pair), record
    assert (record.prompt, record.chosen, record.rejected) == ((USER,), A, B)


def test_the_safer_response_is_another_layout_of_the_same_rows():
    row = {"prompt": Q, "response_0": A, "response_1": B, "better_response_id": 0, "safer_response_id": 1}
    assert read(row, "saferlhf_safer").chosen == B
    assert codes(read(row | {"safer_response_id": 2}, "saferlhf_safer"))[0] == ("FP096", "safer_response_id")


@pytest.mark.parametrize(
    ("layout", "row"),
    [
        ("sharegpt", {"system": "Be terse.", "conversations": [HUMAN], "chosen": GPT, "rejected": GPT_BAD}),
        ("sharegpt", {"conversations": [TOLD, TURN], "chosen": GOOD, "rejected": BAD}),
        ("sharegpt", {"system": "Be terse.", "conversations": [TOLD, TURN], "chosen": GOOD, "rejected": BAD}),
        ("trl_explicit", {"system": "Be terse.", "prompt": [TURN], "chosen": [GOOD], "rejected": [BAD]}),
        ("trl_implicit", {"chosen": [TOLD, TURN, GOOD], "rejected": [TOLD, TURN, BAD]}),
        ("trl_implicit", {"system": "Be terse.", "chosen": [TURN, GOOD], "rejected": [TURN, BAD]}),
        ("trl_implicit", {"system": "Be terse.", "prompt": Q, "chosen": [GOOD], "rejected": [BAD]}),
        ("alpaca", {"system": "Be terse.", "instruction": Q, "chosen": A, "rejected": B}),
        ("orca", {"system": "Be terse.", "question": Q, "chosen": A, "rejected": B}),
        ("pair", {"system": "Be terse.", "prompt": Q, "chosen": A, "rejected": B}),
    ],
)
def test_a_system_text_is_the_first_turn_wherever_the_layout_has_it(layout, row):
    assert read(row, layout).prompt == (SYSTEM, USER)


@pytest.mark.parametrize(
    ("layout", "row"),
    [
        ("sharegpt", {"conversations": [TOLD, TURN], "chosen": GOOD, "rejected": BAD}),
        ("sharegpt_kto", {"messages": [TOLD, TURN, GOOD], "kto_tag": True}),
        ("trl_explicit", {"prompt": [TOLD, TURN], "chosen": [GOOD], "rejected": [BAD]}),
        ("trl_implicit", {"chosen": [TOLD, TURN, GOOD], "rejected": [TOLD, TURN, BAD]}),
        ("trl_kto", {"prompt": [TOLD, TURN], "completion": [GOOD], "label": True}),
        ("openrlhf_context", {"context_messages": [TOLD, TURN], "chosen": [GOOD], "rejected": [BAD]}),
        ("ms_swift", {"messages": [TOLD, TURN, GOOD], "rejected_response": B}),
    ],
)
def test_of_two_system_texts_that_of_the_messages_is_used_as_on_the_host_and_the_other_is_noted(layout, row):
    parsed = read(row | {"system": "Be kind."}, layout)
    assert isinstance(parsed, layouts.Noted), parsed
    assert [(note.code, note.field) for note in parsed.notes] == [("FP121", "system")]
    assert parsed[0].prompt == (SYSTEM, USER)
    for same in ("Be terse.", "", None):
        assert read(row | {"system": same}, layout).prompt == (SYSTEM, USER)


@pytest.mark.parametrize("empty", [None, ""])
def test_an_empty_system_is_no_turn_as_a_field_and_as_a_message(empty):
    assert read({"system": empty, "prompt": Q, "chosen": A, "rejected": B}, "pair").prompt == (USER,)
    row = {"messages": [{"role": "system", "content": empty}, TURN], "chosen": A, "rejected": B}
    assert read(row, "pair").prompt == (USER,)


def test_query_or_input_joins_the_prompt_in_a_new_line_and_history_goes_before_it():
    """As LLaMA-Factory's alpaca converter does, in our own formats too."""
    history = [["Hello.", "Hi."]]
    turns = (SYSTEM, Message("user", "Hello."), Message("assistant", "Hi."), Message("user", "Name it.\nFrance"))
    alpaca = {"system": "Be terse.", "instruction": "Name it.", "input": "France", "history": history}
    assert read(alpaca | {"chosen": A, "rejected": B}, "alpaca").prompt == turns
    for name in ("input", "query"):
        own = {"system": "Be terse.", "prompt": "Name it.", name: "France", "history": history}
        assert read(own | {"chosen": A, "rejected": B}, "pair").prompt == turns
        assert read(own | {"response": A, "label": True}, "feedback").prompt == turns
        assert read(own | {"positive": A, "negative": B}, "reversegen").prompt == turns


def test_messages_with_an_input_of_their_own_are_refused_unless_it_says_what_they_say():
    row = {"messages": [TURN], "chosen": A, "rejected": B}
    assert codes(read(row | {"input": "more"}, "pair")) == [("FP013", "input")]
    assert codes(read(row | {"history": [["a", "b"]]}, "pair")) == [("FP013", "history")]
    assert read(row | {"input": Q, "history": []}, "pair").prompt == (USER,)


@pytest.mark.parametrize("layout", [layout.name for layout in BUILT_IN if layout.by_row])
@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("images", ["a.png"], "FP088"),
        ("videos", ["a.mp4"], "FP088"),
        ("audios", ["a.wav"], "FP088"),
        ("tools", "look it up", "FP117"),
        ("tools", {"name": "get_weather"}, "FP117"),
    ],
)
def test_images_videos_audios_and_tools_that_are_no_list_are_refused_by_name_in_every_layout(
    layout, name, value, code
):
    row = layouts.find(layout).sample
    assert codes(read({**row, name: value}, layout)) == [(code, name)]
    for empty in ([], None, "", "[]"):
        assert not isinstance(read({**row, name: empty}, layout), list)


def test_a_message_may_have_keys_that_change_nothing_and_no_others():
    good = [TURN | {"name": None, "weight": 0, "train": False, "tool_calls": [], "refusal": None}]
    assert read({"messages": good, "chosen": A, "rejected": B}, "pair").prompt == (USER,)
    for key, code in (("thinking", "FP014"), ("tool_call_ids", "FP014")):
        row = {"messages": [TURN | {key: ["x"]}], "chosen": A, "rejected": B}
        assert codes(read(row, "pair")) == [(code, f"messages[0].{key}")]


def test_ids_may_be_integers_and_labels_0_and_1():
    assert read({"id": 12, "prompt": Q, "chosen": A, "rejected": B}, "pair").id == "12"
    for label, expected in ((1, True), (0, False)):
        record = read({"prompt": Q, "response": A, "label": label}, "feedback")
        assert record.label is expected
    assert codes(read({"prompt": Q, "response": A, "label": 2}, "feedback")) == [("FP011", "label")]
    assert codes(read({"prompt": Q, "response": A, "label": 1.0}, "feedback")) == [("FP011", "label")]
    assert codes(read({"id": 10**5000, "prompt": Q, "chosen": A, "rejected": B}, "pair")) == [("FP011", "id")]


@pytest.mark.parametrize(
    ("layout", "row"),
    [
        ("trl_kto", {"prompt": Q, "completion": A, "label": True}),
        ("trl_kto", {"prompt": [TURN], "completion": [GOOD], "label": 1}),
        ("alpaca_kto", {"instruction": "", "input": Q, "output": A, "kto_tag": True}),
        ("sharegpt_kto", {"conversations": [HUMAN, GPT], "kto_tag": True}),
        ("sharegpt_kto", {"messages": [TURN, GOOD], "kto_tag": True}),
        ("feedback", {"messages": [TURN, GOOD], "label": True}),
        ("feedback", {"prompt": Q, "response": A, "label": True, "error_type": None}),
    ],
)
def test_a_labelled_response_is_feedback(layout, row):
    assert recognise(row) == layout
    row = {key: value for key, value in row.items() if value is not None}
    record = read(row, layout)
    assert isinstance(record, Feedback), record
    assert (record.prompt, record.response, record.label) == ((USER,), A, True)


def test_rated_completions_are_a_ranking():
    scored = [
        {"response": A, "overall_score": 8.0},
        {"response": B, "overall_score": 2},
        {"response": "No.", "overall_score": 1},
    ]
    record = read({"instruction": Q, "completions": scored, "source": "x"}, "ultrafeedback")
    assert record == Ranked(record.id, (USER,), (A, B, "No."), (8.0, 2.0, 1.0))
    answers = [{"text": A, "pm_score": 4, "author": "a"}, {"text": B, "pm_score": -1}]
    record = read({"qid": 1, "question": Q, "answers": answers}, "stack_exchange")
    assert record == Ranked(record.id, (USER,), (A, B), (4.0, -1.0))
    bad = [{"response": A, "overall_score": 8.0}, {"response": B}]
    assert ("FP010", "completions[1].overall_score") in codes(
        read({"instruction": Q, "completions": bad}, "ultrafeedback")
    )


def test_a_dialogue_of_several_turns_keeps_them_and_scores_beside_it_are_no_margin():
    """A margin of 0 or less is refused by the reward model (FP220), where TRL and the hosts do not read the scores."""
    row = {"chosen": [*DIALOGUE, GOOD], "rejected": [*DIALOGUE, BAD], "score_chosen": 8.0, "score_rejected": 5.5}
    record = read(row | {"prompt": Q}, "trl_implicit")
    turns = (USER, Message("assistant", "It depends."), Message("user", "On a clear day?"))
    assert (record.prompt, record.chosen, record.rejected, record.margin) == (turns, A, B, None)
    assert not {"score_chosen", "score_rejected"} & layouts.columns_read("trl_implicit")
    assert not {"score_chosen", "score_rejected"} & layouts.columns_read("trl_explicit")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"chosen": [TURN, GOOD], "rejected": [DIALOGUE[2], BAD]}, [("FP094", "chosen")]),
        ({"prompt": "Other?", "chosen": [TURN, GOOD], "rejected": [TURN, BAD]}, [("FP094", "prompt")]),
        ({"chosen": [TURN, GOOD, TURN], "rejected": [TURN, BAD]}, [("FP095", "chosen")]),
        ({"chosen": [TURN, GOOD], "rejected": [TURN]}, [("FP094", "chosen")]),
        ({"chosen": [TURN, GOOD], "rejected": [TURN, TURN]}, [("FP095", "rejected[1]")]),
        ({"chosen": [TURN, GOOD], "rejected": [TURN, GOOD]}, [("FP034", "rejected[1].content")]),
        ({"chosen": [TURN, GOOD | {"weight": 0}], "rejected": [TURN, BAD]}, [("FP095", "chosen[1]")]),
        ({"chosen": [], "rejected": []}, [("FP095", "chosen"), ("FP095", "rejected")]),
    ],
)
def test_two_dialogues_that_differ_before_the_last_turn_are_refused(row, expected):
    assert codes(read(row, "trl_implicit"))[: len(expected)] == expected


def test_dialogues_that_do_not_begin_with_the_given_messages_are_refused():
    row = {"prompt": [DIALOGUE[2]], "chosen": [TURN, GOOD], "rejected": [TURN, BAD]}
    assert codes(read(row, "trl_explicit")) == [("FP094", "prompt")]


def test_a_prompt_beside_messages_may_be_empty_or_one_of_them():
    for prompt in (None, "", Q):
        assert read({"prompt": prompt, "messages": [TURN], "chosen": A, "rejected": B}, "pair").prompt == (USER,)
    row = {"prompt": "Other?", "messages": [TURN], "chosen": A, "rejected": B}
    assert codes(read(row, "pair")) == [("FP013", "prompt")]


def test_parts_of_a_message_that_are_no_text_and_weights_between_0_and_1_are_refused_by_name():
    def row(*turns):
        return {"chosen_messages": [*turns, parts(GOOD)], "rejected_messages": [*turns, parts(BAD)]}

    image = {"role": "user", "content": [{"type": "image_url", "value": "a.png"}]}
    assert codes(read(row(image), "llamafactory_v1"))[0] == ("FP089", "chosen_messages[0].content[0].type")
    image["content"][0]["type"] = "image"
    assert codes(read(row(image), "llamafactory_v1"))[0] == ("FP088", "chosen_messages[0].content[0].type")
    assert codes(read(row(parts(TURN, 0.5)), "llamafactory_v1")) == [("FP014", "chosen_messages[0].loss_weight")]
    untrained = {"chosen_messages": [TURN, parts(GOOD, 0.0)], "rejected_messages": [TURN, parts(BAD)]}
    assert codes(read(untrained, "llamafactory_v1"))[0] == ("FP095", "chosen_messages[1]")


def test_two_texts_that_begin_with_the_prompt_are_split_after_their_last_common_word():
    record = read({"chosen": "The sky is blue.", "rejected": "The sky is black."}, "trl_implicit_texts")
    assert (record.prompt, record.chosen, record.rejected) == ((Message("user", "The sky is"),), " blue.", " black.")
    other = {"chosen": "Blue it is.", "rejected": "Black it is."}
    assert codes(read(other, "trl_implicit_texts")) == [("FP094", "chosen")]


def test_rows_of_pairs_without_their_prompt_are_never_taken_for_texts_that_begin_with_it(tmp_path):
    """The words with which two answers happen to begin are no prompt: such a layout is only named."""
    texts = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
    assert guessed(tmp_path, [texts]) == "pair"
    assert guessed(tmp_path, [texts | {"source": "x"}]) == "pair"
    assert guessed(tmp_path, [PAIR, texts]) == "pair"
    assert guessed(tmp_path, [PAIR, texts, PAIR | {"rejected_spans": []}]) == "span_pair"
    assert guessed(tmp_path, [texts, PAIR | {"rejected_spans": []}]) == "span_pair"
    for layout in ("pair", "span_pair"):
        assert codes(read(texts, layout)) == [("FP010", "prompt")]


def test_transcripts_of_hh_are_turns_and_those_out_of_order_are_refused():
    query = "\n\nHuman: Hi there\n\nAssistant: Hello!\n\nHuman: 2 + 2?\n\nAssistant:"
    record = read({"chosen": f"{query} Four.", "rejected": f"{query} Five."}, "hh")
    turns = (Message("user", "Hi there"), Message("assistant", "Hello!"), Message("user", "2 + 2?"))
    assert (record.prompt, record.chosen, record.rejected) == (turns, "Four.", "Five.")
    twice = query.replace("Hello!", "Hello!\n\nAssistant: Again!")
    assert codes(read({"chosen": f"{twice} Four.", "rejected": f"{twice} Five."}, "hh")) == [("FP021", "chosen")]
    other = {"chosen": f"{query} Four.", "rejected": "\n\nHuman: 3 + 3?\n\nAssistant: Six."}
    assert codes(read(other, "hh")) == [("FP094", "rejected")]


def step(*completions, chosen=None, human=None):
    made = [{"text": text, "rating": rating} for text, rating in completions]
    return {"completions": made, "chosen_completion": chosen, "human_completion": human}


def test_each_step_with_a_right_and_a_wrong_completion_is_a_span_pair():
    """Step 1 goes on with the chosen "a"; step 2 has two wrong completions, so there are three records."""
    steps = [
        step(("a", 1), ("x", -1), chosen=0),
        step(("y", -1), ("b", 1), ("z", -1), chosen=1),
        step(("c", 0), chosen=0),
    ]
    found = read({"question": {"problem": "2+2?"}, "label": {"steps": steps}}, "prm800k")
    assert [(each.chosen, each.rejected) for each in found] == [("a", "x"), ("a\nb", "a\ny"), ("a\nb", "a\nz")]
    assert all(isinstance(each, SpanPair) and each.prompt == (Message("user", "2+2?"),) for each in found)
    assert [each.chosen_spans for each in found] == [(Span(0, 1),), (Span(2, 3),), (Span(2, 3),)]
    assert [each.rejected_spans for each in found] == [(Span(0, 1),), (Span(2, 3),), (Span(2, 3),)]


def test_a_solution_without_a_right_and_a_wrong_completion_of_a_step_gives_no_pair_and_is_named():
    row = {"question": {"problem": "2+2?"}, "label": {"steps": [step(("a", 1), chosen=0), step(("x", -1))]}}
    assert codes(read(row, "prm800k")) == [("FP120", "label.steps")]


def test_a_step_that_a_person_wrote_is_the_right_one():
    human = {"text": "a", "rating": None}
    row = {"question": {"problem": "2+2?"}, "label": {"steps": [step(("x", -1), human=human)]}}
    record = read(row, "prm800k")
    assert (record.chosen, record.rejected) == ("a", "x")
    row["label"]["steps"][0]["human_completion"] = "a"  # as the file of the data set documents it
    assert read(row, "prm800k") == record


def test_problems_name_the_columns_of_the_file_not_our_fields():
    assert codes(read({"question": Q, "chosen": "", "rejected": B, "system": 3}, "orca")) == [
        ("FP011", "system"),
        ("FP012", "chosen"),
    ]
    assert codes(read({"question": "", "chosen": A, "rejected": B}, "orca")) == [("FP012", "question")]
    (problem,) = read({"question": Q, "chosen": A, "rejected": A}, "orca")
    assert str(problem) == "FP034 f:3 rejected: the rejected response equals the chosen one"
    (problem,) = read({"id": 7, "question": Q, "chosen": A, "rejected": A}, "orca")
    assert str(problem) == "FP034 f:3 rejected: the rejected response equals the chosen one (id 7)"
    (problem,) = read({"id": "r7", "question": Q, "chosen": A, "rejected": A}, "orca")
    assert str(problem).endswith("the chosen one (id r7)")


def test_a_row_of_another_layout_says_which():
    assert codes(read({"prompt": Q, "chosen": A, "rejected": B}, "shp"))[0] == ("FP015", "history")
    (problem,) = read({"question": Q, "chosen": A, "rejected": B}, "pair")
    assert (problem.code, problem.message.rpartition("; ")[2]) == ("FP015", "the row looks like orca")


def test_a_hosts_columns_and_tags_are_those_of_its_entry():
    columns = {"prompt": "q", "query": "more", "chosen": "good", "rejected": "bad", "system": "sys"}
    row = {"q": "Name it.", "more": "France", "good": A, "bad": B, "sys": "Be terse."}
    record = read(row, "alpaca", columns=columns)
    assert (record.prompt, record.chosen, record.rejected) == ((SYSTEM, Message("user", "Name it.\nFrance")), A, B)
    assert codes(read(row | {"good": ""}, "alpaca", columns=columns)) == [("FP012", "good")]
    tags = {"role_tag": "who", "content_tag": "text", "user_tag": "customer", "assistant_tag": "agent"}
    row = {
        "talk": [{"who": "customer", "text": Q}],
        "w": {"who": "agent", "text": A},
        "l": {"who": "agent", "text": B},
    }
    columns = {"messages": "talk", "chosen": "w", "rejected": "l"}
    record = read(row, "sharegpt", columns=columns, tags=tags)
    assert (record.prompt, record.chosen, record.rejected) == ((USER,), A, B)
    row = {"talk": [{"who": "customer", "text": Q}, {"who": "agent", "text": A}], "good": True}
    record = read(row, "sharegpt_kto", columns={"messages": "talk", "kto_tag": "good"}, tags=tags)
    assert (record.prompt, record.response, record.label) == ((USER,), A, True)


def test_an_input_that_the_columns_of_an_entry_do_not_name_is_not_lost():
    row = {"instruction": "Name it.", "input": "France", "chosen": A, "rejected": B}
    for layout in ("alpaca", "pair"):
        record = read(row, layout, columns={"prompt": "instruction"})
        assert record.prompt == (Message("user", "Name it.\nFrance"),)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"file_name": "x", "ranking": True}, "alpaca"),
        ({"formatting": "alpaca", "columns": {"kto_tag": "label"}}, "alpaca_kto"),
        ({"formatting": "sharegpt", "ranking": True, "columns": {"chosen": "w"}}, "sharegpt"),
        ({"formatting": "openai", "ranking": True}, "sharegpt"),
        ({"formatting": "sharegpt", "columns": {"kto_tag": "label"}}, "sharegpt_kto"),
        ({"formatting": "orca"}, "orca"),
        ({"formatting": "pair"}, "pair"),
        ({"formatting": "sharegpt"}, None),
        ({"file_name": "x"}, None),
        ({"formatting": "unheard_of"}, None),
    ],
)
def test_an_entry_of_the_host_tells_its_layout(entry, expected):
    assert layouts.of_entry(entry) == expected


@pytest.mark.parametrize("layout", BUILT_IN, ids=[layout.name for layout in BUILT_IN])
def test_the_row_that_the_table_shows_is_good_and_recognised(layout):
    if layout.needs:
        assert recognise(layout.sample) == layout.name
    if layout.by_row:
        parsed = read(layout.sample, layout.name)
        assert not isinstance(parsed, list), parsed
        assert pickle.loads(pickle.dumps(layouts.reader(layout.name, file="f")))(layout.sample, line=3) == parsed


@pytest.mark.parametrize(
    "layout", [layout for layout in BUILT_IN if not layout.by_row], ids=lambda layout: layout.name
)
def test_a_layout_whose_rows_need_another_file_says_what_reads_it(layout):
    (problem,) = read(layout.sample, layout.name)
    assert problem.code == "FP090"
    assert f"`finepref convert --from {layout.name}` makes {layout.gives} of them" in problem.message


def guessed(tmp_path, *files):
    paths = []
    for number, rows in enumerate(files):
        write_jsonl(tmp_path / f"{number}.jsonl", rows)
        paths.append(tmp_path / f"{number}.jsonl")
    return layouts.guess(paths)


PAIR = {"prompt": Q, "chosen": A, "rejected": B}


def test_the_layout_is_recognised_by_all_rows_not_the_first(tmp_path):
    spans = PAIR | {"rejected_spans": [{"start": 0, "end": 5}]}
    assert guessed(tmp_path, [spans]) == "span_pair"
    assert guessed(tmp_path, [PAIR] * 3000 + [spans]) == "span_pair"
    assert guessed(tmp_path, [PAIR], [PAIR, spans]) == "span_pair"
    assert guessed(tmp_path, [{"prompt": Q}, PAIR | {"chosen": 3}, PAIR]) == "pair"
    details = {"conversations": [HUMAN], "chosen": GPT | {"train_detail": []}, "rejected": GPT_BAD}
    assert guessed(tmp_path, [details | {"chosen": GPT}, details]) == "train_detail"


def test_rows_of_which_none_has_the_right_types_are_recognised_by_their_columns(tmp_path):
    assert guessed(tmp_path, [PAIR | {"chosen": 3}]) == "pair"
    assert guessed(tmp_path, [{"a": 1}]) == layouts.UNKNOWN


def test_columns_that_the_user_names_are_recognised_as_our_fields(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [{"q": Q, "a": A, "good": True}])
    columns = {"prompt": "q", "response": "a", "label": "good"}
    assert layouts.guess([tmp_path / "x.jsonl"]) == layouts.UNKNOWN
    assert layouts.guess([tmp_path / "x.jsonl"], columns=columns) == "feedback"


def test_a_file_of_several_layouts_is_refused_with_their_names_and_places(tmp_path):
    orca = {"question": Q, "chosen": A, "rejected": B}
    with pytest.raises(BadData) as error:
        guessed(tmp_path, [PAIR, PAIR], [PAIR, orca])
    (problem,) = error.value.problems
    assert (problem.code, problem.line) == ("FP092", 2)
    assert problem.file.endswith("1.jsonl")
    assert "pair (first at" in problem.message
    assert "0.jsonl:1, in all 3)" in problem.message
    assert "orca (first at" in problem.message
    assert "1.jsonl:2, in all 1)" in problem.message


@pytest.fixture
def installed(monkeypatch):
    """A package that registers layouts."""

    def install(*rows):
        package = SimpleNamespace(name="other-package")
        point = SimpleNamespace(name="other", load=lambda: rows, dist=package)
        monkeypatch.setattr(layout_table, "entry_points", lambda group: [point] if group == layout_table.GROUP else [])
        layout_table.table.cache_clear()

    yield install
    layout_table.table.cache_clear()


def test_another_package_adds_a_layout_in_a_few_lines(installed, tmp_path):
    sample = {"ask": Q, "yes": A, "no": B}
    fields = {"prompt": "ask", "chosen": "yes", "rejected": "no"}
    installed(Layout("polls", "pair", "example.org", sample, ("ask:text", "yes:text", "no:text"), fields))
    assert guessed(tmp_path, [sample]) == "polls"
    assert "polls" in layouts.names()
    record = read(sample, "polls")
    assert (record.prompt, record.chosen, record.rejected) == ((USER,), A, B)
    assert codes(read(sample | {"yes": ""}, "polls")) == [("FP012", "yes")]


def test_a_layout_that_cannot_be_used_is_told_and_left_out(installed, capsys):
    good = Layout("polls", "pair", "x", {}, ("a",), {"prompt": "a", "chosen": "b", "rejected": "c"})
    installed(
        good,
        Layout("pair", "pair", "x", {}, (), {"prompt": "a"}),
        Layout("Polls 2", "pairs", "x", {}, (), {"prompt": "a"}),
        Layout("polls_3", "pair", "x", {}, ("a:txt",), {"response": "a"}),
        "polls_4",
    )
    assert [name for name in layout_table.table() if name.startswith("polls")] == ["polls"]
    told = capsys.readouterr().err
    for text in (
        "other-package, layout pair, name: there is a layout pair already",
        "name: 'Polls 2' must be lower-case",
        "gives: expected one of pair,",
        "fields: pair has no field 'response'",
        "needs: 'txt' is not one of text,",
        "expected a finepref.formats.layout.Layout, or a tuple of them, got str",
    ):
        assert text in told


def test_every_name_can_be_asked_for_its_format():
    assert {layouts.native_format(name) for name in layouts.names()} == {
        "pair",
        "span_pair",
        "scored_pair",
        "ranked",
        "feedback",
        "negatives",
        "choice",
    }
    assert json.dumps(layouts.names())


def test_a_column_that_arrow_has_filled_with_null_is_absent_inside_a_message_too():
    """Through parquet, the rejected message has the chosen one's train_detail, null."""
    details = [{"begin_offset": 0, "end_offset": 3, "train": True}]
    row = {
        "conversations": [HUMAN],
        "chosen": GPT | {"train_detail": details},
        "rejected": GPT_BAD | {"train_detail": None},
    }
    record = read(row, "train_detail", nulls_absent=True)
    assert (record.chosen_spans, record.rejected_spans) == ((Span(0, 4),), ())
