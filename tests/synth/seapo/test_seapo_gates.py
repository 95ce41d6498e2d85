"""What is asked of a model, and which of its answers are usable negatives."""

from __future__ import annotations

import pytest
from finepref.formats.records import Message, Span
from finepref.formats.spans import diff_spans
from finepref.synth.engines.protocol import Completion
from finepref.synth.engines.thoughts import without_thought
from finepref.synth.seapo.attempts import Attempt, by_model, by_rule
from finepref.synth.seapo.gates import fault
from finepref.synth.seapo.prompts import ERRORS, PROMPT_VERSION, Source, request

CHOSEN = "The Nile flows north through Egypt and ends in the Mediterranean Sea, near Alexandria."
CHANGED = CHOSEN.replace("north", "south")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (CHANGED, None),
        ("", "empty"),
        (CHOSEN, "unchanged"),
        (CHOSEN.replace(" ", "\n", 3), "unchanged"),
        ("I'm sorry, but I can't write false statements about the Nile.", "refusal"),
        ("As an AI, I do not rewrite answers so that they are wrong.", "refusal"),
        ("**I cannot** help with that request about rivers in Egypt.", "refusal"),
        ("抱歉,我不能这样做。", "refusal"),
        (f"Here is the rewritten answer:\n\n{CHANGED}", "commentary"),
        (f"Sure! {CHANGED}", "commentary"),
        (f"{CHANGED}\n\nNote: the river flows north in truth.", "commentary"),
        (f"{CHANGED}\n\n(I changed north to south.)", "commentary"),
        (f"### Rewritten answer\n{CHANGED}", "commentary"),
        (f"{CHANGED}\n\n### Question\nWhere does the Rhine end?", "commentary"),
        (f"{CHANGED}\n\n### Explanation\nThe river flows north.", "commentary"),
        (CHANGED.replace("south", "south (incorrect)"), "commentary"),
        (f"以下是修改后的回答:{CHANGED}", "commentary"),
        ("Rivers of Asia and their deltas are a subject for another day, said my teacher to us all.", "edit_large"),
        (CHANGED[:40], "short"),
        (f"{CHANGED} {CHANGED} {CHANGED}", "long"),
    ],
)
def test_an_answer_fails_the_first_gate_that_it_does_not_pass(text, reason):
    found = fault(CHOSEN, text)
    assert (found and found.gate) == reason


def test_words_that_the_good_answer_has_too_are_no_commentary_and_no_refusal():
    assert fault("Here is the list: a, b, c, d.", "Here is the list: a, b, c, e.") is None
    assert fault("I can't swim, he said, and left.", "I can't sing, he said, and left.") is None


def test_the_bounds_are_shares_of_words_and_of_characters():
    """One word of ten differs on each side: 1 - 2 * 9 / 20 = 0.1. Eight characters to ten: 0.8."""
    ten = "a b c d e f g h i j"
    assert fault(ten, ten.replace("c", "x"), min_edit=0.0999, max_edit=0.1001) is None
    assert fault(ten, ten.replace("c", "x"), min_edit=0.1001) == ("edit_small", "edit 0.1 < --min-edit 0.1001")
    assert fault(ten, ten.replace("c", "x"), max_edit=0.0999) == ("edit_large", "edit 0.10 > --max-edit 0.0999")
    assert fault("aaaa bbbbb", "aaaa bbb", max_edit=1, min_length_ratio=0.8) is None
    short = fault("aaaa bbbbb", "aaaa bbb", max_edit=1, min_length_ratio=0.81)
    assert short == ("short", "length ratio 0.80 < --min-length-ratio 0.81")
    assert fault("aaaa bbb", "aaaa bbbbb", max_edit=1, max_length_ratio=1.25) is None
    long = fault("aaaa bbb", "aaaa bbbbb", max_edit=1, max_length_ratio=1.24)
    assert long == ("long", "length ratio 1.25 > --max-length-ratio 1.24")


@pytest.mark.parametrize(("words", "gate"), [(1, None), (8, None), (9, "edit_large")])
def test_a_good_answer_of_few_words_may_change_in_all_of_them(words, gate):
    found = fault(" ".join(["yes"] * words), " ".join(["not"] * words))
    assert (found and found.gate) == gate


SOURCE = Source("a", (Message("user", "Where does the Nile flow?"),), CHOSEN, {})


@pytest.mark.parametrize(
    ("answer", "taken_off"),
    [
        (f"<think>\nPut in an error.\n</think>\n\n{CHANGED}", ("thought",)),
        (f"Put in an error.\n</think>\n{CHANGED}", ("thought",)),
        (f"```\n{CHANGED}\n```", ("fence",)),
        (f"```{CHANGED}```", ("fence",)),
        (f"<think>So.</think>\n```text\n{CHANGED}\n```\n", ("thought", "fence")),
        (CHANGED, ()),
    ],
)
def test_a_thought_and_a_fence_around_the_answer_are_no_part_of_the_negative(answer, taken_off):
    attempt = by_model(SOURCE, without_thought(Completion("a/logic", answer, "stop")))
    assert (attempt.text, attempt.reason, attempt.taken_off) == (CHANGED, None, taken_off)
    assert attempt.spans == diff_spans(CHOSEN, CHANGED)


def test_a_thought_or_a_fence_that_the_good_answer_has_too_stays():
    thought = "<think>It is a river.</think>\n"
    source = Source("a", SOURCE.prompt, thought + CHOSEN, {})
    for answer in (thought + CHANGED, f"<think>Put in an error.</think>\n{thought}{CHANGED}"):
        attempt = by_model(source, without_thought(Completion("a/logic", answer, "stop")))
        assert (attempt.text, attempt.reason) == (thought + CHANGED, None)
    fenced = Source("a", SOURCE.prompt, f"```\n{CHOSEN}\n```", {})
    attempt = by_model(fenced, Completion("a/logic", f"```\n{CHANGED}\n```", "stop"))
    assert (attempt.text, attempt.taken_off) == (f"```\n{CHANGED}\n```", ())


@pytest.mark.parametrize("stop_reason", ["length", "content_filter", "None"])
def test_an_answer_that_did_not_end_by_itself_is_truncated_whatever_its_text(stop_reason):
    assert by_model(SOURCE, Completion("a/logic", CHANGED, stop_reason)).reason == "truncated"


def test_a_failed_request_is_told_with_its_error():
    attempt = by_model(SOURCE, Completion("a/logic", error="HTTP 500: down"))
    assert (attempt.reason, attempt.text) == ("engine", "HTTP 500: down")


def test_a_usable_answer_loses_white_space_at_its_ends_and_gets_the_span_of_what_differs():
    attempt = by_model(SOURCE, Completion("a/logic", f"\n{CHANGED} ", "stop"))
    start = CHANGED.index("south")
    assert attempt == Attempt(CHANGED, (Span(start, start + 3),))


def test_a_rule_that_finds_no_arithmetic_says_so():
    assert by_rule(SOURCE, "correctness", seed=0) == Attempt("", reason="no_equation")


def test_a_request_is_one_user_turn_with_question_answer_and_the_meaning_of_the_error():
    seen = set()
    for name, meaning in ERRORS.items():
        asked = request(SOURCE, name, max_new_tokens=7, temperature=0.5, seed=1)
        (turn,) = asked.messages
        assert turn.role == "user"
        assert [turn.content.count(part) for part in (SOURCE.prompt[0].content, CHOSEN, meaning)] == [1, 1, 1]
        assert (asked.id, asked.max_new_tokens, asked.temperature) == (f"a/{name}", 7, 0.5)
        seen.add(asked.seed)
    assert len(seen) == 3
    assert PROMPT_VERSION.startswith("seapo-")


def test_a_dialogue_is_told_with_its_roles():
    turns = (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Yes?"),
        Message("user", "Go"),
    )
    asked = request(Source("a", turns, CHOSEN, {}), "logic", max_new_tokens=1, temperature=0, seed=0)
    assert "System: Be brief.\n\nUser: Hi\n\nAssistant: Yes?\n\nUser: Go" in asked.messages[0].content


def test_braces_in_the_data_are_text():
    source = Source("a", (Message("user", "What is {x}?"),), "It is {0} or {error}.", {})
    asked = request(source, "logic", max_new_tokens=1, temperature=0, seed=0)
    assert "What is {x}?" in asked.messages[0].content
    assert "It is {0} or {error}." in asked.messages[0].content
