"""What small models write around a sentence is taken off and counted; what the sentence has itself stays."""

from __future__ import annotations

import pytest
from finepref.synth.seapo.shots import ASK, SHOTS, repeats
from finepref.synth.seapo.tidy import tidy

OLD = "Paris is the capital of France."
NEW = "Lyon is the capital of France."


@pytest.mark.parametrize(
    ("answer", "text", "taken_off"),
    [
        (NEW, NEW, ()),
        (f"Sure! {NEW}", NEW, ("chatter",)),
        (f'Sure, here is the rewritten sentence:\n\n"{NEW}"', NEW, ("chatter", "quotes")),
        (f"Here's a modified version of the sentence: {NEW}", NEW, ("chatter",)),
        (f"以下是改写后的句子\uff1a“{NEW}”", NEW, ("chatter", "quotes")),
        (f"Rewritten sentence: {NEW}", NEW, ("label",)),
        (f"**Rewritten sentence:** {NEW}\n\nNote: it is wrong.", NEW, ("label", "rest")),
        (f"- {NEW}", NEW, ("label",)),
        (f"`{NEW}`", NEW, ("quotes",)),
        (f"{NEW} This is wrong because Paris is.", NEW, ("rest",)),
        (NEW[:-1], NEW, ()),
        ('"Lyon" is the "capital".', '"Lyon" is the "capital".', ()),
        ("'It's Lyon.'", "It's Lyon.", ("quotes",)),
        ("Here is Lyon, the capital of France.", "Here is Lyon, the capital of France.", ()),
        ("Sure, here is the sentence:", "Sure, here is the sentence:", ()),
        ("", "", ()),
    ],
)
def test_words_around_a_sentence_are_taken_off(answer, text, taken_off):
    assert tidy(answer, OLD) == (text, taken_off)


def test_what_the_sentence_has_itself_stays():
    assert tidy('"It is so."', '"It was so."') == ('"It is so."', ())
    assert tidy("Sure! It is.", "Sure! It was.") == ("Sure! It is.", ())
    assert tidy("Here is the answer: 4.", "Here is the answer: 3.") == ("Here is the answer: 4.", ())
    assert tidy("Version: 4", "Version: 3") == ("Version: 4", ())


def test_one_sentence_more_stays_where_a_made_up_one_may_be_added():
    added = f"{OLD} Its king is Orvald. He is old."
    assert tidy(added, OLD, more=1) == (f"{OLD} Its king is Orvald.", ("rest",))


@pytest.mark.parametrize("error_type", ["correctness", "logic", "hallucination"])
def test_an_example_or_the_request_given_back_is_no_rewriting(error_type):
    (old, new), *_ = SHOTS["en"][error_type]
    assert repeats(old, error_type, OLD) == repeats(f"“{new}”", error_type, OLD) == "example"
    assert repeats(ASK["en"][error_type], error_type, OLD) == "request"
    assert repeats(f"{ASK['en'][error_type]} {OLD}", error_type, OLD) == "request"
    assert repeats(NEW, error_type, OLD) is None
    taken = " ".join(new.split()[-5:])
    assert repeats(f"{OLD[:-1]}, {taken}", error_type, OLD) == ("example" if taken not in old else None)
    assert repeats(f"The original sentence was: {NEW}", error_type, OLD) == "commentary"
    assert repeats("The sentence is long.", error_type, "The sentence is short.") is None
    chinese = SHOTS["zh"][error_type][0][1]
    assert repeats(chinese, error_type, "北京是首都。") == "example"


def test_a_sentence_that_is_an_example_itself_can_be_rewritten_as_no_example():
    (old, new), *_ = SHOTS["en"]["logic"]
    assert repeats(new, "logic", old) is None
