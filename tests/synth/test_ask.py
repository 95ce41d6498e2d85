"""One way to ask an engine: with a journal, a seed per answer, and failures that are asked for again."""

from __future__ import annotations

import json

import pytest
from finepref.formats.records import Message
from finepref.synth.ask import Job, ask, ask_each, work_folder
from finepref.synth.engines.protocol import Completion, Request, Sampling, request_seed
from finepref.synth.journal import JournalChanged


class Counting:
    """Answers each request with its id in upper case; fails on those named in `down`, dies before those in `dies`."""

    def __init__(self, model="counting", down=(), dies=()):
        self.model, self.down, self.dies, self.asked = model, down, dies, []

    def generate(self, requests):
        for request in requests:
            if request.id in self.dies:
                raise KeyboardInterrupt
            self.asked.append(request)
            if request.id in self.down:
                yield [Completion(request.id, error="down")]
            else:
                yield [Completion(request.id, request.id.upper(), "stop")]


@pytest.fixture
def job(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("{}\n")
    return Job(name="a step", source=source, folder=tmp_path / "work", prompt_version="1", settings={"x": 1}, seed=5)


def requests(*ids):
    return [Request(each, (Message("user", each),), 4) for each in ids]


def ids(engine):
    return [each.id for each in engine.asked]


def test_an_interrupted_job_resumes_with_the_requests_that_it_lacks(job):
    dying = Counting(dies=["c"])
    with pytest.raises(KeyboardInterrupt):
        ask(requests("a", "b", "c", "d"), engine=dying, job=job)
    assert ids(dying) == ["a", "b"]
    engine = Counting()
    found = ask(requests("a", "b", "c", "d"), engine=engine, job=job)
    assert ids(engine) == ["c", "d"]
    assert {key: each.text for key, each in found.items()} == {"a": "A", "b": "B", "c": "C", "d": "D"}


def test_only_requests_that_failed_are_asked_again(job):
    found = ask(requests("a", "b", "c"), engine=Counting(down=["b"]), job=job)
    assert {key: each.error for key, each in found.items()} == {"a": None, "b": "down", "c": None}
    engine = Counting()
    assert ask(requests("a", "b", "c"), engine=engine, job=job)["b"] == Completion("b", "B", "stop")
    assert ids(engine) == ["b"]


def test_the_journal_belongs_to_one_model_input_and_settings(job):
    ask(requests("a"), engine=Counting(), job=job)
    manifest = json.loads((job.folder / "manifest.json").read_text())
    assert {name: manifest[name] for name in ("job", "model", "prompt_version", "sampling", "seed")} == {
        "job": "a step",
        "model": "counting",
        "prompt_version": "1",
        "sampling": {"x": 1},
        "seed": 5,
    }
    with pytest.raises(JournalChanged, match="model"):
        ask(requests("a"), engine=Counting("another"), job=job)
    job.source.write_text("{}\n{}\n")
    with pytest.raises(JournalChanged, match="input"):
        ask(requests("a"), engine=Counting(), job=job)


def test_each_answer_to_a_prompt_has_its_name_its_seed_and_the_sampling(job):
    engine, sampling = Counting(), Sampling(temperature=0.5, top_p=0.9, top_k=3, max_new_tokens=7)
    prompts = {key: (Message("user", key),) for key in ("p", "q")}
    found = ask_each(prompts, ["one", "two"], engine=engine, sampling=sampling, job=job)
    assert {key: {name: each.text for name, each in named.items()} for key, named in found.items()} == {
        "p": {"one": "P/ONE", "two": "P/TWO"},
        "q": {"one": "Q/ONE", "two": "Q/TWO"},
    }
    assert [(each.id, each.messages) for each in engine.asked] == [
        (f"{key}/{name}", prompts[key]) for key in prompts for name in ("one", "two")
    ]
    assert [each.seed for each in engine.asked] == [request_seed(5, each.id) for each in engine.asked]
    assert len({each.seed for each in engine.asked}) == 4
    request = engine.asked[0]
    assert (request.temperature, request.top_p, request.top_k, request.max_new_tokens) == (0.5, 0.9, 3, 7)


def test_several_answers_at_temperature_0_are_refused_before_anything_is_asked(job):
    engine = Counting()
    with pytest.raises(ValueError, match="they are all the same"):
        ask_each({"p": ()}, ["one", "two"], engine=engine, sampling=Sampling(max_new_tokens=1), job=job)
    assert not engine.asked
    assert not job.folder.exists()


def test_the_journal_is_beside_the_output_unless_a_folder_is_given(tmp_path):
    assert work_folder(tmp_path / "out.jsonl", None) == tmp_path / "out.work"
    assert work_folder(tmp_path / "out.jsonl", tmp_path / "x") == tmp_path / "x"
