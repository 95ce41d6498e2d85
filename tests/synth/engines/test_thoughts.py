"""A thought at the beginning of an answer is taken off, counted, and never an answer itself."""

from __future__ import annotations

import json

import pytest
from finepref.formats.records import Message
from finepref.synth.ask import Job, ask
from finepref.synth.engines.protocol import Completion, Request
from finepref.synth.engines.thoughts import ONLY_REASONING, decoded, split, without_thought
from tiny_llama import byte_tokenizer


@pytest.mark.parametrize(
    ("text", "thought", "rest"),
    [
        ("<think>\na\n</think>\n\nb", "<think>\na\n</think>\n\n", "b"),
        (" \n<THINK>x</THINK> y ", " \n<THINK>x</THINK> ", "y "),
        ("<thinking>a</thinking>b", "<thinking>a</thinking>", "b"),
        ("<reasoning>a</reasoning>b", "<reasoning>a</reasoning>", "b"),
        ("[THINK]a[/THINK]b", "[THINK]a[/THINK]", "b"),
        ("the template opened it\n</think>\nb", "the template opened it\n</think>\n", "b"),
        ("<think></think><think>a</think>b", "<think></think>", "<think>a</think>b"),
        ("<think>cut off", "<think>cut off", ""),
        ("<think>a</think>", "<think>a</think>", ""),
        ("b", "", "b"),
        ("Write <think>a</think> first.", "", "Write <think>a</think> first."),
        ("<b>bold</b>", "", "<b>bold</b>"),
        ("", "", ""),
    ],
)
def test_the_thought_is_the_first_block_and_nothing_else(text, thought, rest):
    assert split(text) == (thought, rest)


def test_an_answer_of_a_thought_alone_is_a_failure_by_name_and_no_empty_answer():
    for text in ("<think>a</think>\n", "<think>a", "a</think>"):
        found = without_thought(Completion("i", text, "stop"))
        assert (found.text, found.error) == ("", ONLY_REASONING)
    failed = Completion("i", error="HTTP 500")
    assert without_thought(failed) == failed


def test_tags_that_are_special_tokens_stay_in_the_text_of_generated_tokens():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    tokens = tokenizer("[THINK]a[/THINK]b</s>", add_special_tokens=False)["input_ids"]
    assert decoded(tokenizer, tokens) == "[THINK]a[/THINK]b"
    assert decoded(tokenizer, tokens[-2:]) == "b"


class Thinking:
    model = "thinking"

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = texts, 0

    def generate(self, requests):
        for request, text in zip(requests, self.texts, strict=False):
            self.asked += 1
            yield [Completion(request.id, text, "stop")]


def test_the_journal_holds_what_the_engine_said_and_a_thought_alone_is_asked_again(tmp_path, caplog):
    source = tmp_path / "in.jsonl"
    source.write_text("{}\n")
    job = Job(name="test", source=source, folder=tmp_path / "work", prompt_version="1", settings={})
    requests = [Request(str(i), (Message("user", "?"),), 9) for i in range(3)]
    found = ask(requests, engine=Thinking("<think>a</think>b", "c", "<think>d"), job=job)
    assert [found[str(i)].text for i in range(3)] == ["b", "c", ""]
    assert "a thought was taken off the beginning of 2 of 3 answers" in caplog.text
    (first,), (second,) = map(json.loads, (tmp_path / "work" / "journal.jsonl").read_text().splitlines())
    assert (first["text"], second["text"]) == ("<think>a</think>b", "c")
    again = Thinking("e")
    found = ask(requests, engine=again, job=job)
    assert ([found[str(i)].text for i in range(3)], again.asked) == (["b", "c", "e"], 1)
