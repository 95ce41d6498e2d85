"""Refusals by their phrases, in any case, with any quotes, in English and Chinese; not what only sounds like one."""

from __future__ import annotations

import pytest
from finepref.synth.judges.refusals import BEGINNING, PHRASES, refusal, refused

REFUSALS = {
    "I cannot ...": [
        "I cannot help with that.",
        "I CAN’T assist you.",
        "We are unable to comply.",
        "I won't say that.",
    ],
    "I'm sorry, but ...": ["I'm sorry, but no.", "Sorry, I can't.", "I’m very sorry, but that is private."],
    "I apologize, but ...": ["I apologize, but no.", "We apologise, but we stop here."],
    "I must decline": ["I must respectfully decline.", "I refuse.", "I have to decline this request."],
    "I would rather not": ["I'd rather not.", "I would prefer not to be rude."],
    "as an AI ...": ["As an AI language model, my rules are strict: I do not tease."],
    "against my guidelines": ["That is against my guidelines.", "It violates our content policy."],
    "not appropriate": ["It's not appropriate to tease people.", "It is inappropriate to say so."],
    "not comfortable": ["I am not comfortable with this."],
    "抱歉": ["很抱歉,这个不能说。", "对不起，我无法回答。", "對不起，無法回答。"],
    "我不能": ["我不能提供这个。", "我们无法帮您。", "我無法協助。"],
    "我拒绝": ["我拒绝。", "我必须拒绝这个请求。"],
    "作为AI": ["作为一个人工智能,粗话是不会说的。", "作为AI，这不能说。"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in REFUSALS.items() for text in texts])
def test_a_refusal_is_found_by_its_phrase(name, text):
    assert refused(text) == name


def test_every_phrase_has_an_example():
    assert REFUSALS.keys() == PHRASES.keys()


@pytest.mark.parametrize(
    "text",
    [
        "I can't wait! You silly goose.",
        "I cannot believe it, you are a goose.",
        "Sorry to hear that. Here is a joke.",
        "I would rather say something kind.",
        "An AI can help with that.",
        "It is not far to the station.",
        "我不知道他在哪里。",
        "",
    ],
)
def test_what_only_sounds_like_a_refusal_is_none(text):
    assert refused(text) == ""


@pytest.mark.parametrize(
    "text", ["Ｉ　ｃａｎｎｏｔ　ｈｅｌｐ", "I can\u200bnot  help", "i\ncan`t\thelp", "\u201cI CANNOT HELP\u201d"]
)
def test_width_white_space_quotes_and_invisible_characters_make_no_difference(text):
    assert refused(text) == "I cannot ..."


def test_only_the_beginning_is_read():
    assert refused("x" * BEGINNING + " I refuse.") == ""


def test_the_judge_passes_a_refusal_or_with_absent_what_is_none():
    row = {"response": "I refuse."}
    assert refusal()(row)[:2] == (True, "I must decline")
    assert refusal(absent=True)(row)[:2] == (False, "I must decline")
    assert refusal()({"response": "Yes."}).passed is False
    assert refusal()({}).passed is None
